"""CifarNet: two 5x5 convolutions and three linear layers.

Which CifarNet Li et al. 2019 use is unknown. This one has the widths of TensorFlow's CIFAR tutorial (64, 64, 384,
192), with BatchNorm instead of local response normalisation, whose statistics run over neighbouring channels, so that
removing a channel would change its neighbours. The plain form has no normalisation and may well be the paper's.
"""

from __future__ import annotations

from torch import Tensor, nn

from benchmarks.models.initialization import initialize


class CifarNet(nn.Module):
    """Two convolutions, each with BatchNorm (or a bias), ReLU and max-pooling, and three linear layers."""

    def __init__(self, num_classes: int, *, normalize: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for in_channels in (3, 64):
            layers.append(nn.Conv2d(in_channels, 64, 5, padding=2, bias=not normalize))
            layers += [nn.BatchNorm2d(64)] if normalize else []
            layers += [nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(64 * 8 * 8, 384),
            nn.ReLU(inplace=True),
            nn.Linear(384, 192),
            nn.ReLU(inplace=True),
            nn.Linear(192, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, 3, 32, 32)` to `(batch, num_classes)`."""
        output: Tensor = self.classifier(self.features(x).flatten(1))  # (batch, 64 * 8 * 8)
        return output


def cifarnet(num_classes: int) -> nn.Module:
    """Build CifarNet for 32x32 images."""
    return initialize(CifarNet(num_classes))


def cifarnet_plain(num_classes: int) -> nn.Module:
    """Build CifarNet without normalisation."""
    return initialize(CifarNet(num_classes, normalize=False))
