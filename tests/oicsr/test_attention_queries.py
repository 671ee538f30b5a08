"""Queries that are picked, cut or reshaped like others before the scores are computed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.oicsr.test_attention_kinds import network, pruned


class SomeQueries(nn.Module):
    """Queries of some tokens, in an order that a buffer gives; the scale is computed from the width."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.q, self.k, self.v, self.proj = (nn.Linear(12, 12) for _ in range(4))
        self.register_buffer("order", torch.tensor([4, 0, 2]))

    def chosen(self, q: Tensor, k: Tensor) -> Tensor:
        if self.form == "selected":
            return q.index_select(1, self.order)
        if self.form == "computed":
            return q.index_select(1, self.order.flip(0) + 0)
        if self.form == "cut":
            return torch.tensor_split(q, [2], 1)[1]
        return q.mT.swapdims(1, 2).view_as(k).expand_as(k)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        q, k, v = (part.unflatten(-1, (3, -1)).transpose(1, 2) for part in (self.chosen(q, k), k, v))
        mixed = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v
        mixed = mixed.transpose(1, 2).flatten(2)
        return self.proj(mixed.mean(1, keepdim=True)) + x


@pytest.mark.parametrize("form", ["selected", "computed", "cut", "alike"])
def test_queries_of_some_tokens(form: str) -> None:
    pruned(network(lambda: SomeQueries(form)), {"attention.q": ("channel", 4), "attention.v": ("channel", 4)})
