"""More networks that users bring: numbers of groups that the code computes, and sums over channels.

They are in the table of `tests.oicsr.users_networks`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tests.oicsr.users_networks import CASES, conv, images, weight

__all__ = ["CASES"]

# ----------------------------------------------------------------------------------------------------------------
# numbers of groups
# ----------------------------------------------------------------------------------------------------------------


@images("a.0 b.0")
def groups_of_a_quarter(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.o(net.b(functional.group_norm(y, y.shape[1] // 4)).relu())


@images("a.0 b.0", s=lambda: weight(16), t=lambda: weight(16))
def at_most_32_groups(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.o(net.b(torch.group_norm(y, min(32, y.shape[1] // 2), net.s, net.t)))


@images("a.0 b.0")
def groups_of_one_channel(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.o(net.b(functional.group_norm(y, y.size(1))))


@images("b.0", warns="number of groups that is fixed")
def four_groups(net: Any, x: Tensor) -> Tensor:
    return net.o(net.b(functional.group_norm(net.a(x), 4)))


@images("b.0", warns="number of groups that is fixed", a=lambda: conv(3, 128), b=lambda: conv(128, 8))
def groups_that_are_right_for_most_widths(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.o(net.b(functional.group_norm(y, 32 if y.shape[1] % 32 == 0 else y.shape[1] // 4)))


@images("b.0", warns="could only go all at once")
def one_group(net: Any, x: Tensor) -> Tensor:
    return net.o(net.b(functional.group_norm(net.a(x), 1)))


@images("a.0 b.0")
def groups_by_hand(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    b, c, h, w = y.shape
    z = y.view(b, c // 4, 4, h, w)
    z = (z - z.mean((2, 3, 4), keepdim=True)) / (z.var((2, 3, 4), keepdim=True) + 1e-5).sqrt()
    return net.o(net.b(z.view_as(y)))
