"""RMSNorm: channels that are zero go exactly, with the weight and the epsilon changed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import oicsr
from oicsr import PruningPlan


class Stream(nn.Module):
    """A residual stream of six channels under two RMSNorms."""

    def __init__(self, eps: float | None = 1e-2) -> None:
        super().__init__()
        self.start = nn.Linear(4, 6)
        self.norm, self.up, self.down = nn.RMSNorm(6, eps=eps), nn.Linear(6, 5), nn.Linear(5, 6)
        self.last, self.head = nn.RMSNorm(6, eps=eps), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        x = x + self.down(torch.relu(self.up(self.norm(x))))
        return self.head(self.last(x))


def test_the_width_of_a_stream_under_rms_norms_goes_exactly() -> None:
    torch.manual_seed(0)
    model, x = Stream().double(), torch.randn(3, 4, dtype=torch.float64)
    for norm in (model.norm, model.last):
        norm.weight.data.uniform_(0.5, 1.5)
    couplings = oicsr.find_couplings(model, x, scope="all")
    assert {c.name: c.num_channels for c in couplings} == {"start": 6, "up": 5}
    with torch.no_grad():
        for layer in (model.start, model.down):
            layer.weight[[1, 4]] = 0
            layer.bias[[1, 4]] = 0
    before = copy.deepcopy(model)
    plan = PruningPlan.from_kept(couplings, {"start": [0, 2, 3, 5]})
    small = oicsr.remove_channels(model, plan)
    torch.testing.assert_close(small(x), before(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(small.norm.weight, model.norm.weight[[0, 2, 3, 5]] * (6 / 4) ** 0.5)
    assert small.norm.eps == pytest.approx(1e-2 * 6 / 4)
    assert small.norm.normalized_shape == (4,) and model.norm.eps == 1e-2
    twice = oicsr.remove_channels(
        small, PruningPlan.from_kept(oicsr.shrink_couplings(couplings, plan), {"start": [0, 1]})
    )
    assert twice.norm.eps == pytest.approx(1e-2 * 6 / 2)
    small(x).sum().backward()
    assert small.norm.weight.grad is not None


def test_hand_computed_correction() -> None:
    norm = nn.Sequential(nn.Linear(1, 2, bias=False), nn.RMSNorm(2, eps=0.5), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        norm[0].weight.copy_(torch.tensor([[3.0], [0.0]]))
        norm[1].weight.copy_(torch.tensor([2.0, 1.0]))
        norm[2].weight.copy_(torch.tensor([[1.0, 1.0]]))
    x = torch.ones(1, 1, dtype=torch.float64)
    couplings = oicsr.find_couplings(norm, x)
    small = oicsr.remove_channels(norm, PruningPlan.from_kept(couplings, {"0": [0]}))
    assert norm(x).item() == pytest.approx(3 / 5**0.5 * 2)  # the mean of squares is 4.5, plus 0.5
    assert small[1].weight.item() == pytest.approx(2 * 2**0.5) and small[1].eps == pytest.approx(1.0)
    assert small(x).item() == pytest.approx(3 / 10**0.5 * 2 * 2**0.5)


def test_an_epsilon_that_is_left_to_pytorch_is_refused() -> None:
    model, x = Stream(eps=None), torch.randn(3, 4)
    with pytest.warns(oicsr.UnprunedChannelsWarning, match="with eps=None, which has to change with the width"):
        couplings = oicsr.find_couplings(model, x, scope="all")
    assert [c.name for c in couplings] == ["up"]
