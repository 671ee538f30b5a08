"""MobileNetV1 (Howard et al. 2017) for 32x32 images.

The layers of the original; only the stem keeps the resolution, as is usual on CIFAR, so that the last map is 2x2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.models.initialization import initialize

# (out-channels, stride) of each depthwise separable convolution
LAYERS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))


class SeparableConvolution(nn.Module):
    """A depthwise 3x3 and a pointwise 1x1 convolution, each with BatchNorm and ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            in_channels, in_channels, 3, stride=stride, padding=1, groups=in_channels, bias=False
        )
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.pointwise = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, in_channels, h, w)` to `(batch, channels, h / stride, w / stride)`."""
        x = torch.relu_(self.bn1(self.depthwise(x)))
        return torch.relu_(self.bn2(self.pointwise(x)))


class MobileNetV1(nn.Module):
    """A stem, 13 depthwise separable convolutions, and a linear layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        layers = []
        previous = 32
        for channels, stride in LAYERS:
            layers.append(SeparableConvolution(previous, channels, stride))
            previous = channels
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(previous, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, 3, 32, 32)` to `(batch, num_classes)`."""
        x = self.layers(torch.relu_(self.bn1(self.conv1(x))))
        output: Tensor = self.fc(x.mean((2, 3)))
        return output


def mobilenetv1(num_classes: int) -> nn.Module:
    """Build MobileNetV1 for 32x32 images: 3.2 M parameters, 46 M MACs for ten classes."""
    return initialize(MobileNetV1(num_classes))
