"""Gates and masks of one channel that code spreads over all channels, and convolutions along other axes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.oicsr.users_networks import CASES, conv, images, tail, weight

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


@images("a.0 b.0", m=lambda: nn.Conv2d(16, 32, 1))
def a_mask_for_each_speaker(net: Any, x: Tensor) -> list[Tensor]:
    x = net.a(x)
    masks = net.m(x).relu().unflatten(1, (2, -1))
    parts = x.unsqueeze(1) * masks
    return [net.o(net.b(parts[:, speaker])) for speaker in range(2)]


@images("a.0 b.0", MASKS)
def a_mask_that_is_expanded(net: Any, x: Tensor, mask: Tensor) -> Tensor:
    x = net.a(x)
    return net.o(net.b(x * mask.unsqueeze(1).expand(x.shape)))


@images("a.0 b.0", MASKS)
def a_mask_that_is_compared_when_it_is_wide(net: Any, x: Tensor, mask: Tensor) -> Tensor:
    x = net.a(x)
    x = x.masked_fill(mask[:, None].expand_as(x) > 0.5, 0.0)
    return net.o(net.b(torch.where((mask > 0.2).unsqueeze(1).repeat(1, x.shape[1], 1, 1), x, 0.0)))


# ----------------------------------------------------------------------------------------------------------------
# channels that lie on another axis than that of a convolution's own
# ----------------------------------------------------------------------------------------------------------------


@images("b.0", g=lambda: nn.Conv1d(1, 1, 3, padding=1), warns="mixes neighbouring channels, as its kernel runs along")
def a_gate_of_neighbours(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    gate = net.g(x.mean((2, 3)).unsqueeze(1)).sigmoid()
    return net.o(net.b(x * gate.transpose(1, 2).unsqueeze(-1)))


@images("a.0", a=lambda: conv(3, 32), s=lambda: nn.Conv1d(144, 144, 1), o=lambda: nn.Linear(16, 4))
def a_gate_over_places(net: Any, x: Tensor) -> Tensor:
    u, v = net.a(x).flatten(2).transpose(1, 2).chunk(2, 2)
    return net.o((u * net.s(v)).mean(1))


@images("a.0 b.0", k=lambda: torch.rand(1, 1, 3, 3))
def each_channel_blurred_by_itself(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    return net.o(net.b(functional.conv2d(x.reshape(-1, 1, *x.shape[2:]), net.k, padding=1).view_as(x)))


@images("a.0 b.0", w=lambda: nn.Conv2d(1, 4, 2, 2), b=lambda: conv(64, 8))
def four_maps_of_each_channel(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    count, width, high, wide = x.shape
    return net.o(net.b(net.w(x.flatten(0, 1).unsqueeze(1)).view(count, 4 * width, high // 2, wide // 2)))


@images("b.0", w=lambda: nn.Conv3d(1, 1, (1, 3, 3), (2, 1, 1), (0, 1, 1)), b=lambda: conv(8, 8), warns="neighbouring")
def every_other_channel(net: Any, x: Tensor) -> Tensor:
    return net.o(net.b(net.w(net.a(x).unsqueeze(1)).squeeze(1)))


# ----------------------------------------------------------------------------------------------------------------
# convolutions whose kernels are activations
# ----------------------------------------------------------------------------------------------------------------


@images("a.0 b.0")
def a_correlation_of_each_channel_with_a_template(net: Any, x: Tensor) -> Tensor:
    y, z = net.b(net.a(x)), net.b(net.a(x[..., :4, :4]))
    n, c, h, w = y.shape
    y = functional.conv2d(y.reshape(1, n * c, h, w), z.reshape(n * c, 1, 4, 4), groups=n * c)
    return net.o(y.view(n, c, *y.shape[2:]))


@images("a.0 b.0", o=lambda: tail(1))
def a_correlation_with_a_template(net: Any, x: Tensor) -> Tensor:
    y, z = net.b(net.a(x)), net.b(net.a(x[..., :4, :4]))
    y = functional.conv2d(y.flatten(0, 1)[None], z, groups=len(z))
    return net.o(y.transpose(0, 1))


@images("k", k=lambda: nn.Linear(3, 8 * 27))
def kernels_that_are_made_for_each_image(net: Any, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    kernels = net.k(x.mean((2, 3))).view(-1, c, 3, 3)
    return net.o(functional.conv2d(x.reshape(1, n * c, h, w), kernels, groups=n).view(n, -1, h - 2, w - 2))


@images("a.0", k=lambda: nn.Linear(16, 8 * 16), warns="has kernels that are activations, and what they give stays")
def kernels_that_mix_channels(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    n, c, h, w = y.shape
    kernels = net.k(y.mean((2, 3))).view(n * 8, -1, 1, 1)
    return net.o(functional.conv2d(y.view(1, n * c, h, w), kernels, groups=n).view(n, 8, h, w))


@images("a.0", w=lambda: weight(8, 16, 3, 3), s=lambda: nn.Linear(3, 16), warns="has kernels that are activations, and")
def kernels_that_styles_modulate(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    n, c, h, w = y.shape
    kernels = net.w[None] * net.s(x.mean((2, 3)))[:, None, :, None, None]
    kernels = kernels * torch.rsqrt(kernels.square().sum((2, 3, 4), keepdim=True) + 1e-8)
    z = functional.conv2d(y.reshape(1, -1, h, w), kernels.reshape(-1, c, 3, 3), groups=n)
    return net.o(z.view(n, 8, h - 2, -1))
