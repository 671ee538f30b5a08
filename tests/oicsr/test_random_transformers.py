"""Random small transformers: whatever couplings are found, what was emptied goes without a difference."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import oicsr
from oicsr import PruningPlan
from tests.oicsr.attentions import CrossCovariance, Fused, Grouped, Masked, Separate, Tables
from tests.oicsr.networks import drop_third
from tests.oicsr.test_attention import emptied, found
from tests.oicsr.test_attention_kinds import (
    Alibi,
    KeyDim,
    MultiQuery,
    Parallel,
    SetBlock,
    Shared,
    Tabled,
    Talking,
    Weighted,
)

FEW, FEW_RARER = 6, 4  # the first seeds, which the quick tests try; the slow ones try the others


class Block(nn.Module):
    """An attention and a gated or plain MLP, with norms before or after."""

    def __init__(self, attention: nn.Module, width: int, norm: str, before: bool, gated: bool) -> None:
        super().__init__()
        kinds = {"layer": nn.LayerNorm, "rms": lambda n: nn.RMSNorm(n, eps=1e-5), "none": lambda n: nn.Identity()}
        self.attention, self.before, self.gated = attention, before, gated
        self.norm1, self.norm2 = kinds[norm](width), kinds[norm](width)
        self.up, self.down = nn.Linear(width, 10), nn.Linear(10, width)
        self.gate = nn.Linear(width, 10) if gated else None

    def mlp(self, x: Tensor) -> Tensor:
        hidden = nn.functional.gelu(self.up(x))
        return self.down(hidden if self.gate is None else hidden * self.gate(x))

    def forward(self, x: Tensor) -> Tensor:
        if self.before:
            x = x + self.attention(self.norm1(x))
            return x + self.mlp(self.norm2(x))
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.mlp(x))


class Transformer(nn.Module):
    """An embedding, positions, blocks and a head."""

    def __init__(self, blocks: list[nn.Module], width: int) -> None:
        super().__init__()
        self.embed, self.positions = nn.Linear(6, width), nn.Parameter(torch.randn(5, width))
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x) + self.positions).mean(1))


def build(seed: int) -> nn.Module:
    """Build a random transformer."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    form = draw.choice(["fused", "separate", "grouped", "masked", "masked", "tables", "covariance"])
    width = 16 if form == "grouped" else 12

    def attention() -> nn.Module:
        """Build an attention of the network's form."""
        heads, per_head = draw.randint(1, 4), draw.choice([2, 3, 4])
        if form == "fused":
            return Fused(width, heads, per_head, draw.choice(["kernel", "stored", "computed"]))
        if form == "separate":
            kind = draw.choice(["kernel", "einsum", "scaled"])
            return Separate(width, heads, per_head, kind, draw.random() < 0.5)
        if form == "grouped":
            groups = draw.choice([1, 2, 4])
            return Grouped(width, 4, groups, draw.random() < 0.5, draw.random() < 0.5)
        if form == "masked":
            mask, gate = (
                draw.choice(["kernel", "filled", "added", "chosen"]),
                draw.choice(["number", "head", "channel"]),
            )
            return Masked(width, 4, draw.choice([1, 2, 4]), per_head, mask, gate, draw.random() < 0.3)
        return Tables(heads, draw.random() < 0.3) if form == "tables" else CrossCovariance()

    norm, before, gated = draw.choice(["layer", "rms", "none"]), draw.random() < 0.5, draw.random() < 0.5
    return Transformer([Block(attention(), width, norm, before, gated) for _ in range(2)], width)


def build_rarer(seed: int) -> nn.Module:
    """Build a random transformer of two attentions of different rarer forms."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    layer, where = draw.choice(["convolution", "linear"]), draw.choice(["before", "after", "before and after"])
    forms: list[Callable[[], nn.Module]] = [
        lambda: Talking(layer, where, draw.random() < 0.5),
        lambda: Parallel(draw.choice(["list", "numbers", "slices", "pair", "times"])),
        lambda: MultiQuery(draw.choice(["list", "numbers", "nested"])),
        lambda: Alibi(draw.choice(["method", "computed", "empty"]), draw.random() < 0.5),
        lambda: Shared(draw.choice(["qk", "kv", "qv", "twice", "qkv"]), draw.choice(["kernel", "computed", "stored"])),
        lambda: Tabled(draw.choice(["slopes", "table", "larger", "causal"]), draw.random() < 0.5),
        KeyDim,
        SetBlock,
        Weighted,
    ]
    norm, before, gated = draw.choice(["layer", "rms", "none"]), draw.random() < 0.5, draw.random() < 0.5
    return Transformer([Block(form(), 12, norm, before, gated) for form in draw.sample(forms, 2)], 12)


def check(seed: int, build: Callable[[int], nn.Module] = build) -> int:
    """Remove a random third of all channels or heads of one network; return how many couplings attention gave."""
    model, x = build(seed).double().eval(), torch.randn(2, 5, 6, dtype=torch.float64)
    granularity, scope = ("channel", "head")[seed % 2], ("inner", "all")[seed // 2 % 2]
    couplings = found(model, x, granularity, scope=scope)
    kept = drop_third(couplings, seed) | {c.name: [seed % 2] for c in couplings if c.num_channels == 2}
    before = emptied(model, couplings, kept)
    with torch.no_grad():
        expected = before(x)
        small = oicsr.remove_channels(before, PruningPlan.from_kept(couplings, kept))
        assert float((small(x) - expected).abs().max()) < 1e-9 * float(expected.abs().max()), seed
    return sum("attention" in c.name for c in couplings)


@pytest.mark.parametrize("start", range(0, 120, 20))
@pytest.mark.slow
def test_random_transformers_lose_what_was_emptied(start: int) -> None:
    assert sum(check(seed) for seed in range(start or FEW, start + 20)) > 0


def test_a_few_random_transformers() -> None:
    assert sum(check(seed) for seed in range(FEW)) > 0


@pytest.mark.parametrize("start", range(0, 45, 15))
@pytest.mark.slow
def test_random_transformers_of_rarer_forms_lose_what_was_emptied(start: int) -> None:
    assert sum(check(seed, build_rarer) for seed in range(start or FEW_RARER, start + 15)) > (15 if start else 11)


def test_a_few_random_transformers_of_rarer_forms() -> None:
    assert sum(check(seed, build_rarer) for seed in range(FEW_RARER)) > 4


def test_every_mask_and_gate_beside_grouped_queries_is_drawn() -> None:
    modules = [module for seed in range(120) for module in build(seed).modules() if isinstance(module, Masked)]
    assert len({(module.mask, module.gate) for module in modules}) == 4 * 3
    assert {module.num_heads // module.num_kv_heads for module in modules} == {1, 2, 4}
