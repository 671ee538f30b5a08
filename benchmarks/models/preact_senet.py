"""PreActSENet-18 for 32x32 images: pre-activation ResNet-18 (He et al. 2016b) with squeeze-and-excitation.

The gate (Hu et al. 2018, reduction 16) acts on the residual branch. Li et al. 2019 do not say which definition they
take; this is the usual one for CIFAR, with the closing BatchNorm and ReLU that pre-activation networks need.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.models.initialization import initialize

REDUCTION = 16


class Gate(nn.Module):
    """Squeeze-and-excitation: one factor in (0, 1) per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels // REDUCTION, 1)
        self.excite = nn.Conv2d(channels // REDUCTION, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scale `(batch, channels, h, w)`."""
        squeezed = torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))  # (batch, channels / 16, 1, 1)
        return x * torch.sigmoid(self.excite(squeezed))


class PreActBlock(nn.Module):
    """BatchNorm and ReLU before each of two 3x3 convolutions, and a gate behind them."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.gate = Gate(channels)
        self.projection: nn.Module | None = None
        if stride > 1 or in_channels != channels:
            self.projection = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, in_channels, h, w)` to `(batch, channels, h / stride, w / stride)`."""
        out = torch.relu(self.bn1(x))
        shortcut = x if self.projection is None else self.projection(out)
        out = self.conv2(torch.relu(self.bn2(self.conv1(out))))
        output: Tensor = self.gate(out) + shortcut
        return output


class PreActSENet(nn.Module):
    """A stem, four stages of two blocks, closing BatchNorm and ReLU, and a linear layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        blocks = []
        previous = 64
        for channels, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            blocks += [PreActBlock(previous, channels, stride), PreActBlock(channels, channels, 1)]
            previous = channels
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(previous)
        self.fc = nn.Linear(previous, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, 3, 32, 32)` to `(batch, num_classes)`."""
        x = torch.relu(self.bn(self.blocks(self.conv1(x))))
        output: Tensor = self.fc(x.mean((2, 3)))
        return output


def preactsenet18(num_classes: int) -> nn.Module:
    """Build PreActSENet-18 for 32x32 images."""
    return initialize(PreActSENet(num_classes))
