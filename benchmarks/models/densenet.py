"""DenseNets (Huang et al. 2017) for 32x32 images.

DenseNet-40: three dense blocks of 12 basic layers, growth rate 12, no compression: depth `3 * 12 + 4 = 40` (stem, two
transitions and classifier are the four). The stem has 24 channels, twice the growth rate, as in the pruning papers.

DenseNet-89: which one Li et al. 2019 use is unknown: neither growth rate nor block type is given. Depth 89 is not of
the form `3n + 4` or `6n + 4` of the CIFAR networks, so this one follows the arithmetic of the ImageNet family, where
four dense blocks of bottleneck layers have depth `2 * layers + 5` (stem, three transitions and classifier are the five;
DenseNet-121 has 6 + 12 + 24 + 16 = 58 layers): 42 layers, split 6 + 12 + 16 + 8. Growth rate 12, compression 0.5 and a
3x3 stem without pooling, as in DenseNet-BC for CIFAR.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchmarks.models.initialization import initialize


class BasicLayer(nn.Module):
    """BatchNorm, ReLU and a 3x3 convolution, whose output is concatenated to the input."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, in_channels, h, w)` to `(batch, in_channels + growth, h, w)`."""
        return torch.cat([x, self.conv(torch.relu(self.bn(x)))], 1)


class BottleneckLayer(nn.Module):
    """A 1x1 convolution to four times the growth rate, and a 3x3 one whose output is concatenated to the input."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, in_channels, h, w)` to `(batch, in_channels + growth, h, w)`."""
        hidden = self.conv1(torch.relu(self.bn1(x)))
        return torch.cat([x, self.conv2(torch.relu(self.bn2(hidden)))], 1)


class Transition(nn.Module):
    """BatchNorm, ReLU, a 1x1 convolution, and average pooling by two."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, in_channels, h, w)` to `(batch, channels, h / 2, w / 2)`."""
        output: Tensor = self.pool(self.conv(torch.relu(self.bn(x))))
        return output


class DenseNet(nn.Module):
    """A stem of twice the growth rate, dense blocks with transitions between them, and a linear layer."""

    def __init__(
        self,
        layer: type[BasicLayer] | type[BottleneckLayer],
        blocks: Sequence[int],
        growth: int,
        compression: float,
        num_classes: int,
    ) -> None:
        super().__init__()
        channels = 2 * growth
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        parts: list[nn.Module] = []
        for i, count in enumerate(blocks):
            if i:
                parts.append(Transition(channels, int(channels * compression)))
                channels = int(channels * compression)
            parts.append(nn.Sequential(*(layer(channels + growth * k, growth) for k in range(count))))
            channels += growth * count
        self.blocks = nn.Sequential(*parts)
        self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, 3, 32, 32)` to `(batch, num_classes)`."""
        x = torch.relu(self.bn(self.blocks(self.conv1(x))))
        output: Tensor = self.fc(x.mean((2, 3)))
        return output


def densenet40(num_classes: int) -> nn.Module:
    """Build DenseNet-40 with growth rate 12: 1.06 M parameters, 283 M MACs for ten classes."""
    return initialize(DenseNet(BasicLayer, (12, 12, 12), 12, 1.0, num_classes))


def densenet89(num_classes: int) -> nn.Module:
    """Build a DenseNet of depth 89 with growth rate 12 (see the module's docstring for what is chosen)."""
    return initialize(DenseNet(BottleneckLayer, (6, 12, 16, 8), 12, 0.5, num_classes))
