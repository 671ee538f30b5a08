"""Linear attention and its relatives: channels go where a channel of zeros adds nothing, and heads elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import oicsr
from oicsr import PruningPlan, UnprunedChannelsWarning
from tests.oicsr.test_attention_kinds import Kinds, X, network, pruned

Maps = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def cosine(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Weigh by the distance of positions (cosFormer): twice as many channels, sines behind cosines."""
    angles = torch.arange(q.shape[-2], dtype=q.dtype)[:, None] * (math.pi / 2 / q.shape[-2])
    parts = [torch.cat([x.relu() * angles.cos(), x.relu() * angles.sin()], -1) for x in (q, k)]
    return parts[0], parts[1]


MAPS: dict[str, Maps] = {
    "relu": lambda q, k: (q.relu(), k.relu()),
    "squared relu": lambda q, k: (q.relu().square(), k.relu().square()),
    "scaled": lambda q, k: (q * q.shape[-1] ** -0.5, k),
    "keys over positions": lambda q, k: (q, k.softmax(-2)),
    "cosine": cosine,
    "elu and one": lambda q, k: (functional.elu(q) + 1, functional.elu(k) + 1),
    "exponential": lambda q, k: (q.exp(), k.exp()),
    "efficient": lambda q, k: (q.softmax(-1), k.softmax(-2)),
}


class Linear(nn.Module):
    """Queries times what keys make of values, by one of several feature maps, and in one of several forms."""

    def __init__(self, features: str = "relu", form: str = "@", *, fused: bool = False, heads: int | None = 3) -> None:
        super().__init__()
        self.features, self.form, self.num_heads = MAPS[features], form, heads
        width = 4 * (heads or 2)
        self.qkv = nn.Linear(12, 3 * width) if fused else None
        self.q, self.k, self.v = (None if fused else nn.Linear(12, width) for _ in range(3))
        self.out = nn.Linear(width, 12)

    def forward(self, x: Tensor) -> Tensor:
        if self.qkv is not None:
            parts = self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.num_heads is None:
            parts = self.q(x), self.k(x), self.v(x)
        else:
            parts = [p(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for p in (self.q, self.k, self.v)]
        mixed = self.mixed(*self.features(parts[0], parts[1]), parts[2])
        return self.out(mixed if self.num_heads is None else mixed.transpose(1, 2).flatten(2))

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.form == "plain":
            return q @ (k.transpose(-2, -1) @ v)
        if self.form == "ones":
            mixed = q @ (k.mT @ functional.pad(v, (0, 1), value=1.0))
            return mixed[..., :-1] / (mixed[..., -1:] + 1)
        if self.form == "bmm":
            states = torch.bmm(k.flatten(0, 1).mT, v.flatten(0, 1)) / k.shape[-2]
            return torch.bmm(q.flatten(0, 1), states).unflatten(0, q.shape[:2])
        if self.form == "einsum":
            states = torch.einsum("bhnd,bhne->bhde", k, v)
            share = 1 / (torch.einsum("bhnd,bhd->bhn", q, k.sum(2)) + 1)
            return torch.einsum("bhnd,bhde,bhn->bhne", q, states, share)
        if self.form == "transposed":
            return torch.einsum("bhed,bhnd->bhne", torch.einsum("bhnd,bhne->bhed", k, v), q)
        return q @ (k.mT @ v) / ((q * k.sum(-2, keepdim=True)).sum(-1, keepdim=True) + 1)


class Covariance(nn.Module):
    """Attention between channels, with projections of their own: the keys' are in a softmax, the queries' are not."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(12, 6), nn.Linear(12, 8), nn.Linear(12, 8), nn.Linear(6, 12)
        self.temperature = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).mT for part in (self.q, self.k, self.v))
        scores = functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).mT * self.temperature
        return self.out((scores.softmax(-1) @ v).mT)


class States(nn.Module):
    """Linear attention with 6 channels of queries and keys and 8 of values, and something done to what they make."""

    def __init__(self, change: str) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(12, 6), nn.Linear(12, 6), nn.Linear(12, 8), nn.Linear(8, 12)
        self.rows, self.columns = nn.Parameter(torch.rand(6, 1)), nn.Parameter(torch.rand(8))
        self.gate, self.layer, self.change = nn.Linear(12, 6), nn.Linear(8, 8), change

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        states = k.mT @ v
        if self.change == "rows and columns":
            states = states * self.rows + self.columns
        elif self.change == "gate":
            states = states * self.gate(x.mean(1)).sigmoid()[..., None]
        elif self.change == "sum":
            states = states + k[:, :1].mT @ v[:, :1] * 0.5
        elif self.change == "length":
            states = functional.normalize(states, dim=-2)
        elif self.change == "layer":
            states = self.layer(states)
        elif self.change == "one batch":
            states = torch.einsum("bnd,bne->de", k[:1, :1], v[:1, :1])
        else:
            return self.out(q @ states @ (states.mT @ states))
        return self.out(q @ states)


class Several(nn.Module):
    """Attentions of one class and shape, with different feature maps."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Linear("elu and one", "plain"), Linear(form="plain")

    def forward(self, x: Tensor) -> Tensor:
        return self.second(x + self.first(x))


class Rows(nn.Module):
    """Products of the channels of two layers, whose rows a convolution reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 4), nn.Linear(12, 6)
        self.rows, self.out = nn.Conv1d(4, 9, 1), nn.Linear(9, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rows(self.first(x).mT @ self.second(x)).mean(-1))[:, None]


class Pooled(nn.Module):
    """Bilinear pooling: products of the channels of two layers, all of which a layer reads in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(12, 6), nn.Linear(12, 4), nn.Linear(24, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.out((self.first(x).mT @ self.second(x)).flatten(1))[:, None]


class Projected(nn.Module):
    """Linformer: keys and values of three places, which one weight makes of all five, in one of several forms."""

    def __init__(self, form: str, heads: int | None) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(12, 12) for _ in range(4))
        self.num_heads, self.form = heads, form
        self.layer = nn.Linear(5, 3) if form == "linear" else nn.Conv1d(5, 3, 1) if form == "convolution" else None
        self.places = nn.Parameter(torch.randn(3, 5)) if self.layer is None else None

    def fewer(self, x: Tensor) -> Tensor:
        if self.form == "convolution":
            return self.layer(x)
        if self.form == "linear":
            return self.layer(x.mT).mT
        return torch.einsum("kn,bnd->bkd", self.places, x) if self.form == "einsum" else self.places @ x

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.fewer(self.k(x)), self.fewer(self.v(x))
        if self.num_heads is not None:
            q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (q, k, v))
        mixed = (q @ k.mT).softmax(-1) @ v
        return self.out(mixed if self.num_heads is None else mixed.transpose(1, 2).flatten(2))


class Lambdas(nn.Module):
    """LambdaNetworks: values go through keys, and through a table of positions."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.num_heads, self.form = 3, form
        self.q, self.k, self.v, self.out = nn.Linear(12, 12), nn.Linear(12, 4), nn.Linear(12, 6), nn.Linear(18, 12)
        self.table = nn.Parameter(torch.randn(5, 5, 4))

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.k(x).softmax(1), self.v(x)
        if self.form == "einsum":
            content, place = torch.einsum("bmk,bmv->bkv", k, v), torch.einsum("nmk,bmv->bnkv", self.table, v)
        else:
            content, place = k.mT @ v, self.table.permute(0, 2, 1) @ v[:, None]
        mixed = torch.einsum("bhnk,bkv->bhnv", q, content) + torch.einsum("bhnk,bnkv->bhnv", q, place)
        return self.out(mixed.transpose(1, 2).flatten(2))


QK, V, HEADS = ("channel", 4), ("channel", 4), ("head", 3)
FORMS = ["@", "plain", "ones", "bmm", "einsum", "transposed"]


@pytest.mark.parametrize(
    ("features", "form"), [("relu", form) for form in FORMS] + [(f, "plain") for f in list(MAPS)[1:5]]
)
def test_channels_of_queries_and_keys_go_and_those_of_values(features: str, form: str) -> None:
    small = pruned(network(lambda: Linear(features, form)), {"attention.q": QK, "attention.v": V}).attention
    assert (small.q.out_features, small.k.out_features, small.v.out_features) == (9, 9, 9)


@pytest.mark.parametrize("form", ["@", "ones"])
def test_one_projection_loses_a_channel_of_each_head(form: str) -> None:
    model = network(lambda: Linear(form=form, fused=True))
    assert pruned(model, {"attention.qkv": QK}).attention.qkv.out_features == 27
    assert pruned(model, {"attention.qkv": HEADS}, "head").attention.num_heads == 2


@pytest.mark.parametrize("features", ["elu and one", "exponential", "efficient"])
def test_heads_go_where_channels_of_zeros_add_something(features: str) -> None:
    small = pruned(network(lambda: Linear(features)), {"attention.q": HEADS}).attention
    assert small.num_heads == 2


@pytest.mark.parametrize(
    ("features", "why"), [("elu and one", "part of .* stays: channels of zeros"), ("efficient", "normalises over the")]
)
def test_without_heads_values_go_where_queries_and_keys_cannot(features: str, why: str) -> None:
    model = network(lambda: Linear(features, heads=None))
    with pytest.warns(UnprunedChannelsWarning, match=why):
        oicsr.find_couplings(model, X)
    assert pruned(model, {"attention.v": ("channel", 8)}).attention.q.out_features == 8


def test_without_heads_all_channels_go() -> None:
    expected: Kinds = {"attention.q": ("channel", 8), "attention.v": ("channel", 8)}
    pruned(network(lambda: Linear(heads=None)), expected)


def test_cross_covariance_loses_queries_and_their_readers() -> None:
    small = pruned(network(Covariance), {"attention.q": ("channel", 6)}).attention
    assert (small.q.out_features, small.k.out_features, small.out.in_features) == (4, 8, 4)


def test_what_reads_a_matrix_of_channels_in_a_row_leaves_the_fewer_of_them() -> None:
    small = pruned(network(Pooled), {"attention.first": ("channel", 6)}).attention
    assert (small.first.out_features, small.second.out_features, small.out.in_features) == (4, 4, 16)


Q: Kinds = {"attention.q": ("channel", 6)}
VALUES: Kinds = {"attention.v": ("channel", 8)}
CHANGES: dict[str, Kinds] = {
    "rows and columns": Q | VALUES,
    "sum": Q | VALUES,
    "length": VALUES,
    "layer": VALUES | {"attention.layer": ("channel", 8)},
    "one batch": Q | VALUES,
    "chain": Q | VALUES,
}


@pytest.mark.parametrize("change", CHANGES)
def test_channels_go_whatever_is_done_along_the_other_axis(change: str) -> None:
    small = pruned(network(lambda: States(change)), CHANGES[change]).attention
    queries, layer = 4 if "attention.q" in CHANGES[change] else 6, 6 if "attention.layer" in CHANGES[change] else 8
    assert (small.q.out_features, small.k.out_features, small.v.out_features) == (queries, queries, 6)
    assert small.layer.out_features == layer


def test_a_gate_for_each_row_goes_with_it() -> None:
    small = pruned(network(lambda: States("gate")), Q | VALUES).attention
    assert (small.gate.out_features, small.v.out_features) == (4, 6)


def test_attentions_of_one_class_lose_what_each_of_them_can() -> None:
    expected: Kinds = {"attention.first.q": HEADS, "attention.second.q": QK, "attention.second.v": V}
    small = pruned(network(Several), expected).attention
    assert [(a.q.out_features, a.v.out_features) for a in (small.first, small.second)] == [(8, 8), (9, 9)]


def test_a_layer_that_reads_one_axis_loses_its_channels() -> None:
    small = pruned(network(Rows), {"attention.first": ("channel", 4), "attention.rows": ("channel", 9)}).attention
    assert (small.first.out_features, small.second.out_features, small.rows.in_channels) == (3, 6, 3)


@pytest.mark.parametrize("heads", [3, None])
@pytest.mark.parametrize("form", ["matrix", "einsum", "linear", "convolution"])
def test_macs_of_what_runs_over_channels_along_places_go_with_them(form: str, heads: int | None) -> None:
    count = 4 if heads else 12
    model = network(lambda: Projected(form, heads))
    expected: Kinds = {"attention.q": ("channel", count), "attention.v": ("channel", count)}
    pruned(model, expected)
    couplings = oicsr.find_couplings(model, X)
    plan = PruningPlan.from_kept(couplings, {c.name: range(count // 2) for c in couplings})
    small = oicsr.remove_channels(model, plan)
    described = oicsr.describe(model, couplings, plan=plan, example_inputs=X)
    assert (described.total.macs, described.total.macs_kept) == (oicsr.count_macs(model, X), oicsr.count_macs(small, X))
    left = oicsr.shrink_couplings(couplings, plan)
    every = torch.ones(count, dtype=torch.bool)
    assert oicsr.selection.MacsModel(left, small, X).macs(every) == oicsr.count_macs(small, X)


@pytest.mark.parametrize("form", ["einsum", "matrix"])
def test_macs_of_a_table_of_positions_go_with_the_values(form: str) -> None:
    small = pruned(network(lambda: Lambdas(form)), {"attention.v": ("channel", 6)}).attention
    assert (small.k.out_features, small.v.out_features, small.table.shape) == (4, 4, (5, 5, 4))
