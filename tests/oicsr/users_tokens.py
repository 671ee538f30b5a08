"""Networks that mix tokens or fields, and such with learned tokens; `users_networks` holds the table and says how."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.oicsr.users_networks import CASES, ROWS, WORDS, Build, Case, Forward, Net, built, weight

__all__ = ["CASES"]

TOKENS = torch.randn(3, 5, 6)  # five of them, six wide
NUMBERS = torch.randn(4, 5)


def tokens(couplings: str, inputs: Tensor = TOKENS, warns: str = "", **parts: Build) -> Callable[[Forward], None]:
    """Put a network with a stem `a` and an output `o` into the table, with a function as its forward."""
    layers = {"a": lambda: nn.Linear(6, 8), "o": lambda: nn.Linear(8, 3)} | parts

    def put(run: Forward) -> None:
        CASES[run.__name__] = Case(
            lambda: Net(run, {name: build() for name, build in layers.items()}),
            (inputs,),
            tuple(couplings.split()),
            warns,
        )

    return put


# ----------------------------------------------------------------------------------------------------------------
# layers along tokens: where the features stay, being an output, the channels in between go
# ----------------------------------------------------------------------------------------------------------------


@tokens("m", m=lambda: nn.Linear(5, 12), n=lambda: nn.Linear(12, 5))
def features_mixed_over_tokens(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    return x + net.n(functional.gelu(net.m(x.transpose(1, 2)))).transpose(1, 2)


@tokens("m", a=lambda: nn.Conv1d(6, 8, 1), m=lambda: nn.Conv1d(5, 12, 1), n=lambda: nn.Conv1d(12, 5, 1))
def features_mixed_by_convolutions(net: Any, x: Tensor) -> Tensor:
    x = net.a(x.mT)
    return x.mT + net.n(functional.gelu(net.m(x.mT)))


@tokens("m", m=lambda: weight(12, 5), n=lambda: weight(5, 12))
def features_mixed_by_matrices(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    return x + net.n @ functional.gelu(net.m @ x)


@tokens("m", m=lambda: weight(12, 5), n=lambda: weight(5, 12))
def features_mixed_by_einsum(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    return x + torch.einsum("tm,bmd->btd", net.n, torch.einsum("mt,btd->bmd", net.m, x).relu())


@tokens("a", m=lambda: nn.Linear(5, 12), n=lambda: nn.Linear(12, 5))
def features_that_go_themselves(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    return net.o(x + net.n(functional.gelu(net.m(x.transpose(1, 2)))).transpose(1, 2))


@tokens("c d", WORDS[:, :3], a=lambda: nn.Embedding(20, 4), c=lambda: nn.Conv1d(9, 8, 1), d=lambda: nn.Conv1d(24, 8, 1))
def compressed_interactions(net: Any, x: Tensor) -> Tensor:
    """Those of xDeepFM (Lian et al., KDD 2018)."""
    x = net.a(x)
    y = net.c((x.unsqueeze(2) * x.unsqueeze(1)).flatten(1, 2)).relu()
    y = net.d((x.unsqueeze(2) * y.unsqueeze(1)).flatten(1, 2)).relu()
    return net.o(y.sum(2))


@tokens("m n", NUMBERS, w=lambda: weight(6, 8), m=lambda: nn.Linear(8, 12), n=lambda: nn.Linear(12, 8))
def numbers_as_tokens(net: Any, x: Tensor) -> Tensor:
    """The tokenizer of FT-Transformer (Gorishniy et al., NeurIPS 2021): its first token comes from a column of ones."""
    x = torch.cat([torch.ones(len(x), 1).to(x), x], 1)
    x = net.w * x[:, :, None]
    return net.o((x + net.n(net.m(x).relu()))[:, 0])


# ----------------------------------------------------------------------------------------------------------------
# learned tokens that ask (Perceiver, Q-Former)
# ----------------------------------------------------------------------------------------------------------------

READER = {
    "t": lambda: weight(4, 8),
    "q": lambda: nn.Linear(8, 6),
    "k": lambda: nn.Linear(8, 6),
    "v": lambda: nn.Linear(8, 6),
    "p": lambda: nn.Linear(6, 8),
    "f": lambda: nn.Linear(8, 12),
    "g": lambda: nn.Linear(12, 8),
}


def read(net: Any, x: Tensor) -> Tensor:
    x, asked = net.a(x), net.t.expand(len(x), -1, -1)
    scores = net.q(net.n(asked)) @ net.k(x).mT
    asked = asked + net.p(scores.softmax(-1) @ net.v(x))
    return net.o(asked + net.g(functional.gelu(net.f(asked))))


@tokens("a k v p f", n=lambda: nn.Identity(), **READER)
def tokens_that_ask(net: Any, x: Tensor) -> Tensor:
    return read(net, x)


@tokens("a k v p f", n=lambda: nn.RMSNorm(8, eps=1e-6), **READER)
def tokens_that_ask_under_an_rms_norm(net: Any, x: Tensor) -> Tensor:
    return read(net, x)


@tokens("a k v f", warns="normalises over the channels", n=lambda: nn.LayerNorm(8), **READER)
def tokens_that_ask_under_a_layer_norm(net: Any, x: Tensor) -> Tensor:
    return read(net, x)


class SetAttention(nn.Module):
    """Adds its queries to what comes out, so that the keys make up for the scale (Lee et al., ICML 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.heads = 8, 2
        self.tokens, self.out = weight(1, 4, 6), nn.Linear(8, 3)
        self.q, self.k, self.v, self.o = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 8)

    def by_head(self, x: Tensor) -> Tensor:
        return torch.cat(x.split(self.width // self.heads, 2), 0)

    def forward(self, x: Tensor) -> Tensor:
        asked = self.tokens.repeat(len(x), 1, 1)
        queries, keys, values = self.by_head(self.q(asked)), self.by_head(self.k(x)), self.by_head(self.v(x))
        weights = torch.softmax(queries.bmm(keys.transpose(1, 2)) / math.sqrt(self.width), 2)
        found = torch.cat((queries + weights.bmm(values)).split(len(x), 0), 2)
        return self.out(found + self.o(found).relu())


@built("k", TOKENS)
def set_transformer() -> nn.Module:
    return SetAttention()


# ----------------------------------------------------------------------------------------------------------------
# numbers on modules that are sums of widths; latent attention (DeepSeek-AI, "DeepSeek-V2", 2024)
# ----------------------------------------------------------------------------------------------------------------


@tokens("a b", ROWS, b=lambda: nn.Linear(6, 5), o=lambda: nn.Linear(13, 3), width=lambda: 13)
def a_sum_of_two_widths(net: Any, x: Tensor) -> Tensor:
    return net.o(torch.cat([net.a(x), net.b(x)], 1).relu().view(len(x), net.width))


class LatentAttention(nn.Module):
    """Queries and keys have channels that are rotated, one set for all heads of the keys, and others that are not."""

    def __init__(self, *, written: bool) -> None:
        super().__init__()
        self.written, self.plain, self.rotated, self.rank, self.value = written, 6, 4, 5, 3
        self.both = self.plain + self.rotated
        self.down, self.norm, self.queries = nn.Linear(6, 7), nn.RMSNorm(7, eps=1e-6), nn.Linear(7, 2 * self.both)
        self.reduce, self.rank_norm = nn.Linear(6, self.rank + self.rotated), nn.RMSNorm(self.rank, eps=1e-6)
        self.expand, self.out = nn.Linear(self.rank, 2 * (self.plain + self.value)), nn.Linear(2 * self.value, 3)
        self.register_buffer("cos", torch.randn(5, 4))
        self.register_buffer("sin", torch.randn(5, 4))

    def turn(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * self.cos + torch.cat([-second, first], -1) * self.sin

    def put_together(self, plain: Tensor, rotated: Tensor) -> Tensor:
        rotated = rotated.expand(-1, 2, -1, -1)
        if not self.written:
            return torch.cat([plain, rotated], -1)
        both = plain.new_empty(*plain.shape[:3], self.both)
        both[..., : self.plain] = plain
        both[..., self.plain :] = rotated
        return both

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        queries = self.queries(self.norm(self.down(x))).view(batch, length, -1, self.both).transpose(1, 2)
        plain, rotated = queries.split([self.plain, self.rotated], -1)
        latent, shared = self.reduce(x).split([self.rank, self.rotated], -1)
        pairs = self.expand(self.rank_norm(latent)).view(batch, length, -1, self.plain + self.value).transpose(1, 2)
        keys, values = pairs.split([self.plain, self.value], -1)
        queries = self.put_together(plain, self.turn(rotated))
        keys = self.put_together(keys, self.turn(shared.view(batch, 1, length, self.rotated)))
        weights = (queries @ keys.mT * 0.4).softmax(-1)
        return self.out((weights @ values).transpose(1, 2).reshape(batch, length, -1))


@built("down queries reduce expand", TOKENS, warns="scales groups of channels")
def latent_attention() -> nn.Module:
    return LatentAttention(written=False)


@built("down queries reduce expand", TOKENS, warns="scales groups of channels")
def latent_attention_that_writes_its_keys() -> nn.Module:
    return LatentAttention(written=True)
