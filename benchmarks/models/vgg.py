"""VGG-16 and VGG-19 with BatchNorm for 32x32 images.

The convolutions of Simonyan and Zisserman 2015 (configurations D and E), without bias because BatchNorm follows, and
one linear classifier on the flattened map: the form that pruning papers use on CIFAR. The plain form has a bias
instead of BatchNorm, like the networks of 2015.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from benchmarks.models.initialization import initialize

POOL = 0  # in a list of widths

VGG16 = (64, 64, POOL, 128, 128, POOL, *(256,) * 3, POOL, *(512,) * 3, POOL, *(512,) * 3, POOL)

VGG19 = (64, 64, POOL, 128, 128, POOL, *(256,) * 4, POOL, *(512,) * 4, POOL, *(512,) * 4, POOL)


class VGG(nn.Module):
    """A chain of 3x3 convolutions with BatchNorm (or a bias), ReLU and max-pooling, and one linear layer."""

    def __init__(self, widths: Sequence[int], num_classes: int, *, normalize: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in widths:
            if width == POOL:
                layers.append(nn.MaxPool2d(2))
                continue
            layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=not normalize))
            layers += [nn.BatchNorm2d(width)] if normalize else []
            layers.append(nn.ReLU(inplace=True))
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, 3, 32, 32)` to `(batch, num_classes)`."""
        output: Tensor = self.classifier(self.features(x).flatten(1))  # (batch, 512)
        return output


def vgg16(num_classes: int) -> nn.Module:
    """Build VGG-16-BN: 14.7 M parameters, 313 M MACs for ten classes."""
    return initialize(VGG(VGG16, num_classes))


def vgg16_plain(num_classes: int) -> nn.Module:
    """Build VGG-16 without normalisation."""
    return initialize(VGG(VGG16, num_classes, normalize=False))


def vgg19(num_classes: int) -> nn.Module:
    """Build VGG-19-BN: 20.0 M parameters, 398 M MACs for ten classes."""
    return initialize(VGG(VGG19, num_classes))
