"""Networks for sequences, graphs and reinforcement learning; `users_networks` holds the table and says how."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.oicsr.users_networks import CASES, WORDS, built, rows

__all__ = ["CASES"]

MASK = nn.Transformer.generate_square_subsequent_mask


# ----------------------------------------------------------------------------------------------------------------
# what PyTorch's own modules ask of values
# ----------------------------------------------------------------------------------------------------------------


class Causal(nn.Module):
    """PyTorch's own transformer, with a causal mask that the forward makes."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.body = nn.Transformer(8, 2, 1, 1, 24, dropout=0.0, batch_first=True)
        self.out = nn.Linear(8, 5)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = MASK(target.shape[1]).to(self.out.weight)
        return self.out(self.body(self.words(source), self.words(target), tgt_mask=mask))


@built("body.encoder.layers.0.linear1 body.decoder.layers.0.linear1", WORDS, WORDS[:, :5], warns="layer_norm")
def a_transformer_with_a_causal_mask() -> nn.Module:
    return Causal()


@rows("a b", s=lambda: nn.Linear(8, 3))
def a_policy_with_a_distribution(net: Any, x: Tensor) -> Any:
    hidden = net.b(net.a(x).relu()).relu()
    policy = torch.distributions.Normal(net.o(hidden), functional.softplus(net.s(hidden)) + 0.1)
    return policy.mean, policy.log_prob(x[:, :3]), policy.entropy()
