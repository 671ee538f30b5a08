"""ResNets of basic blocks with a projection shortcut (option B of He et al. 2016).

ResNet-18 with the stem for CIFAR (a 3x3 convolution, no pooling), and a small one for 8x8 digits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchmarks.models.initialization import initialize


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; a 1x1 convolution on the shortcut where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != channels:
            projection = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, in_channels, h, w)` to `(batch, channels, h / stride, w / stride)`."""
        out = torch.relu_(self.bn1(self.conv1(x)))
        return torch.relu_(self.bn2(self.conv2(out)).add_(self.shortcut(x)))


class ResNet(nn.Module):
    """A stem and stages of two basic blocks; every stage but the first halves the image."""

    def __init__(self, in_channels: int, widths: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        stages = []
        previous = widths[0]
        for i, width in enumerate(widths):
            stages.append(nn.Sequential(BasicBlock(previous, width, 2 if i else 1), BasicBlock(width, width, 1)))
            previous = width
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(previous, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, in_channels, height, width)` to `(batch, num_classes)`."""
        x = self.stages(torch.relu_(self.bn1(self.conv1(x))))
        output: Tensor = self.fc(x.mean((2, 3)))
        return output


def resnet18(num_classes: int) -> nn.Module:
    """Build ResNet-18 for 32x32 images: 11.2 M parameters, 555 M MACs for ten classes."""
    return initialize(ResNet(3, (64, 128, 256, 512), num_classes))


def digits_resnet(num_classes: int) -> nn.Module:
    """Build a ResNet-14 of widths 16, 32 and 64 for 8x8 images of one channel: small enough for a demo on a CPU."""
    return initialize(ResNet(1, (16, 32, 64), num_classes))
