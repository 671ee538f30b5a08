"""Attention: channels and heads that were emptied go, and every output stays."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import oicsr
from oicsr import Coupling, PruningPlan, UnprunedChannelsWarning
from tests.oicsr.attentions import (
    ClassToken,
    CrossCovariance,
    Decomposed,
    Fused,
    Generative,
    Grouped,
    Network,
    Paired,
    Rigid,
    RotatedPairs,
    Separate,
    Sized,
    Stacked,
    Tables,
    Unnamed,
)
from tests.oicsr.networks import drop_third


def found(model: nn.Module, inputs: object, granularity: str = "channel", scope: str = "inner") -> list[Coupling]:
    """Return the couplings, without the warning of LayerNorm's channels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnprunedChannelsWarning)
        return oicsr.find_couplings(model, inputs, granularity=granularity, scope=scope)  # type: ignore[arg-type]


@torch.no_grad()
def emptied(model: nn.Module, couplings: list[Coupling], kept: dict[str, list[int]]) -> nn.Module:
    """Return a copy in which every weight of the channels that go is zero."""
    twin = copy.deepcopy(model)
    parameters = dict(twin.named_parameters())
    for coupling in couplings:
        gone = set(range(coupling.num_channels)) - set(kept.get(coupling.name, range(coupling.num_channels)))
        for member in coupling.members:
            index = torch.tensor([i for i, c in enumerate(member.channels.tolist()) if c in gone], dtype=torch.int64)
            if member.parameter in parameters:  # a table that is a buffer keeps its numbers
                parameters[member.parameter].index_fill_(member.dim, index, 0)
    return twin


def check_exact(model: nn.Module, inputs: tuple[Tensor, ...], couplings: list[Coupling], kept: dict[str, list[int]]):
    """Remove what was emptied: outputs stay to 1e-9 in both modes, and the smaller network trains."""
    before = emptied(model, couplings, kept)
    plan = PruningPlan.from_kept(couplings, kept)
    small = oicsr.remove_channels(before, plan)
    for training in (False, True):
        expected, after = before.train(training)(*inputs), small.train(training)(*inputs)
        assert float((expected - after).detach().abs().max()) < 1e-9 * float(expected.detach().abs().max())
    optimizer = torch.optim.SGD(small.parameters(), 0.1)
    small(*inputs).square().mean().backward()
    optimizer.step()
    assert oicsr.count_params(small) < oicsr.count_params(model)
    return small, plan


FORMS = {
    "fused": (lambda: Fused(), {"attention.qkv": ("channel", 4)}, {"attention.qkv": ("head", 3)}),
    "stored scale": (lambda: Fused(form="stored"), {"attention.qkv": ("channel", 4)}, {"attention.qkv": ("head", 3)}),
    "computed scale": (
        lambda: Fused(form="computed"),
        {"attention.qkv": ("channel", 4)},
        {"attention.qkv": ("head", 3)},
    ),
    "separate": (
        lambda: Separate(),
        {"attention.q": ("channel", 4), "attention.v": ("channel", 4)},
        {"attention.q": ("head", 3)},
    ),
    "causal": (
        lambda: Separate(causal=True),
        {"attention.q": ("channel", 4), "attention.v": ("channel", 4)},
        {"attention.q": ("head", 3)},
    ),
    "einsum": (
        lambda: Separate(form="einsum"),
        {"attention.q": ("channel", 4), "attention.v": ("channel", 4)},
        {"attention.q": ("head", 3)},
    ),
    "scale given": (
        lambda: Separate(form="scaled"),
        {"attention.q": ("channel", 4), "attention.v": ("channel", 4)},
        {"attention.q": ("head", 3)},
    ),
    "tables": (lambda: Tables(), {"attention.qkv": ("channel", 3)}, {"attention.qkv": ("head", 4)}),
    "cross-covariance": (
        lambda: CrossCovariance(),
        {"attention.qkv": ("head", 3)},
        {"attention.qkv": ("head", 3)},
    ),
    "tuple and list": (
        lambda: Sized(named=False),
        {"attention.qkv": ("channel", 4)},
        {"attention.qkv": ("head", 3)},
    ),
    "named tuple": (
        lambda: Sized(named=True),
        {"attention.qkv": ("channel", 4)},
        {"attention.qkv": ("head", 3)},
    ),
    "generative": (lambda: Generative(), {"attention.c_attn": ("channel", 4)}, {"attention.c_attn": ("head", 3)}),
    "paired": (
        lambda: Paired(),
        {"attention.q": ("channel", 4), "attention.v": ("channel", 4)},
        {"attention.q": ("head", 2)},
    ),
    "unnamed": (lambda: Unnamed(), {"attention.qkv": ("channel", 4)}, {"attention.qkv": ("head", 3)}),
}


@pytest.mark.parametrize("granularity", ["channel", "head"])
@pytest.mark.parametrize("form", FORMS)
def test_what_was_emptied_goes_exactly(form: str, granularity: str) -> None:
    build, channels, heads = FORMS[form]
    torch.manual_seed(0)
    model, x = Network(build()).double(), torch.randn(2, 5, 12, dtype=torch.float64)
    couplings = found(model, x, granularity)
    expected = channels if granularity == "channel" else heads
    assert {c.name: (c.kind, c.num_channels) for c in couplings} == expected
    kept = drop_third(couplings) | {c.name: [1] for c in couplings if c.num_channels == 2}
    check_exact(model, (x,), couplings, kept)


@pytest.mark.parametrize("named", [False, True])
def test_widths_in_tuples_are_part_of_plan_file_and_description(named: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Network(Sized(named)).double(), torch.randn(2, 5, 12, dtype=torch.float64)
    for granularity, shape in (("channel", (3, 2)), ("head", (2, 4))):
        couplings = found(model, x, granularity)
        plan = PruningPlan.from_kept(couplings, {"attention.qkv": [0, 2]})
        assert PruningPlan.from_json(plan.to_json()) == plan
        small = oicsr.remove_channels(model, plan)
        size = [12, 12, 12] if named else [shape[0] * shape[1]] * 3
        assert (tuple(small.attention.shape), small.attention.sizes) == (shape, size)
        assert type(small.attention.shape) is type(model.attention.shape) and tuple(model.attention.shape) == (3, 4)
        oicsr.save_pruned(tmp_path / "small.safetensors", small, plan)
        loaded = oicsr.load_pruned(tmp_path / "small.safetensors", lambda: Network(Sized(named)).double())
        torch.testing.assert_close(loaded(x), small.eval()(x), rtol=0, atol=0)
        assert "attention.shape." in str(oicsr.describe(model, couplings, plan))


def test_queries_and_keys_go_where_the_width_of_the_values_is_that_of_the_input() -> None:
    torch.manual_seed(0)
    model, x = Network(ClassToken()).double(), torch.randn(2, 5, 12, dtype=torch.float64)
    with pytest.warns(
        UnprunedChannelsWarning, match=r"a part of the attention in 'attention' \(ClassToken\) stays: line"
    ):
        couplings = oicsr.find_couplings(model, x)
    assert {c.name: (c.kind, c.num_channels) for c in couplings} == {"attention.q": ("channel", 4)}
    small, _ = check_exact(model, (x,), couplings, {"attention.q": [0, 3]})
    assert small.attention.v.weight.shape == (12, 12)


def test_heads_that_are_cut_and_stacked_in_the_batch_lose_channels() -> None:
    torch.manual_seed(0)
    model, x = Network(Stacked()).double(), torch.randn(2, 5, 12, dtype=torch.float64)
    couplings = found(model, x)
    assert {c.name: (c.kind, c.num_channels) for c in couplings} == {"attention.q": ("channel", 4)}
    small, _ = check_exact(model, (x,), couplings, {"attention.q": [0, 3]})
    assert small.attention.dim == 6


@pytest.mark.parametrize("form", ["kernel", "einsum"])
def test_heads_go_where_the_rows_left_would_also_fit_as_many_heads(form: str) -> None:
    """Of 4 heads of 4, three leave 12 rows, which `unflatten` by 4 heads takes as well: the number has to follow."""
    torch.manual_seed(0)
    model, x = Network(Separate(16, 4, 4, form), 16).double(), torch.randn(2, 5, 16, dtype=torch.float64)
    couplings = found(model, x, "head")
    assert {c.name: (c.kind, c.num_channels) for c in couplings} == {"attention.q": ("head", 4)}
    small, _ = check_exact(model, (x,), couplings, {"attention.q": [0, 2, 3]})
    assert small.attention.heads == 3


class Widening(nn.Module):
    """Two stages, whose attentions have equally many heads of other widths."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.between, self.second = Fused(8, 4, 2), nn.Linear(8, 12), Fused(12, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x)))


@pytest.mark.parametrize("granularity", ["channel", "head"])
def test_attentions_of_one_class_and_other_widths_are_told_apart(granularity: str) -> None:
    torch.manual_seed(0)
    model, x = Widening().double(), torch.randn(2, 5, 8, dtype=torch.float64)
    couplings = [c for c in found(model, x, granularity) if "between" not in c.name]
    assert {c.name: c.num_channels for c in couplings if c.kind == "head"} == (
        {"first.qkv": 4, "second.qkv": 4} if granularity == "head" else {}
    )
    assert len([c for c in couplings if c.name.endswith("qkv")]) >= 2
    kept = {c.name: list(range(c.num_channels - 1)) for c in couplings}
    check_exact(model, (x,), couplings, kept)


@pytest.mark.parametrize("repeat", [False, True])
@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("granularity", ["channel", "head"])
def test_grouped_queries_go_by_groups(granularity: str, rotate: bool, repeat: bool) -> None:
    torch.manual_seed(0)
    model = Network(Grouped(rotate=rotate, repeat=repeat), 16).double()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    couplings = found(model, x, granularity)
    kinds = {c.name: (c.kind, c.num_channels) for c in couplings}
    if granularity == "channel" and not rotate:  # one number, head_dim, is the width of queries and of values
        assert kinds == {"attention.q_proj": ("channel", 4)}
    else:
        assert kinds == {"attention.q_proj": ("head", 2)}
    kept = {"attention.q_proj": [1]}
    small, _ = check_exact(model, (x,), couplings, kept)
    attention = small.attention
    if kinds["attention.q_proj"][0] == "head":
        assert (attention.num_heads, attention.num_kv_heads, attention.head_dim) == (2, 1, 4)
        assert attention.q_proj.weight.shape == (8, 16)
        assert attention.k_proj.weight.shape == (4, 16)
        torch.testing.assert_close(attention.k_proj.weight.grad.shape, attention.k_proj.weight.shape)
    else:
        assert attention.head_dim == 1
        assert attention.v_proj.weight.shape == (2, 16)


def test_where_rotated_queries_stay_a_warning_says_how_heads_go() -> None:
    torch.manual_seed(0)
    model, x = Network(RotatedPairs()).double(), torch.randn(2, 5, 12, dtype=torch.float64)
    with pytest.warns(UnprunedChannelsWarning, match="'attention.q' could only go .*; granularity=.head."):
        channels = oicsr.find_couplings(model, x)
    assert {c.name: c.num_channels for c in channels} == {"attention.v": 4}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnprunedChannelsWarning)
        heads = oicsr.find_couplings(model, x, granularity="head")
    assert {c.name: (c.kind, c.num_channels) for c in heads} == {"attention.q": ("head", 3)}
    check_exact(model, (x,), heads, {"attention.q": [0, 2]})


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("granularity", ["channel", "head"])
def test_heads_that_lie_in_the_batch_go(granularity: str, pool: bool) -> None:
    """Not channels: the scale follows their number, but not what queries look up."""
    torch.manual_seed(0)
    model, x = Network(Decomposed(pool=pool)).double(), torch.randn(2, 6, 12, dtype=torch.float64)
    couplings = found(model, x, granularity)
    assert {c.name: (c.kind, c.num_channels) for c in couplings} == {"attention.qkv": ("head", 3)}
    small, _ = check_exact(model, (x,), couplings, {"attention.qkv": [0, 2]})
    assert small.attention.num_heads == 2 and small.attention.rows.shape == model.attention.rows.shape


class Cross(nn.Module):
    """Attention to another input."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = Separate(), nn.Linear(12, 3)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return self.head(self.attention(x, memory).mean(1))


@pytest.mark.parametrize("granularity", ["channel", "head"])
def test_cross_attention(granularity: str) -> None:
    torch.manual_seed(0)
    model = Cross().double()
    inputs = torch.randn(2, 4, 12, dtype=torch.float64), torch.randn(2, 7, 12, dtype=torch.float64)
    couplings = found(model, inputs, granularity)
    assert {c.kind for c in couplings if c.name in ("attention.q", "attention.v")} == {granularity}
    check_exact(model, inputs, couplings, drop_third(couplings))


class Wrapped(nn.Module):
    """A backbone with attention inside of a network that looks at values, and attends by itself before it."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.backbone = nn.Linear(12, 12), Network(Fused())

    def forward(self, x: Tensor) -> Tensor:
        x = x + (x @ x.mT).softmax(-1) @ self.before(x)
        return self.backbone(x) if float(x.detach().abs().max()) > 0 else self.backbone(-x)


@pytest.mark.parametrize("granularity", ["channel", "head"])
def test_attention_of_a_backbone_is_that_of_the_whole(granularity: str) -> None:
    torch.manual_seed(0)
    model, x = Wrapped().double(), torch.randn(2, 5, 12, dtype=torch.float64)
    couplings = found(model, x, granularity)
    (inside,) = found(model.backbone, x, granularity)
    (coupling,) = couplings
    assert coupling.name == "backbone.attention.qkv" and coupling.kind == inside.kind == granularity
    assert [a.module for a in coupling.attributes] == ["backbone.attention"] * len(inside.attributes)
    assert [r.parameter for r in coupling.rescaled] == [f"backbone.{r.parameter}" for r in inside.rescaled]
    assert coupling.products == tuple(2 + number for number in inside.products)
    small, _ = check_exact(model, (x,), couplings, {coupling.name: [0, 2]})
    stays = torch.isin(torch.arange(coupling.num_channels), torch.tensor([0, 2]))
    assert oicsr.selection.MacsModel(couplings, model, x).macs(stays) == oicsr.count_macs(small, x)


class Cached(Tables):
    """Keeps its table in evaluation mode, by the kind of device."""

    def __init__(self) -> None:
        super().__init__()
        self.bias_cache: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> Cached:
        if mode:
            self.bias_cache = {}
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if self.training or x.device.type not in self.bias_cache:
            bias = self.table[self.places].view(5, 5, -1).permute(2, 0, 1)
            if self.training:
                return self.mixed(q, k, v, bias)
            self.bias_cache[x.device.type] = bias
        return self.mixed(q, k, v, self.bias_cache[x.device.type])

    def mixed(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        x = (q @ k.transpose(-2, -1) * 0.5 + bias).softmax(-1) @ v * self.gate
        return self.proj(x.transpose(1, 2).flatten(2))


def test_a_table_that_was_kept_in_evaluation_mode_is_made_again() -> None:
    torch.manual_seed(0)
    model, x = Network(Cached()).double().eval(), torch.randn(2, 5, 12, dtype=torch.float64)
    couplings = found(model, x, "head")
    assert [(c.kind, c.num_channels) for c in couplings] == [("head", 4)]
    with torch.no_grad():
        model(x)
    small, _ = check_exact(model, (x,), couplings, {couplings[0].name: [1, 3]})
    assert model.attention.bias_cache["cpu"].shape == (4, 5, 5)
    assert small.attention.num_heads == 2


def one_head(width: int, heads: int, value: Tensor | None = None) -> Network:
    """Return an attention whose outputs can be computed by hand, with nothing but itself between input and head."""
    torch.manual_seed(0)
    return Network(Separate(2, heads, width), 2).double()


@torch.no_grad()
def by_hand(layer: Separate, x: Tensor, rows: list[int], scale: float) -> Tensor:
    """Return one head's output, written out with some of the rows of each projection."""
    q, k = (part(x)[..., rows] for part in (layer.q, layer.k))
    scores = torch.zeros(x.shape[0], x.shape[1], x.shape[1], dtype=x.dtype)
    for i in range(x.shape[1]):
        for j in range(x.shape[1]):
            scores[:, i, j] = (q[:, i] * k[:, j]).sum(-1) * scale
    mixed = (scores.exp() / scores.exp().sum(-1, keepdim=True)) @ layer.v(x)
    return layer.out(mixed)


def test_hand_computed_query_channel_with_the_scale_of_the_dense_network() -> None:
    layer = one_head(2, 1)
    x = torch.randn(1, 3, 2, dtype=torch.float64)
    couplings = found(layer, x)
    queries = next(c for c in couplings if c.name == "attention.q")
    assert [(r.parameter, r.slices, r.power) for r in queries.rescaled] == [
        ("attention.q.weight", (0, 1), 0.5),
        ("attention.q.bias", (0, 1), 0.5),
    ]
    small = oicsr.remove_channels(layer, PruningPlan.from_kept(couplings, {"attention.q": [1]}))
    torch.testing.assert_close(small.attention.q.weight, layer.attention.q.weight[[1]] * 0.5**0.5)
    torch.testing.assert_close(small.attention.k.weight, layer.attention.k.weight[[1]])
    expected = by_hand(layer.attention, x, [1], 2**-0.5)  # the scale stays that of width 2
    torch.testing.assert_close(small.attention(x), expected, rtol=1e-12, atol=1e-12)


def test_hand_computed_value_channel() -> None:
    layer = one_head(2, 1)
    x = torch.randn(1, 3, 2, dtype=torch.float64)
    couplings = found(layer, x)
    with torch.no_grad():
        layer.attention.out.weight[:, 0] = 0
    small = oicsr.remove_channels(layer, PruningPlan.from_kept(couplings, {"attention.v": [1]}))
    assert small.attention.v.weight.tolist() == layer.attention.v.weight[[1]].tolist()
    assert small.attention.out.weight.tolist() == layer.attention.out.weight[:, [1]].tolist()
    torch.testing.assert_close(small.attention(x), by_hand(layer.attention, x, [0, 1], 2**-0.5), rtol=1e-12, atol=1e-12)


def test_hand_computed_head_of_two() -> None:
    layer = one_head(1, 2)
    x = torch.randn(1, 3, 2, dtype=torch.float64)
    couplings = found(layer, x, "head")
    small = oicsr.remove_channels(layer, PruningPlan.from_kept(couplings, {"attention.q": [1]}))
    assert small.attention.heads == 1
    with torch.no_grad():  # width 1: the scale is 1
        scores = layer.attention.q(x)[..., [1]] @ layer.attention.k(x)[..., [1]].mT
        mixed = scores.softmax(-1) @ layer.attention.v(x)[..., [1]]
        expected = mixed @ layer.attention.out.weight[:, [1]].T + layer.attention.out.bias
    torch.testing.assert_close(small.attention(x), expected, rtol=1e-12, atol=1e-12)


def test_group_lasso_over_a_head_is_the_formula() -> None:
    torch.manual_seed(0)
    model, x = Network(Fused()).double(), torch.randn(2, 5, 12, dtype=torch.float64)
    couplings = found(model, x, "head")
    for sides, holds in ((("out", "in"), (True, True)), (("out",), (True, False)), (("in",), (False, True))):
        weights = [model.attention.qkv.weight, model.attention.proj.weight]
        penalty = oicsr.GroupLasso(couplings, sides=sides, strength=0.5)(model)
        rows, columns = weights[0].view(3, 3, 4, 12), weights[1].view(12, 3, 4)
        expected = sum(
            (holds[0] * rows[:, h].square().sum() + holds[1] * columns[:, h].square().sum()).sqrt() for h in range(3)
        )
        torch.testing.assert_close(penalty, 0.5 * expected)
        given = torch.autograd.grad(penalty, weights, allow_unused=True)
        wanted = torch.autograd.grad(0.5 * expected, weights, allow_unused=True)
        for a, b in zip(given, wanted, strict=True):
            assert (a is None or not a.any()) if b is None or not b.any() else torch.allclose(a, b, rtol=1e-10)


def test_numbers_on_modules_are_part_of_the_plan_and_of_its_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Network(Fused()).double(), torch.randn(2, 5, 12, dtype=torch.float64)
    for granularity, kept, numbers in (("head", [0, 2], (2, 4, 8)), ("channel", [1, 2, 3], (3, 3, 9))):
        couplings = found(model, x, granularity)
        plan = PruningPlan.from_kept(couplings, {"attention.qkv": kept})
        assert PruningPlan.from_json(plan.to_json()) == plan
        small = oicsr.remove_channels(model, plan)
        attention = small.attention
        assert (attention.num_heads, attention.head_dim, attention.attn_dim) == numbers
        assert model.attention.num_heads == 3
        oicsr.save_pruned(tmp_path / "small.safetensors", small, plan)
        loaded = oicsr.load_pruned(tmp_path / "small.safetensors", lambda: Network(Fused()).double())
        torch.testing.assert_close(loaded(x), small.eval()(x), rtol=0, atol=0)
        assert "attn_dim" in str(oicsr.describe(model, couplings, plan))


def test_plans_follow_one_another() -> None:
    torch.manual_seed(0)
    model, x = Network(Fused()).double(), torch.randn(2, 5, 12, dtype=torch.float64)
    couplings = found(model, x)
    first = PruningPlan.from_kept(couplings, {"attention.qkv": [0, 1, 3]})
    following = oicsr.shrink_couplings(couplings, first)
    second = PruningPlan.from_kept(following, {"attention.qkv": [1, 2]})
    twice = oicsr.remove_channels(oicsr.remove_channels(model, first), second)
    once = oicsr.remove_channels(model, first.then(second))
    direct = oicsr.remove_channels(model, PruningPlan.from_kept(couplings, {"attention.qkv": [1, 3]}))
    for network in (once, direct):
        torch.testing.assert_close(network(x), twice(x), rtol=1e-12, atol=1e-12)
        assert network.attention.attn_dim == 6


def test_a_plan_of_another_number_is_refused() -> None:
    model, x = Network(Fused()), torch.randn(2, 5, 12)
    couplings = found(model, x, "head")
    plan = PruningPlan.from_kept(couplings, {"attention.qkv": [0]})
    model.attention.num_heads = 6
    with pytest.raises(ValueError, match=r"expects attention\.num_heads to be 3; in this network it is 6"):
        oicsr.remove_channels(model, plan)


def test_code_that_reshapes_back_to_the_width_of_its_input_is_refused_by_name() -> None:
    model, x = Network(Rigid()), torch.randn(2, 5, 12)
    for granularity in ("channel", "head"):
        with pytest.warns(UnprunedChannelsWarning, match=r"'attention' \(Rigid\) stays: line \d+ of attentions.py"):
            couplings = oicsr.find_couplings(model, x, granularity=granularity)  # type: ignore[arg-type]
        assert couplings == []


def test_talking_heads_stay_or_go_together() -> None:
    torch.manual_seed(0)
    model, x = Network(Tables(talking=True)).double(), torch.randn(2, 5, 12, dtype=torch.float64)
    couplings = found(model, x, "head")
    check_exact(model, (x,), couplings, drop_third(couplings))


def test_unknown_granularity() -> None:
    with pytest.raises(ValueError, match="granularity is 'row'; it must be one of 'channel', 'head'"):
        oicsr.find_couplings(Network(Fused()), torch.randn(2, 5, 12), granularity="row")  # type: ignore[arg-type]


def test_products_of_activations_are_counted_and_predicted() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 12)
    for build in (Fused, lambda: Fused(form="stored"), Separate, lambda: Separate(form="einsum")):
        model = Network(build())
        layers = 5 * 12 * 12 * 4 + 12 * 3
        assert oicsr.count_macs(model, x) == layers + 2 * 5 * 5 * 12
        for granularity in ("channel", "head"):
            couplings = found(model, x, granularity)
            scores = oicsr.out_in_energy(model, couplings)
            plan = oicsr.select_channels(scores, couplings, model, x, macs_kept=0.5, tolerance=0.4)
            stays = torch.cat(
                [torch.isin(torch.arange(c.num_channels), torch.tensor(plan.kept[c.name])) for c in couplings]
            )
            predicted = oicsr.selection.MacsModel(couplings, model, x).macs(stays)
            assert predicted == oicsr.count_macs(oicsr.remove_channels(model, plan), x)


def test_kernel_in_training_has_a_gradient() -> None:
    model, x = Network(Fused()), torch.randn(2, 5, 12)
    couplings = found(model, x)
    small = oicsr.remove_channels(model, PruningPlan.from_kept(couplings, {"attention.qkv": [0, 1]}))
    functional.mse_loss(small(x), torch.zeros(2, 3)).backward()
    assert float(small.attention.qkv.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize("form", [lambda: Network(Fused()), lambda: Network(Grouped(repeat=True, rotate=True), 16)])
def test_a_pruned_transformer_is_exported_and_compiled(form: Callable[[], nn.Module], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    model = form().eval()
    x = torch.randn(2, 5, model.head.in_features)
    couplings = found(model, x, "head")
    kept = {c.name: [0] for c in couplings if c.kind == "head"}
    assert kept
    small = oicsr.remove_channels(model, PruningPlan.from_kept(couplings, kept))
    path = tmp_path / "small.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(small, (x,), str(path), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    expected = small(x)
    torch.testing.assert_close(torch.from_numpy(given), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.compile(small, backend="eager")(x), expected)


def needs_a_compiler() -> None:
    """Skip a test where PyTorch finds no C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        found = shutil.which(get_cpp_compiler())
    except RuntimeError as error:
        pytest.skip(f"no C++ compiler: {error}")
    if found is None:
        pytest.skip("no C++ compiler")


@pytest.mark.slow
@pytest.mark.parametrize("form", [lambda: Network(Fused()), lambda: Network(Grouped(repeat=True, rotate=True), 16)])
def test_a_pruned_transformer_is_compiled_by_inductor(form: Callable[[], nn.Module]) -> None:
    needs_a_compiler()
    torch.manual_seed(0)
    model = form().eval()
    x = torch.randn(2, 5, model.head.in_features)
    couplings = found(model, x, "head")
    small = oicsr.remove_channels(model, PruningPlan.from_kept(couplings, {c.name: [0] for c in couplings}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler itself
        compiled = torch.compile(small, backend="inductor")
        given = compiled(x)
        torch.testing.assert_close(given, small(x), rtol=1e-4, atol=1e-5)
        given.square().mean().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())
