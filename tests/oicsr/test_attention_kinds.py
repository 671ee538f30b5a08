"""Attention in rarer forms: mixed heads, unequal pieces, shared projections, tables; what was emptied goes exactly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import oicsr
from oicsr import Coupling, PruningPlan
from tests.oicsr.attentions import Network
from tests.oicsr.networks import drop_third
from tests.oicsr.test_attention import check_exact, found

X = torch.randn(2, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Kinds = dict[str, tuple[str, int]]


def kinds(couplings: list[Coupling]) -> Kinds:
    """Return what each coupling holds, and how many."""
    return {c.name: (c.kind, c.num_channels) for c in couplings}


def network(build: Callable[[], nn.Module]) -> nn.Module:
    """Return a network around an attention, with the same random parameters at every call."""
    torch.manual_seed(0)
    return Network(build()).double()


def pruned(model: nn.Module, expected: Kinds, granularity: str = "channel", scope: str = "inner") -> nn.Module:
    """Find what is expected, remove a third of it without a difference, as many MACs as predicted; return the rest."""
    couplings = found(model, X, granularity, scope)
    assert kinds(couplings) == expected
    kept = drop_third(couplings) | {c.name: [1] for c in couplings if c.num_channels == 2}
    small, plan = check_exact(model, (X,), couplings, kept)
    stays = [torch.isin(torch.arange(c.num_channels), torch.tensor(plan.kept[c.name])) for c in couplings]
    predicted = oicsr.selection.MacsModel(couplings, model, X).macs(torch.cat(stays))
    assert predicted == oicsr.count_macs(small, X) < oicsr.count_macs(model, X)
    assert PruningPlan.from_json(plan.to_json()) == plan
    return small


# ----------------------------------------------------------------------------------------------------------------
# talking heads
# ----------------------------------------------------------------------------------------------------------------


class Talking(nn.Module):
    """Layers over the heads of the scores, before and after the softmax; a table of positions in front of them."""

    def __init__(self, layer: str, where: str, fused: bool, value_heads: bool = False) -> None:
        super().__init__()
        self.num_heads, self.layer, self.fused = 4, layer, fused
        self.value_heads = 3 if value_heads else None
        size, last = 4 * 3, 3 * (self.value_heads or 4)
        mixed = self.value_heads or 4
        self.before = self.mixing(4, 4 if "after" in where else mixed) if "before" in where else None
        self.after = self.mixing(4, mixed) if "after" in where else None
        self.qkv = nn.Linear(12, 3 * size) if fused else None
        self.q, self.k, self.v = (None if fused else nn.Linear(12, width) for width in (size, size, last))
        self.bias = nn.Parameter(torch.randn(4, 5, 5))
        self.proj = nn.Linear(last, 12)

    def mixing(self, inputs: int, outputs: int) -> nn.Module:
        return nn.Conv2d(inputs, outputs, 1) if self.layer == "convolution" else nn.Linear(inputs, outputs)

    def mixed(self, layer: nn.Module | None, scores: Tensor) -> Tensor:
        if layer is None or self.layer == "convolution":
            return scores if layer is None else layer(scores)
        return layer(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        if self.qkv is not None:
            q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k = (part(x).view(batch, tokens, self.num_heads, -1).transpose(1, 2) for part in (self.q, self.k))
            v = self.v(x).view(batch, tokens, self.value_heads or self.num_heads, -1).transpose(1, 2)
        scores = self.mixed(self.before, q @ k.mT * q.shape[-1] ** -0.5 + self.bias)
        mixed = self.mixed(self.after, scores.softmax(-1)) @ v
        return self.proj(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("where", ["before", "after", "before and after"])
@pytest.mark.parametrize("fused", [False, True], ids=["separate", "fused"])
@pytest.mark.parametrize("layer", ["convolution", "linear"])
def test_talking_heads_lose_channels_and_heads(layer: str, fused: bool, where: str) -> None:
    first = "attention.qkv" if fused else "attention.q"
    between: Kinds = {"attention.before": ("channel", 4)} if where == "before and after" else {}  # heads of the softmax
    model = network(lambda: Talking(layer, where, fused))
    values: Kinds = {} if fused else {"attention.v": ("channel", 3)}
    small = pruned(model, {first: ("channel", 3)} | values | between)
    assert small.attention.num_heads == 4
    small = pruned(model, {first: ("head", 4)} | between, "head")
    assert small.attention.num_heads == 3 and small.attention.bias.shape == (3, 5, 5)
    for mixing in (small.attention.before, small.attention.after):
        assert mixing is None or mixing.weight.shape[:2] == (3, 3)


@pytest.mark.parametrize("layer", ["convolution", "linear"])
def test_heads_of_queries_and_of_values_go_by_themselves_where_each_have_a_number(layer: str) -> None:
    model = network(lambda: Talking(layer, "before", fused=False, value_heads=True))
    small = pruned(model, {"attention.q": ("head", 4), "attention.v": ("head", 3)}, "head")
    assert (small.attention.num_heads, small.attention.value_heads) == (3, 2)
    assert small.attention.before.weight.shape[:2] == (2, 3)
