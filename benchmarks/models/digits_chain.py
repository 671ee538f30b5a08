"""A chain of four convolutions for 8x8 digits, with BatchNorm, with GroupNorm and without normalisation.

The three differ in nothing else, so they show what a method owes to normalisation, which decides whether the scale of a
channel's weights means anything. GroupNorm has groups of two channels. Removing one channel of a group would change the
group's statistics, so complete groups are removed.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from benchmarks.models.initialization import initialize

Normalization = Callable[[int], nn.Module]
WIDTHS = ((32, 1), (32, 1), (64, 2), (64, 1))  # channels, stride
GROUP_SIZE = 2


class DigitsChain(nn.Module):
    """Four 3x3 convolutions, each with ReLU, and one linear layer; without normalisation convolutions have a bias."""

    def __init__(self, num_classes: int, normalize: Normalization | None) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        previous = 1
        for width, stride in WIDTHS:
            layers.append(nn.Conv2d(previous, width, 3, stride=stride, padding=1, bias=normalize is None))
            if normalize is not None:
                layers.append(normalize(width))
            layers.append(nn.ReLU(inplace=True))
            previous = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(previous, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, 1, 8, 8)` to `(batch, num_classes)`."""
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


def digits_batchnorm(num_classes: int) -> nn.Module:
    """Build the chain with BatchNorm: 65,834 parameters, 1.5 M MACs for ten classes."""
    return initialize(DigitsChain(num_classes, nn.BatchNorm2d))


def digits_groupnorm(num_classes: int) -> nn.Module:
    """Build the chain with GroupNorm over pairs of channels."""
    return initialize(DigitsChain(num_classes, lambda width: nn.GroupNorm(width // GROUP_SIZE, width)))


def digits_plain(num_classes: int) -> nn.Module:
    """Build the chain without normalisation."""
    return initialize(DigitsChain(num_classes, None))
