"""Flex attention: channels and heads go, with the tables that its functions look heads up in."""

from __future__ import annotations

import copy
import functools
import warnings

import pytest
import torch
from torch import Tensor, nn

import oicsr
from oicsr import Coupling, PruningPlan, UnprunedChannelsWarning

flex = pytest.importorskip("torch.nn.attention.flex_attention")
pytestmark = pytest.mark.xdist_group("flex attention")  # one process traces each network once


class Flex(nn.Module):
    """A fused projection, and one of several functions of scores; the slopes are one number per head."""

    def __init__(self, form: str, groups: int = 4) -> None:
        super().__init__()
        self.form, self.heads, self.groups, self.width = form, 4, groups, 4
        self.q, self.kv, self.out = nn.Linear(16, 16), nn.Linear(16, 8 * groups), nn.Linear(16, 16)
        self.slopes = nn.Parameter(torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q = self.q(x).view(batch, tokens, self.heads, self.width).transpose(1, 2)
        k, v = self.kv(x).view(batch, tokens, 2, self.groups, self.width).permute(2, 0, 3, 1, 4).unbind(0)
        causal = flex.create_block_mask(lambda b, h, i, j: i >= j, None, None, tokens, tokens, device="cpu")
        each = flex.create_block_mask(lambda b, h, i, j: i + h >= j, None, self.heads, tokens, tokens, device="cpu")
        functions = {
            "plain": {},
            "relative": {"score_mod": lambda score, b, h, i, j: score + (j - i)},
            "slopes": {"score_mod": lambda score, b, h, i, j: score + self.slopes[h] * (j - i)},
            "number of the head": {"score_mod": lambda score, b, h, i, j: score + h * (j - i)},
            "causal": {"block_mask": causal, "scale": 0.3},
            "mask per head": {"block_mask": each},
        }
        options = {"enable_gqa": self.groups != self.heads, **functions[self.form]}
        x = flex.flex_attention(q, k, v, **options)
        return self.out(x.transpose(1, 2).flatten(2))


@functools.cache
def found(form: str, granularity: str, groups: int = 4) -> tuple[nn.Module, Tensor, list[Coupling], list[str]]:
    """Return a network that needs no gradient, as there is none on a CPU, with its couplings and what was said."""
    torch.manual_seed(0)
    model, x = Flex(form, groups).double().eval().requires_grad_(False), torch.randn(2, 6, 16, dtype=torch.float64)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        couplings = oicsr.find_couplings(model, x, granularity=granularity)  # type: ignore[arg-type]
    return model, x, couplings, [str(entry.message) for entry in said]


def check(model: nn.Module, x: Tensor, coupling: Coupling, kept: list[int]) -> nn.Module:
    """Empty what goes, and remove it: outputs stay."""
    wide = copy.deepcopy(model)
    for member in coupling.members:
        if member.side != "norm":
            gone = [i for i, channel in enumerate(member.channels.tolist()) if channel not in kept]
            wide.get_parameter(member.parameter).index_fill_(member.dim, torch.tensor(gone), 0)
    small = oicsr.remove_channels(wide, PruningPlan.from_kept([coupling], {coupling.name: kept}))
    torch.testing.assert_close(small(x), wide(x), rtol=0, atol=1e-12)
    assert 0 < oicsr.count_macs(small, x) < oicsr.count_macs(model, x)
    return small


@pytest.mark.parametrize("granularity", ["channel", "head"])
@pytest.mark.parametrize("form", ["plain", "relative", "slopes", "causal"])
def test_what_was_emptied_goes_exactly(form: str, granularity: str) -> None:
    model, x, (coupling,), said = found(form, granularity)
    assert (coupling.kind, coupling.num_channels, said) == (granularity, 4, [])
    small = check(model, x, coupling, [0, 2])
    assert len(small.slopes) == (2 if form == "slopes" and granularity == "head" else 4)


def test_grouped_queries_go_by_groups() -> None:
    model, x, (coupling,), said = found("relative", "head", groups=2)
    assert (coupling.kind, coupling.num_channels, said) == ("head", 2, [])
    small = check(model, x, coupling, [1])
    assert (small.heads, small.groups) == (2, 1)


@pytest.mark.parametrize("form", ["number of the head", "mask per head"])
def test_heads_that_are_counted_stay_by_name(form: str) -> None:
    model, x, couplings, said = found(form, "head")
    assert couplings == []
    assert any("flex_attention in module '(root)' counts heads in score_mod or in its mask" in text for text in said)
    _, _, (channels,), _ = found(form, "channel")
    check(model, x, channels, [1, 3])


def test_macs_are_those_of_the_same_attention_without_flex() -> None:
    model, x, _, _ = found("plain", "head")
    assert oicsr.count_macs(model, x) == 6 * 16 * (16 + 32 + 16) + 2 * 6 * 6 * 16


def test_the_compiler_of_flex_attention_is_as_it_was() -> None:
    before = flex._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnprunedChannelsWarning)
        found.__wrapped__("plain", "channel")  # in spite of the cache
    assert flex._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG is before
