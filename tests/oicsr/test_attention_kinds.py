"""Attention in rarer forms: mixed heads, unequal pieces, shared projections, tables; what was emptied goes exactly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import oicsr
from oicsr import Coupling, PruningPlan, UnprunedChannelsWarning
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


# ----------------------------------------------------------------------------------------------------------------
# unequal pieces
# ----------------------------------------------------------------------------------------------------------------


class Parallel(nn.Module):
    """One projection for queries, keys, values and the hidden channels of an MLP beside them, as in ViT-22B."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.num_heads, self.form = 3, form
        self.inp, self.out = nn.Linear(12, 46), nn.Linear(22, 12)
        if form == "list":
            self.sizes = [12, 12, 12, 10]
        elif form == "pair":
            self.sizes = (36, 10)
        else:
            self.attn_dim, self.hidden = 12, 10

    def pieces(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return queries, keys, values and hidden channels."""
        if self.form == "list":
            return x.split(self.sizes, -1)
        if self.form == "numbers":
            return torch.split(x, [self.attn_dim, self.attn_dim, self.attn_dim, self.hidden], -1)
        if self.form == "slices":
            fused = 3 * self.attn_dim
            return *x[..., :fused].chunk(3, -1), x[..., fused:]
        fused, hidden = x.split(self.sizes if self.form == "pair" else [3 * self.attn_dim, self.hidden], -1)
        return *fused.chunk(3, -1), hidden

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, hidden = self.pieces(self.inp(x))
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (q, k, v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.out(torch.cat([mixed, nn.functional.gelu(hidden)], -1))


@pytest.mark.parametrize("form", ["list", "numbers", "slices", "pair", "times"])
def test_a_projection_of_attention_and_mlp_goes_piece_by_piece(form: str) -> None:
    model = network(lambda: Parallel(form))
    hidden: Kinds = {"attention.inp[36:46]": ("channel", 10)}
    values: Kinds = {"attention.inp[24:36]": ("channel", 4)} if form == "list" else {}  # one number for all otherwise
    small = pruned(model, {"attention.inp": ("channel", 4)} | values | hidden).attention
    assert small.inp.weight.shape[0] == 3 * small.num_heads * 3 + 7 and small.num_heads == 3
    small = pruned(model, {"attention.inp": ("head", 3)} | hidden, "head").attention
    assert small.inp.weight.shape[0] == 3 * 8 + 7 and small.num_heads == 2
    widths = {"list": [8, 8, 8, 7], "pair": (24, 7)}
    if form in widths:
        assert small.sizes == widths[form]
    else:
        assert (small.attn_dim, small.hidden) == (8, 10 if form == "slices" else 7)  # nothing reads it there


class MultiQuery(nn.Module):
    """Several heads of queries, one of keys and one of values, from one projection."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.n_heads, self.head_dim, self.form = 3, 4, form
        if form == "list":
            self.sizes = [12, 4, 4]
        elif form == "nested":
            self.embed_dim, self.kv_dim = 12, 4
        self.qkv, self.out = nn.Linear(12, 20), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        if self.form == "nested":
            q, kv = self.qkv(x).split((self.embed_dim, 2 * self.kv_dim), -1)
            k, v = kv.split((self.kv_dim, self.kv_dim), -1)
        else:
            sizes = self.sizes if self.form == "list" else [self.n_heads * self.head_dim, self.head_dim, self.head_dim]
            q, k, v = self.qkv(x).split(sizes, -1)
        q = q.view(batch, tokens, self.n_heads, self.head_dim).transpose(1, 2)
        k, v = (part.view(batch, tokens, 1, self.head_dim).transpose(1, 2) for part in (k, v))
        mixed = (q @ k.mT * self.head_dim**-0.5).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, self.n_heads * self.head_dim))


@pytest.mark.parametrize("form", ["list", "numbers", "nested"])
def test_one_head_of_keys_and_values_beside_several_of_queries(form: str) -> None:
    model = network(lambda: MultiQuery(form))
    small = pruned(model, {"attention.qkv": ("channel", 4)}).attention
    assert (small.n_heads, small.head_dim, len(small.qkv.weight)) == (3, 3, 15)
    small = pruned(model, {"attention.qkv": ("head", 3)}, "head").attention
    assert (small.n_heads, small.head_dim, len(small.qkv.weight)) == (2, 4, 16)


class KeyDim(nn.Module):
    """Keys thinner than values, cut head by head, as in LeViT and EfficientFormer."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.key_dim, self.val_dim, self.val_attn_dim = 3, 3, 5, 15
        self.scale = 3**-0.5
        self.qkv, self.proj = nn.Linear(12, 33), nn.Linear(15, 12)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, self.num_heads, -1).transpose(1, 2)
        q, k, v = qkv.split([self.key_dim, self.key_dim, self.val_dim], dim=3)
        mixed = (q @ k.mT * self.scale).softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, self.val_attn_dim))


def test_keys_and_values_of_other_widths_go_by_themselves() -> None:
    model = network(KeyDim)
    small = pruned(model, {"attention.qkv": ("channel", 3), "attention.qkv[6:33]": ("channel", 5)}).attention
    assert (small.num_heads, small.key_dim, small.val_dim, small.val_attn_dim) == (3, 2, 4, 12)
    small = pruned(model, {"attention.qkv": ("head", 3)}, "head").attention
    assert (small.num_heads, small.key_dim, small.val_dim, small.val_attn_dim) == (2, 3, 5, 10)


class Separable(nn.Module):
    """One query for all channels of keys and values, in the manner of MobileViT v2: no product of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.dim = 10
        self.qkv, self.out = nn.Linear(12, 21), nn.Linear(10, 12)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).split([1, self.dim, self.dim], -1)
        return self.out((k * q.softmax(1)).sum(1, keepdim=True) * v.relu())


def test_a_piece_of_one_channel_stays_and_the_others_go() -> None:
    small = pruned(network(Separable), {"attention.qkv": ("channel", 10)}).attention
    assert (small.dim, len(small.qkv.weight)) == (7, 15)


class Reduced(nn.Module):
    """Keys and values of fewer tokens, from one projection behind a strided convolution, as in PVT."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 3
        self.reduce, self.q, self.kv = nn.Conv1d(12, 12, 2, 2), nn.Linear(12, 12), nn.Linear(12, 24)
        self.proj = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q = self.q(x).reshape(batch, tokens, self.num_heads, -1).transpose(1, 2)
        kv = self.kv(self.reduce(x.mT).mT).reshape(batch, -1, 2, self.num_heads, q.shape[-1])
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, -1))


def test_keys_and_values_of_fewer_tokens() -> None:
    model = network(Reduced)
    inside: Kinds = {"attention.reduce": ("channel", 12)}
    pruned(model, {"attention.q": ("channel", 4)} | inside)
    assert pruned(model, {"attention.q": ("head", 3)} | inside, "head").attention.num_heads == 2


class Literal(nn.Module):
    """Cuts at a place that is a number in the code, where the module has a number that happens to be the same."""

    def __init__(self) -> None:
        super().__init__()
        self.places = 10
        self.inp, self.out = nn.Linear(12, 22), nn.Linear(22, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        return self.out(torch.cat([x[..., 10:].sin(), x[..., :10]], -1))


def test_channels_in_front_of_a_number_in_the_code_stay() -> None:
    model = network(Literal)
    with pytest.warns(UnprunedChannelsWarning, match="'attention.inp' cannot lose channels: an output changes"):
        couplings = oicsr.find_couplings(model, X)
    assert kinds(couplings) == {"attention.inp[10:22]": ("channel", 12)}  # those behind it
    small, _ = check_exact(model, (X,), couplings, drop_third(couplings))
    assert (small.attention.places, len(small.attention.inp.weight)) == (10, 18)


class Stretched(nn.Module):
    """Cuts by numbers in its code that none of its attributes explains."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(12, 22), nn.Linear(22, 12)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.inp(x).split([13, 9], -1)
        return self.out(torch.cat([second, first], -1))


def test_unequal_pieces_that_no_number_gives_stay() -> None:
    with pytest.warns(UnprunedChannelsWarning, match="cuts the channel axis into unequal pieces"):
        assert not oicsr.find_couplings(network(Stretched), X)


class Gated(nn.Module):
    """Gate, passed and convolved channels from one layer, each width a number: MambaOut without a list."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.passed, self.convolved = 10, 6, 4
        self.inp, self.out = nn.Linear(12, 20), nn.Linear(10, 12)
        self.conv = nn.Conv1d(4, 4, 3, padding=1, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        gate, passed, convolved = self.inp(x).split([self.hidden, self.passed, self.convolved], -1)
        mixed = torch.cat([passed, self.conv(convolved.mT).mT], -1)
        return self.out(gate.relu() * mixed)


def test_a_number_that_is_the_sum_of_two_others_goes_down_with_either() -> None:
    model = network(Gated)
    couplings = oicsr.find_couplings(model, X)
    assert kinds(couplings) == {"attention.inp": ("channel", 6), "attention.inp[6:20]": ("channel", 4)}
    small, _ = check_exact(model, (X,), couplings, drop_third(couplings))
    assert (small.attention.hidden, small.attention.passed, small.attention.convolved) == (7, 4, 3)


# ----------------------------------------------------------------------------------------------------------------
# sums with a product
# ----------------------------------------------------------------------------------------------------------------


class Alibi(nn.Module):
    """Heads in the batch, and scores that are added to slopes of positions in one call, as in Bloom and Falcon."""

    def __init__(self, form: str, fused: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.form = 3, 4, form
        self.inv_norm_factor, self.beta = 4**-0.5, 0.7
        self.qkv = nn.Linear(12, 36) if fused else None
        self.q, self.k, self.v = (None if fused else nn.Linear(12, 12) for _ in range(3))
        self.out = nn.Linear(12, 12)
        if form != "empty":
            self.register_buffer("slopes", 0.5 ** torch.arange(1, 4))

    def scores(self, q: Tensor, k: Tensor, batch: int) -> Tensor:
        """Return the scores `(batch * heads, tokens, tokens)` of queries and of keys that are transposed."""
        tokens = q.shape[1]
        if self.form == "empty":
            start = torch.empty(batch * self.num_heads, tokens, tokens, dtype=q.dtype)
            return torch.baddbmm(start, q, k, beta=0, alpha=self.inv_norm_factor)
        bias = self.slopes[:, None, None] * torch.arange(tokens, dtype=q.dtype)  # (heads, 1, tokens)
        bias = bias[None].expand(batch, -1, -1, -1).reshape(batch * self.num_heads, 1, tokens)
        if self.form == "computed":
            return torch.baddbmm(bias, q, k, alpha=1 / q.shape[-1] ** 0.5)
        return bias.baddbmm(batch1=q, batch2=k, beta=self.beta, alpha=self.inv_norm_factor)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        if self.qkv is not None:
            q, k, v = self.qkv(x).view(batch, tokens, self.num_heads, 3, self.head_dim).unbind(3)
        else:
            q, k, v = (part(x).view(batch, tokens, self.num_heads, self.head_dim) for part in (self.q, self.k, self.v))
        q, v = (part.transpose(1, 2).reshape(batch * self.num_heads, tokens, self.head_dim) for part in (q, v))
        k = k.permute(0, 2, 3, 1).reshape(batch * self.num_heads, self.head_dim, tokens)
        shares = self.scores(q, k, batch).view(batch, self.num_heads, tokens, tokens).softmax(-1)
        mixed = torch.bmm(shares.view(batch * self.num_heads, tokens, tokens), v)
        mixed = mixed.view(batch, self.num_heads, tokens, self.head_dim).transpose(1, 2)
        return self.out(mixed.reshape(batch, tokens, self.num_heads * self.head_dim))


@pytest.mark.parametrize("fused", [False, True], ids=["separate", "fused"])
@pytest.mark.parametrize("form", ["method", "computed", "empty"])
def test_scores_that_are_added_in_one_call(form: str, fused: bool) -> None:
    first = "attention.qkv" if fused else "attention.q"
    model = network(lambda: Alibi(form, fused))
    couplings = found(model, X)
    rescaled = {r.parameter.rpartition(".")[0] for c in couplings for r in c.rescaled}
    assert rescaled == ({first} if form == "computed" else set())
    small = pruned(model, {first: ("channel", 4)}).attention
    assert (small.num_heads, small.head_dim, small.inv_norm_factor) == (3, 3, 0.5)
    small = pruned(model, {first: ("head", 3)}, "head").attention
    assert (small.num_heads, small.head_dim) == (2, 4)
    assert form == "empty" or len(small.slopes) == 2


class Added(nn.Module):
    """Mixed values that are added to other channels in one call: by batches, summed over them, or one by one."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.q, self.k, self.v, self.rest = (nn.Linear(12, 8) for _ in range(4))
        self.out = nn.Linear(8, 12)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, rest = self.q(x), self.k(x), self.v(x), self.rest(x)
        if self.form == "addmm":
            shares = [torch.addmm(torch.ones(5, 5, dtype=x.dtype), q[i], k[i].T, alpha=0.3).softmax(-1) for i in (0, 1)]
            return self.out(torch.stack([torch.addmm(rest[i], shares[i], v[i]) for i in (0, 1)]))
        shares = (q @ k.mT * 0.3).softmax(-1)
        if self.form == "baddbmm":
            return self.out(torch.baddbmm(rest, shares, v))
        return self.out(torch.addbmm(rest[0], shares, v, beta=0.5)[None].expand(2, -1, -1))


@pytest.mark.parametrize("form", ["addmm", "baddbmm", "addbmm"])
def test_values_that_are_added_in_one_call_go_with_what_they_are_added_to(form: str) -> None:
    model = network(lambda: Added(form))
    keys: Kinds = {"attention.q": ("channel", 8)}
    assert kinds(found(model, X)) == keys  # a sum of two activations is a residual stream
    assert {"attention.v": ("channel", 8)}.items() <= kinds(found(model, X, scope="all")).items()
    small = pruned(model, keys | {"attention.v": ("channel", 8)}, scope="all").attention
    assert len(small.q.weight) == len(small.v.weight) == len(small.rest.weight) == 6


# ----------------------------------------------------------------------------------------------------------------
# projections that are used twice
# ----------------------------------------------------------------------------------------------------------------


class Shared(nn.Module):
    """One projection for two or all three of queries, keys and values, or called for queries and again for keys."""

    def __init__(self, same: str, form: str) -> None:
        super().__init__()
        self.num_heads, self.same, self.form, self.scale = 3, same, form, 0.5
        self.one, self.out = nn.Linear(12, 12), nn.Linear(12, 12)
        self.other = nn.Linear(12, 12) if same != "qkv" else None

    def forward(self, x: Tensor) -> Tensor:
        one = self.heads(self.one(x))
        other = one if self.other is None else self.heads(self.other(x))
        again = self.heads(self.one(x.flip(1))) if self.same == "twice" else one
        q, k, v = {"kv": (other, one, one), "qv": (one, other, one)}.get(self.same, (one, again, other))
        if self.form == "kernel":
            x = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            scale = self.scale if self.form == "stored" else q.shape[-1] ** -0.5
            x = (q @ k.mT * scale).softmax(-1) @ v
        return self.out(x.transpose(1, 2).flatten(2))

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


@pytest.mark.parametrize("form", ["kernel", "computed", "stored"])
@pytest.mark.parametrize("same", ["qk", "kv", "qv", "twice"])
def test_projections_that_are_shared_lose_channels_and_heads(same: str, form: str) -> None:
    model = network(lambda: Shared(same, form))
    by_itself: Kinds = {"attention.other": ("channel", 4)} if same in ("qk", "twice") else {}
    pruned(model, {"attention.one": ("channel", 4)} | by_itself)
    powers = {r.parameter: r.power for c in found(model, X) for r in c.rescaled}
    rows = {"qk": "one", "twice": "one", "kv": "other", "qv": "other"}[same]  # those that values are not made of
    power = 0.25 if by_itself else 0.5  # of the queries and of the keys, or of one of them
    wanted = {f"attention.{rows}.{part}": power for part in ("weight", "bias")} if form != "stored" else {}
    assert powers == wanted
    assert pruned(model, {"attention.one": ("head", 3)}, "head").attention.num_heads == 2


@pytest.mark.parametrize("form", ["computed", "stored"])
def test_one_projection_for_all_loses_channels_unless_the_scale_follows_their_number(form: str) -> None:
    model = network(lambda: Shared("qkv", form))
    left = ("channel", 4) if form == "stored" else ("head", 3)
    assert pruned(model, {"attention.one": left}).attention.num_heads == (3 if form == "stored" else 2)
    assert pruned(model, {"attention.one": ("head", 3)}, "head").attention.num_heads == 2


# ----------------------------------------------------------------------------------------------------------------
# tables and masks in buffers
# ----------------------------------------------------------------------------------------------------------------


class Tabled(nn.Module):
    """Scores with a table, slopes or a mask that is a buffer, with or without an axis of heads, larger than need be."""

    def __init__(self, table: str, kernel: bool) -> None:
        super().__init__()
        self.num_heads, self.kernel = 3, kernel
        self.q, self.k, self.v, self.out = (nn.Linear(12, 12) for _ in range(4))
        shapes = {"slopes": (3, 1, 1), "table": (3, 5, 5), "larger": (1, 3, 8, 8), "causal": (1, 1, 8, 8)}
        self.register_buffer("table", torch.rand(shapes[table]))

    def bias(self, tokens: int) -> Tensor:
        """Return what is added to the scores."""
        if self.table.shape[-1] == 1:
            return self.table * torch.arange(tokens, dtype=self.table.dtype)
        return self.table[..., :tokens, :tokens]

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        if self.kernel:
            x = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=self.bias(x.shape[1]), scale=0.5)
        else:
            x = (q @ k.mT * 0.5 + self.bias(x.shape[1])).softmax(-1) @ v
        return self.out(x.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("kernel", [False, True], ids=["by hand", "kernel"])
@pytest.mark.parametrize("table", ["slopes", "table", "larger", "causal"])
def test_tables_in_buffers_follow_heads_and_stand_in_no_channels_way(table: str, kernel: bool) -> None:
    model = network(lambda: Tabled(table, kernel))
    small = pruned(model, {"attention.q": ("channel", 4), "attention.v": ("channel", 4)})
    assert small.attention.table.shape == model.attention.table.shape
    small = pruned(model, {"attention.q": ("head", 3)}, "head").attention
    heads = {"slopes": 0, "table": 0, "larger": 1}.get(table)
    wanted = [2 if axis == heads else size for axis, size in enumerate(model.attention.table.shape)]
    assert list(small.table.shape) == wanted


class Weighted(nn.Module):
    """Keys and values by factors and positions in buffers, an entry for each of their channels, or a mask of heads."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 3
        self.q, self.k, self.v, self.out = (nn.Linear(12, 12) for _ in range(4))
        self.register_buffer("factors", torch.rand(12))
        self.register_buffer("positions", torch.randn(5, 12))
        self.register_buffer("weights", torch.rand(3, 1, 4))
        self.register_buffer("allowed", torch.tensor([[True], [True], [False]])[..., None])

    def forward(self, x: Tensor) -> Tensor:
        k = self.k(x) * self.factors + self.positions
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (self.q(x), k, self.v(x)))
        shares = (q @ k.mT * 0.5).masked_fill(~self.allowed, -1e4).softmax(-1)
        return self.out((shares @ (v * self.weights)).transpose(1, 2).flatten(2))


def test_buffers_with_an_axis_of_channels_follow_channels_and_heads() -> None:
    model = network(Weighted)
    small = pruned(model, {"attention.k": ("channel", 4), "attention.v": ("channel", 4)}).attention
    assert [len(small.factors), *small.positions.shape, *small.weights.shape] == [9, 5, 9, 3, 1, 3]
    small = pruned(model, {"attention.k": ("head", 3)}, "head").attention
    assert [len(small.factors), *small.positions.shape, *small.weights.shape] == [8, 5, 8, 2, 1, 4]
    assert small.allowed.shape == (2, 1, 1)


class Decorated(nn.Module):
    """Slopes that are a tensor of the code, not a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.slopes = 3, 0.5 ** torch.arange(1, 4)
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.slopes[:, None, None] * torch.arange(x.shape[1], dtype=x.dtype)
        return self.out(((q @ k.mT * 0.5 + bias).softmax(-1) @ v).transpose(1, 2).flatten(2))


def test_slopes_that_are_no_buffer_keep_heads_by_name_and_let_channels_go() -> None:
    model = network(Decorated)
    pruned(model, {"attention.qkv": ("channel", 4)})
    with pytest.warns(UnprunedChannelsWarning, match=r"combined with 'attention\.slopes', which is no buffer"):
        assert not oicsr.find_couplings(model, X, granularity="head")


# ----------------------------------------------------------------------------------------------------------------
# what stays is said, and code that leaves a width open
# ----------------------------------------------------------------------------------------------------------------


class SetBlock(nn.Module):
    """Mixed values that are added to the queries, and no projection behind them, as in the set transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.dim, self.num_heads = 12, 3
        self.q, self.k, self.v, self.o = (nn.Linear(12, 12) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        size = self.dim // self.num_heads
        q, k, v = (torch.cat(part(x).split(size, 2), 0) for part in (self.q, self.k, self.v))
        mixed = q + (q.bmm(k.mT) / self.dim**0.5).softmax(2).bmm(v)
        x = torch.cat(mixed.split(len(x), 0), 2)
        return x + self.o(x).relu()


class Unprojected(nn.Module):
    """Mixed values that go straight into the residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 3
        self.q, self.k, self.v = (nn.Linear(12, 12) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Additive(nn.Module):
    """Scores from a sum of queries and keys (Bahdanau), which mix values by a product or by factors."""

    def __init__(self, product: bool) -> None:
        super().__init__()
        self.product = product
        self.q, self.k, self.score = nn.Linear(12, 8), nn.Linear(12, 8), nn.Linear(8, 1)
        self.v, self.out = nn.Linear(12, 10), nn.Linear(10, 12)

    def forward(self, x: Tensor) -> Tensor:
        if not self.product:
            shares = self.score((self.q(x) + self.k(x[:, :1])).tanh()).softmax(1)
            return self.out((shares * self.v(x)).sum(1, keepdim=True)).expand_as(x)
        shares = self.score((self.q(x)[:, :, None] + self.k(x)[:, None]).tanh()).squeeze(-1).softmax(-1)
        return self.out(shares @ self.v(x))


@pytest.mark.parametrize(
    ("build", "said", "left"),
    [
        (SetBlock, r"\(SetBlock\) keeps channels: 'attention\.k' is joined to .*'attention\.v' is joined to", {}),
        (Unprojected, r"\(Unprojected\) keeps channels: 'attention\.v' is joined to", {"attention.q": ("channel", 4)}),
        (
            lambda: Additive(product=True),
            r"\(Additive\) keeps channels: 'attention\.k' is part of a residual stream.*'attention\.q' is part of",
            {"attention.v": ("channel", 10)},
        ),
        (
            lambda: Additive(product=False),
            r"keeps channels: 'attention\.k' is part of",
            {"attention.v": ("channel", 10)},
        ),
    ],
    ids=["set", "no projection", "additive", "additive by factors"],
)
def test_projections_of_an_attention_that_stay_are_named(
    build: Callable[[], nn.Module], said: str, left: Kinds
) -> None:
    model = network(build)
    with pytest.warns(UnprunedChannelsWarning, match=rf"the attention in 'attention' .*{said}"):
        couplings = oicsr.find_couplings(model, X)
    assert kinds(couplings) == left


@pytest.mark.parametrize("product", [False, True])
def test_additive_attention_goes_with_the_residual_streams(product: bool) -> None:
    model = network(lambda: Additive(product))
    small = pruned(model, {"attention.q": ("channel", 8), "attention.v": ("channel", 10)}, scope="all").attention
    assert len(small.q.weight) == len(small.k.weight) == small.score.weight.shape[1] == 6


@pytest.mark.parametrize(
    "build", [lambda: Shared("qk", "stored"), lambda: Alibi("method", fused=True), lambda: Parallel("list")]
)
def test_nothing_is_said_of_an_attention_all_of_which_goes(build: Callable[[], nn.Module]) -> None:
    trace = oicsr.trace_couplings(network(build), X)
    assert trace.couplings and not trace.unruled


class Open(nn.Module):
    """Attention in the manner of BEiT and EVA, with biases of their own, that leaves its width open."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 3, 4
        self.scale = self.head_dim**-0.5
        self.qkv, self.proj = nn.Linear(12, 36, bias=False), nn.Linear(12, 12)
        self.q_bias, self.v_bias = nn.Parameter(torch.randn(12)), nn.Parameter(torch.randn(12))
        self.register_buffer("k_bias", torch.zeros(12), persistent=False)
        self.table = nn.Parameter(torch.randn(9, 3))
        self.register_buffer("index", torch.arange(5)[:, None] - torch.arange(5)[None] + 4)
        self.norm = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        B, N, _ = x.shape
        bias = torch.cat([self.q_bias, self.k_bias, self.v_bias])
        qkv = nn.functional.linear(x, self.qkv.weight, bias).reshape(B, N, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        table = self.table[self.index.view(-1)].view(N, N, -1).permute(2, 0, 1).unsqueeze(0)
        x = nn.functional.scaled_dot_product_attention(q * self.scale, k, v, attn_mask=table, scale=1.0)
        return self.proj(self.norm(x.transpose(1, 2).reshape(B, N, -1)))


def test_code_of_beit_and_eva_that_leaves_the_width_open_loses_channels_and_heads() -> None:
    model = network(Open)
    inside: Kinds = {"attention.norm": ("channel", 12)}
    small = pruned(model, {"attention.qkv": ("channel", 4)} | inside).attention
    assert (len(small.q_bias), len(small.k_bias), small.scale) == (9, 9, 0.5)
    small = pruned(model, {"attention.qkv": ("head", 3)} | inside, "head").attention
    assert (len(small.q_bias), len(small.v_bias), small.num_heads, small.table.shape[1]) == (8, 8, 2, 2)
