"""ResNet-20/32/56/110 of He et al. 2016 (section 4.2) for 32x32 images, with the parameter-free shortcut (option A).

Three stages of 16, 32 and 64 channels, `n` basic blocks each: depth `6n + 2`. Where a stage begins, the shortcut takes
every second pixel and pads the missing channels with zeros, half of them on either side.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.models.initialization import initialize


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the option A shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.padded = (channels - in_channels) // 2

    def shortcut(self, x: Tensor) -> Tensor:
        """Return the input, subsampled and zero-padded to the block's shape."""
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.padded:
            x = functional.pad(x, (0, 0, 0, 0, self.padded, self.padded))
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, in_channels, h, w)` to `(batch, channels, h / stride, w / stride)`."""
        out = torch.relu_(self.bn1(self.conv1(x)))
        return torch.relu_(self.bn2(self.conv2(out)).add_(self.shortcut(x)))


class ResNetCifar(nn.Module):
    """A ResNet of depth `6 * blocks + 2` for images of 32x32."""

    def __init__(self, blocks: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, stride=1)
        self.layer2 = self._stage(16, 32, blocks, stride=2)
        self.layer3 = self._stage(32, 64, blocks, stride=2)
        self.fc = nn.Linear(64, num_classes)

    @staticmethod
    def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(in_channels, channels, stride)
        return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, 3, 32, 32)` to `(batch, num_classes)`."""
        x = torch.relu_(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        output: Tensor = self.fc(x.mean((2, 3)))
        return output


def resnet20(num_classes: int) -> nn.Module:
    """Build ResNet-20: 0.27 M parameters, 40.6 M MACs for ten classes."""
    return initialize(ResNetCifar(3, num_classes))


def resnet32(num_classes: int) -> nn.Module:
    """Build ResNet-32: 0.46 M parameters, 68.9 M MACs for ten classes."""
    return initialize(ResNetCifar(5, num_classes))


def resnet56(num_classes: int) -> nn.Module:
    """Build ResNet-56: 0.85 M parameters, 125.5 M MACs for ten classes."""
    return initialize(ResNetCifar(9, num_classes))


def resnet110(num_classes: int) -> nn.Module:
    """Build ResNet-110: 1.73 M parameters, 252.9 M MACs for ten classes."""
    return initialize(ResNetCifar(18, num_classes))
