"""Gates and masks of one channel that code spreads over all channels before it multiplies by them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.oicsr.users_networks import CASES, images

__all__ = ["CASES"]

MASKS = torch.rand(3, 12, 12)


@images("a.0 b.0", g=lambda: nn.Conv2d(16, 1, 1))
def a_gate_that_is_expanded(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    return net.o(net.b(x * net.g(x).sigmoid().expand(-1, x.shape[1], -1, -1)))


@images("a.0 b.0", g=lambda: nn.Conv2d(16, 1, 1))
def a_gate_that_is_expanded_before_its_sigmoid(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    return net.o(net.b(x * (1 + net.g(x).expand_as(x)).sigmoid()))


@images("a.0 b.0", g=lambda: nn.Conv2d(16, 1, 1))
def a_gate_that_is_repeated(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    return net.o(net.b(x * net.g(x).sigmoid().repeat(1, x.size(1), 1, 1)))


@images("a.0 b.0", g=lambda: nn.Conv2d(16, 1, 1))
def a_gate_that_is_put_behind_itself(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    return net.o(net.b(x * torch.cat([net.g(x).sigmoid()] * x.shape[1], 1)))


@images("b.0", g=lambda: nn.Conv2d(16, 1, 1), warns="its width is a number in the model's code")
def a_gate_of_a_literal_width(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    return net.o(net.b(x * net.g(x).sigmoid().expand(-1, 16, -1, -1)))


@images("a.0 b.0", MASKS)
def a_mask_that_is_expanded(net: Any, x: Tensor, mask: Tensor) -> Tensor:
    x = net.a(x)
    return net.o(net.b(x * mask.unsqueeze(1).expand(x.shape)))


@images("a.0 b.0", MASKS)
def a_mask_that_is_compared_when_it_is_wide(net: Any, x: Tensor, mask: Tensor) -> Tensor:
    x = net.a(x)
    x = x.masked_fill(mask[:, None].expand_as(x) > 0.5, 0.0)
    return net.o(net.b(torch.where((mask > 0.2).unsqueeze(1).repeat(1, x.shape[1], 1, 1), x, 0.0)))
