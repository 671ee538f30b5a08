"""More networks that users bring: slices with a step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.oicsr.users_networks import CASES, conv, images, rows, tail

__all__ = ["CASES"]

# ----------------------------------------------------------------------------------------------------------------
# slices with a step
# ----------------------------------------------------------------------------------------------------------------


@images("a.0 b.0", a=lambda: conv(3, 18), b=lambda: conv(6, 8), o=lambda: tail(14))
def every_third_channel(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.o(torch.cat([net.b(y[:, 2::3]), y[:, ::3]], 1))


@images("b.0", a=lambda: conv(3, 15), warns="cuts the channel axis into unequal pieces", b=lambda: conv(8, 8))
def every_other_one_of_an_odd_number(net: Any, x: Tensor) -> Tensor:
    return net.o(net.b(net.a(x)[:, ::2]))


@rows("a b")
def pairs_that_are_turned(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.o(net.b(y + torch.stack((-y[:, 1::2], y[:, ::2]), -1).flatten(1)).relu())


@images("a.0 c.0", a=lambda: conv(3, 8), b=lambda: conv(3, 8), c=lambda: conv(16, 8))
def interleaved_in_zeros(net: Any, x: Tensor) -> Tensor:
    a, b = net.a(x), net.b(x)
    y = torch.zeros(len(x), 2 * a.shape[1], *a.shape[2:]).to(x)
    y[:, ::2], y[:, 1::2] = a, b
    return net.o(net.c(y))
