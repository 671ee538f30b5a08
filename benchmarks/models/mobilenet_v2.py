"""MobileNetV2 (Sandler et al. 2018) for 32x32 images: the layers of the original, and two of its five strides left out.

The stem and the first stage of width 24 keep the resolution, so that the last map is 4x4. Blocks and parameters are
those of the ImageNet network; as there, a block that changes its width has no shortcut.
"""

from __future__ import annotations

from torch import Tensor, nn

from benchmarks.models.initialization import initialize

# (expansion, out-channels, blocks, stride of the first block)
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def convolution(in_channels: int, channels: int, kernel: int, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Return a convolution with its BatchNorm."""
    conv = nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(channels)]


class InvertedResidual(nn.Module):
    """Expand by a 1x1, filter by a depthwise 3x3, project by a linear 1x1 convolution."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [*convolution(in_channels, hidden, 1), nn.ReLU6(inplace=True)]
        layers += [*convolution(hidden, hidden, 3, stride=stride, groups=hidden), nn.ReLU6(inplace=True)]
        self.conv = nn.Sequential(*layers, *convolution(hidden, channels, 1))
        self.has_shortcut = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, in_channels, h, w)` to `(batch, channels, h / stride, w / stride)`."""
        output: Tensor = x + self.conv(x) if self.has_shortcut else self.conv(x)
        return output


class MobileNetV2(nn.Module):
    """A stem, 17 inverted residuals, a 1x1 convolution to 1,280 channels, and a linear layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [*convolution(3, 32, 3), nn.ReLU6(inplace=True)]
        previous = 32
        for expansion, channels, blocks, stride in STAGES:
            for i in range(blocks):
                layers.append(InvertedResidual(previous, channels, stride if i == 0 else 1, expansion))
                previous = channels
        layers += [*convolution(previous, 1280, 1), nn.ReLU6(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, 3, 32, 32)` to `(batch, num_classes)`."""
        output: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return output


def mobilenetv2(num_classes: int) -> nn.Module:
    """Build MobileNetV2 for 32x32 images: 2.24 M parameters, 88 M MACs for ten classes."""
    return initialize(MobileNetV2(num_classes))
