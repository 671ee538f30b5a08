"""More networks that users bring: kernels that are put together in the forward, and kernels of numbers for masks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.oicsr.users_networks import CASES, IMAGES, Net, built, conv, images, tail, weight

__all__ = ["CASES"]

MASKS = (IMAGES[:, :1] > 0).float()

# ----------------------------------------------------------------------------------------------------------------
# kernels that are put together in place
# ----------------------------------------------------------------------------------------------------------------


def _crossed(run: Any) -> nn.Module:
    parts = {"square": weight(8, 12, 3, 3), "row": weight(8, 12, 1, 3), "column": weight(8, 12, 3, 1)}
    return Net(run, {"a": conv(3, 12), **parts, "shift": weight(8), "o": tail(8)})


@built("a.0 square", IMAGES)
def a_cross_that_is_added_to_a_copy() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        kernel = net.square.clone()
        kernel[:, :, 1:2] += net.row
        kernel[..., 1:2] += net.column
        return net.o(functional.conv2d(net.a(x), kernel, net.shift, padding=1).relu())

    return _crossed(run)


@built("a.0 square", IMAGES)
def a_cross_that_is_written_into_zeros() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        kernel = torch.zeros_like(net.square)
        kernel[:, :, 1:2] = net.row
        kernel[:, :, :, 1].add_(net.column[..., 0])
        return net.o(functional.conv2d(net.a(x), net.square + kernel, net.shift, padding=1).relu())

    return _crossed(run)


@images("a.0 w", w=lambda: weight(8, 16, 3, 3), p=lambda: weight(8, 16))
def a_point_in_the_middle_of_a_kernel(net: Any, x: Tensor) -> Tensor:
    kernel = net.w * 1.0
    kernel[:, :, 1, 1] += net.p
    kernel[:, :, ::2, 0].mul_(0.5)
    return net.o(functional.conv2d(net.a(x), kernel).relu())


# ----------------------------------------------------------------------------------------------------------------
# partial convolutions: masks go through kernels of ones
# ----------------------------------------------------------------------------------------------------------------


def _masked(net: Any, x: Tensor, mask: Tensor, ones: Tensor) -> Tensor:
    counts = functional.conv2d(mask, ones, padding=1)
    seen = counts.clamp(0, 1)
    x = net.a[2](net.a[1](net.a[0](x * mask) * (9 / (counts + 1e-8)) * seen))
    return net.o(net.b(x * seen))


@images("a.0 b.0", MASKS)
def ones_that_the_code_makes(net: Any, x: Tensor, mask: Tensor) -> Tensor:
    return _masked(net, x, mask, torch.ones(1, 1, 3, 3).to(x))


@built("a.0 b.0", IMAGES, MASKS)
def ones_that_are_no_buffer() -> nn.Module:
    net = Net(lambda net, x, mask: _masked(net, x, mask, net.ones.to(x)), {"a": conv(3, 16), "b": conv(16, 8)})
    net.o, net.__dict__["ones"] = tail(8), torch.ones(1, 1, 3, 3)
    return net


class Partial(nn.Conv2d):
    """A convolution that counts what it sees, by a kernel that it keeps beside its own."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__(before, after, 3, padding=1)
        self.register_buffer("ones", torch.ones(1, 1, 3, 3))

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        counts = functional.conv2d(mask, self.ones, padding=1)
        shift, seen = self.bias.view(1, -1, 1, 1), counts.clamp(0, 1)
        return ((super().forward(x * mask) - shift) * 9 / (counts + 1e-8) + shift) * seen, seen


@built("p q", IMAGES, MASKS)
def ones_that_a_layer_keeps() -> nn.Module:
    def run(net: Any, x: Tensor, mask: Tensor) -> Tensor:
        x, mask = net.p(x, mask)
        return net.o(net.q(x.relu(), mask)[0].relu())

    return Net(run, {"p": Partial(3, 16), "q": Partial(16, 8), "o": tail(8)})


@images("b.0", warns="has a weight of numbers that the code makes, whose size cannot follow channels")
def a_blur_of_a_literal_width(net: Any, x: Tensor) -> Tensor:
    return net.o(net.b(functional.conv2d(net.a(x), torch.full((16, 1, 3, 3), 1 / 9).to(x), groups=16)))
