"""Values that nothing reads do not keep channels; layers whose results nothing reads lose them like others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import oicsr

IMAGES = torch.randn(2, 3, 8, 8)


class Keeping(nn.Module):
    """Keeps something of its activations for a look."""

    def __init__(self, keep: Callable[[Keeping, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.out, self.head = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 4, 1), nn.Conv2d(12, 5, 1)
        self.scale = nn.Parameter(torch.rand(5, 1))
        self.keep, self.kept = keep, torch.zeros(0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).relu()
        self.kept = self.keep(self, y)
        out: Tensor = self.out(y)
        return out


@pytest.mark.parametrize(
    "keep",
    [
        lambda self, y: y.detach().mean(),
        lambda self, y: (y == 0).float().mean((0, 2, 3)),
        lambda self, y: y.argmax(1),
        lambda self, y: y.softmax(1).cumsum(1),
    ],
)
def test_what_is_kept_for_a_look_keeps_no_channels(keep: Callable[[Keeping, Tensor], Tensor]) -> None:
    model = Keeping(keep)
    (coupling,) = oicsr.find_couplings(model, IMAGES)
    assert coupling.name == "conv"
    small = oicsr.remove_channels(model, oicsr.PruningPlan.from_kept([coupling], {"conv": (1, 4, 7)}))
    assert small(IMAGES).shape == (2, 4, 6, 6)


@pytest.mark.parametrize(
    "keep",
    [
        lambda self, y: self.head(y),
        lambda self, y: self.head(y).softmax(1),
        lambda self, y: functional.linear(y.mean((2, 3)), self.scale * self.head.weight.flatten(1)),
    ],
)
def test_a_layer_whose_result_is_kept_loses_what_it_reads_alone(keep: Callable[[Keeping, Tensor], Tensor]) -> None:
    model = Keeping(keep)
    (coupling,) = oicsr.find_couplings(model, IMAGES)
    assert ("head.weight", "in") in {(member.parameter, member.side) for member in coupling.members}
    small = oicsr.remove_channels(model, oicsr.PruningPlan.from_kept([coupling], {"conv": (1, 4, 7)}))
    small(IMAGES)
    assert small.get_submodule("head").weight.shape == (5, 3, 1, 1)
