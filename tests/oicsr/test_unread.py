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


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_the_last_layer_of_a_stream_that_nothing_reads_stays_as_wide_as_the_stream(scale: float) -> None:
    class Waves(nn.Module):
        """WaveNet's loop: every block adds to the stream, and the last sum is not read."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv1d(1, 12, 1), nn.Conv1d(10, 3, 1)
            self.gates = nn.ModuleList(nn.Conv1d(12, 16, 3, padding=1) for _ in range(2))
            self.back, self.skips = (nn.ModuleList(nn.Conv1d(16, n, 1) for _ in range(2)) for n in (12, 10))

        def forward(self, x: Tensor) -> Tensor:
            x, total = self.first(x), torch.zeros(())
            for gate, back, skip in zip(self.gates, self.back, self.skips, strict=True):
                h = gate(x).tanh()
                total = total + skip(h)
                x = (x + functional.dropout(back(h), 0.1, self.training)) * scale
            out: Tensor = self.last(total.relu())
            return out

    model, x = Waves().eval(), torch.randn(2, 1, 9)
    couplings = oicsr.find_couplings(model, x, scope="all")
    assert {coupling.name: coupling.num_channels for coupling in couplings} == {
        "first": 12,
        "gates.0": 16,
        "skips.0": 10,
        "gates.1": 16,
    }
    small = oicsr.remove_channels(
        model, oicsr.PruningPlan.from_kept(couplings, {c.name: range(c.num_channels // 2) for c in couplings})
    )
    assert small(x).shape == (2, 3, 9) and small.back[1].weight.shape == (6, 8, 1)
