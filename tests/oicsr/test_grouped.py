"""Products by groups (`torch._grouped_mm`), which mixtures of experts are made of."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import oicsr
from oicsr.networks.grouped import by_groups
from tests.oicsr.users_networks import weight

ROWS = torch.randn(12, 8)
FORMS = ("rows first", "columns first")


class Experts(nn.Module):
    """The two best of four experts for each row, sorted by expert."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.transposed = form == "rows first"
        self.up, self.down = (
            (weight(4, 64, 16), weight(4, 16, 32)) if self.transposed else (weight(4, 16, 64), weight(4, 32, 16))
        )

    def matrices(self) -> tuple[Tensor, Tensor]:
        return (self.up.mT, self.down.mT) if self.transposed else (self.up, self.down)

    def forward(self, x: Tensor, best: Tensor, shares: Tensor) -> Tensor:
        experts, order = best.flatten().sort(stable=True)
        ends = torch.histc(experts.float(), 4, 0, 3).cumsum(0, dtype=torch.int32)
        up, down = self.matrices()
        rows = (torch.arange(len(x)).unsqueeze(1).expand_as(best)).flatten()[order]
        gate, values = torch._grouped_mm(x[rows], up, offs=ends).chunk(2, -1)
        y = torch._grouped_mm(functional.silu(gate) * values, down, offs=ends)
        return torch.zeros_like(x).index_add_(0, rows, y * shares.flatten()[order].unsqueeze(1))


class Mixture(nn.Module):
    """A mixture of experts between two layers."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.first, self.router, self.last = nn.Linear(8, 16), nn.Linear(16, 4), nn.Linear(16, 3)
        self.experts = Experts(form)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        shares, best = self.router(x).topk(2, -1)
        return self.last(x + self.experts(x, best, shares.softmax(-1)))


def loop(net: Mixture, x: Tensor) -> Tensor:
    """Return what the network gives, in float64, row by row and expert by expert."""
    net, x = net.double(), x.double()
    x = net.first(x).relu()
    shares, best = net.router(x).topk(2, -1)
    up, down = net.experts.matrices()
    sums = []
    for row, own, share in zip(x, best.tolist(), shares.softmax(-1), strict=True):
        gates = [(share[i], *(row @ up[e]).chunk(2), down[e]) for i, e in enumerate(own)]
        sums.append(sum(part * ((functional.silu(gate) * value) @ out) for part, gate, value, out in gates))
    return net.last(x + torch.stack(sums))


def test_the_product_in_any_precision_is_that_of_pytorch() -> None:
    rows, stack, ends = torch.randn(10, 16), torch.randn(3, 16, 8), torch.tensor([3, 3, 10], dtype=torch.int32)
    expected = torch._grouped_mm(rows, stack, offs=ends)
    torch.testing.assert_close(by_groups(rows, stack, ends, None), expected)
    own = [row @ stack[0 if i < 3 else 2] for i, row in enumerate(rows)]
    torch.testing.assert_close(expected, torch.stack(own))


@pytest.mark.parametrize("form", FORMS)
def test_experts_lose_channels_in_blocks(form: str) -> None:
    torch.manual_seed(0)
    net = Mixture(form).eval()
    with pytest.warns(oicsr.UnprunedChannelsWarning, match="topk"):
        couplings = oicsr.find_couplings(net, ROWS, scope="all")
    assert [(c.name, c.num_channels) for c in couplings] == [("first", 2), ("experts", 4)]
    plan = oicsr.PruningPlan.from_kept(couplings, {"first": [1], "experts": [0, 2, 3]})
    with torch.no_grad():
        for coupling in couplings:
            for member in coupling.members:
                goes = ~torch.isin(member.channels, torch.tensor(plan.kept[coupling.name]))
                net.get_parameter(member.parameter).index_fill_(member.dim, goes.nonzero().flatten(), 0)
        small = oicsr.remove_channels(net, plan)
        assert small.experts.up.numel() == 4 * 8 * 48
        torch.testing.assert_close(small(ROWS), net(ROWS))
        expected = net(ROWS)
        torch.testing.assert_close(loop(small, ROWS), loop(net, ROWS), rtol=0, atol=1e-12)
        torch.testing.assert_close(loop(net, ROWS).float(), expected)
        assert small.bfloat16()(ROWS.bfloat16()).shape == (12, 3)  # the kernel takes the widths that are left


def test_the_macs_of_experts_are_known_before_surgery() -> None:
    net = Mixture(FORMS[0]).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", oicsr.UnprunedChannelsWarning)
        couplings = oicsr.find_couplings(net, ROWS, scope="all")
    assert oicsr.count_macs(net, ROWS) == 8 * 16 + 16 * 4 + 16 * 3 + 2 * (16 * 64 + 32 * 16)
    half = oicsr.select_channels(
        oicsr.out_in_energy(net, couplings), couplings, net, ROWS, macs_kept=0.5, tolerance=0.2
    )
    small = oicsr.remove_channels(net, half)
    first, hidden = (8 * len(half.kept[name]) for name in ("first", "experts"))
    assert oicsr.count_macs(small, ROWS) == 8 * first + first * 7 + 2 * 3 * first * hidden
