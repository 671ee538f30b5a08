"""More networks that users bring: slices with a step, single channels, values read for their shape, and places."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import roi_align, roi_pool

from tests.oicsr.users_networks import CASES, IMAGES, WORDS, Net, built, conv, images, rows, shifted_in_time, tail

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


# ----------------------------------------------------------------------------------------------------------------
# slices that are left off
# ----------------------------------------------------------------------------------------------------------------


@rows("b", a=lambda: nn.Linear(6, 6), warns="'a' could only go all at once", b=lambda: nn.Linear(7, 8))
def two_ones_behind_and_one_left_off(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.o(net.b(torch.cat([y, torch.ones_like(y[..., :2])], -1)[..., :-1]).relu())


@rows("a b", b=lambda: nn.Linear(15, 8))
def the_last_one_left_off(net: Any, x: Tensor) -> Tensor:
    return net.o(net.b(net.a(x).relu()[..., :-1]).relu())


# ----------------------------------------------------------------------------------------------------------------
# the first of channels that are there twice
# ----------------------------------------------------------------------------------------------------------------


class Ghost(nn.Module):
    """Half of the channels, and as many that are made of them; of an odd number, the last one is left out."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        half = (after + 1) // 2
        self.oup, self.primary = after, conv(before, half)
        self.cheap = nn.Sequential(nn.Conv2d(half, half, 3, padding=1, groups=half), nn.BatchNorm2d(half), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        primary = self.primary(x)
        return torch.cat([primary, self.cheap(primary)], 1)[:, : self.oup]


@built("one.primary.0 two.primary.0", IMAGES)
def ghosts_of_odd_widths() -> nn.Module:
    return Net(lambda net, x: net.o(net.two(net.one(x))), {"one": Ghost(3, 15), "two": Ghost(15, 13), "o": tail(13)})


# ----------------------------------------------------------------------------------------------------------------
# single channels
# ----------------------------------------------------------------------------------------------------------------


@images("a.0 f", b=lambda: conv(16, 16), f=lambda: nn.Conv2d(17, 16, 3, padding=1), o=lambda: tail(16))
def a_plane_of_time(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    for step in (0.5, 1.0):
        y = y + net.b(net.f(torch.cat([step * torch.ones_like(y[:, :1]), y], 1)))
    return net.o(y)


@images("a.0 b.0")
def a_mask_of_the_shape_of_a_channel(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    mask = torch.ones_like(y[:, 0])
    mask[:, :2] = 0
    return net.o(net.b(y * mask.unsqueeze(1)))


@images("b.0", warns="picks single channels")
def a_mask_that_reads_a_channel(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.o(net.b(y * (torch.ones_like(y[:, :1]) + y[:, :1])))


@images("a.0 b.0", s=lambda: nn.Conv2d(16, 1, 1), t=lambda: nn.Conv2d(8, 1, 1), o=lambda: nn.Conv2d(2, 1, 1))
def maps_of_one_channel_together(net: Any, x: Tensor) -> Any:
    y = net.a(x)
    maps = net.s(y), functional.interpolate(net.t(net.b(y)), size=y.shape[2:], mode="bilinear")
    return net.o(torch.cat(maps, 1)), *maps


# ----------------------------------------------------------------------------------------------------------------
# noise of a size that the code gives
# ----------------------------------------------------------------------------------------------------------------


@images("a.0 b.0")
def noise_of_the_size_of_channels(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.o(net.b(y + 0 * torch.randn(y.size(), device=y.device, dtype=y.dtype)))


@images("b.0", warns="its width is a number in the model's code")
def noise_of_a_literal_size(net: Any, x: Tensor) -> Tensor:
    return net.o(net.b(net.a(x) + 0 * torch.randn(16, 1, 1).to(x)))


@images("b.0", warns="gives numbers, whose size cannot follow the channels")
def the_same_noise_each_time(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    generator = torch.Generator().manual_seed(0)
    return net.o(net.b(y * torch.rand(y.shape[1], 1, 1, generator=generator).to(y)))


# ----------------------------------------------------------------------------------------------------------------
# numbers that differ between the first half of the channels and the others, however many there are
# ----------------------------------------------------------------------------------------------------------------


@images("b.0", warns="differ from channel to channel")
def twice_the_first_half(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    factors = torch.ones(y.shape[1], 1, 1).to(y)
    factors[: y.shape[1] // 2] = 2
    return net.o(net.b(y * factors))


@images("b.0", warns="differ from channel to channel")
def ones_and_twos(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    first = y.shape[1] // 2
    return net.o(net.b(y * torch.cat([torch.ones(first, 1, 1), torch.full((y.shape[1] - first, 1, 1), 2.0)]).to(y)))


@images("b.0", warns="differ from channel to channel", s=lambda: nn.Parameter(torch.tensor(0.7)))
def a_scale_of_the_first_quarter(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    factors = torch.ones(*y.shape)
    factors[:, : y.shape[1] // 4] *= net.s
    return net.o(net.b(y * factors.to(y)))


@images("a.0 b.0", s=lambda: nn.Parameter(torch.tensor(0.7)))
def a_scale_of_the_first_rows(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    factors = torch.ones(*y.shape)
    factors[:, :, :2] *= net.s
    factors[:, :, ::2, 3:] = 0.5
    return net.o(net.b(y * factors.to(y)))


@images("a.0 b.0")
def a_canvas_with_a_margin(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    canvas = y.new_zeros(len(y), y.shape[1], 16, 16)
    canvas[:, :, 0] = 1
    canvas[:, :, 2:14, 2:14] = y
    return net.o(net.b(canvas))


# ----------------------------------------------------------------------------------------------------------------
# elements and boxes picked at places
# ----------------------------------------------------------------------------------------------------------------


@images("a.0 b.0", torch.randint(0, 144, (3, 5)))
def features_at_centres(net: Any, x: Tensor, places: Tensor) -> Tensor:
    y = net.a(x).flatten(2).transpose(1, 2)
    y = y.gather(1, places.unsqueeze(2).expand(-1, -1, y.shape[2]))
    return net.o(net.b(y.transpose(1, 2).unsqueeze(3)))


@images("a.0 b.0", s=lambda: nn.Conv2d(16, 1, 1))
def the_best_places(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    places = net.s(y).flatten(1).topk(5, 1)[1]
    return net.o(net.b(torch.take_along_dim(y.flatten(2), places[:, None], 2).unsqueeze(3)))


@images("a.0 b.0")
def the_largest_of_each_channel_in_order(net: Any, x: Tensor) -> Tensor:
    y = net.a(x).flatten(2)
    return net.o(net.b(y.gather(2, y.topk(5, 2)[1].sort(2)[0]).unsqueeze(3)))


@images("b.0", torch.randint(0, 144, (3, 5, 16)))
def places_for_each_channel_from_outside(net: Any, x: Tensor, places: Tensor) -> Tensor:
    y = net.a(x).flatten(2).transpose(1, 2).gather(1, places)
    return net.o(net.b(y.transpose(1, 2).unsqueeze(3)))


@images("b.0", torch.randint(0, 16, (3, 8, 12, 12)), warns="picks single channels")
def channels_at_places(net: Any, x: Tensor, places: Tensor) -> Tensor:
    return net.o(net.b(net.a(x).gather(1, places).repeat(1, 2, 1, 1)))


@built("r", WORDS, torch.tensor([7, 3, 5]))
def the_last_state_of_padded_words() -> nn.Module:
    return LastState()


class LastState(nn.Module):
    """A recurrence over one-hot words, read where each sequence ends."""

    def __init__(self) -> None:
        super().__init__()
        self.r, self.o = nn.GRU(20, 12, batch_first=True), nn.Linear(12, 3)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        states = self.r(functional.one_hot(words, 20).to(self.o.weight))[0]
        last = (lengths - 1).view(-1, 1).expand(len(lengths), states.shape[2]).unsqueeze(1)
        return self.o(states.gather(1, last).squeeze(1))


BOXES = torch.tensor([[0.0, 1.0, 1.0, 9.0, 9.0], [2.0, 2.0, 0.0, 11.0, 6.0]])


@images("a.0 b.0", BOXES)
def aligned_regions(net: Any, x: Tensor, boxes: Tensor) -> Tensor:
    return net.o(net.b(roi_align(net.a(x), boxes, 3)))


@images("a.0 b.0", BOXES)
def pooled_regions(net: Any, x: Tensor, boxes: Tensor) -> Tensor:
    return net.o(net.b(roi_pool(net.a(x), boxes, 3)))


# ----------------------------------------------------------------------------------------------------------------
# cuts at shares of the width
# ----------------------------------------------------------------------------------------------------------------


@images("a.0 q b.0", q=lambda: nn.Conv2d(4, 4, 3, padding=1))
def a_layer_over_the_first_quarter(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    quarter = x.shape[1] // 4
    return net.o(net.b(torch.cat((net.q(x[:, :quarter]), x[:, quarter:]), 1)))


@images("a.0 b.0")
def eighths_are_shifted_in_time(net: Any, x: Tensor) -> Tensor:
    return net.o(net.b(shifted_in_time(net.a(x), 8)))


@images("a.0 b.0")
def three_eighths_as_a_gate(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    part = x.shape[1] // 8
    gates, rest = x.split([3 * part, x.shape[1] - 3 * part], 1)
    return net.o(net.b(torch.cat((rest, gates.sigmoid()), 1)))


@images("b.0", warns="cuts the channel axis into unequal pieces")
def twelve_channels_by_number(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    return net.o(net.b(torch.cat((x[:, 4:], x[:, :4].sigmoid()), 1)))


@rows("i i[16:22]", i=lambda: nn.Linear(6, 23), d=lambda: 8, n=lambda: 3)
def a_cut_of_a_piece(net: Any, x: Tensor) -> Tensor:
    """As in Mamba-2 (Dao and Gu, ICML 2024)."""
    gate, y, step = net.i(x).split([net.d, net.d + 2 * net.n, 1], -1)
    y, b, c = y.split([net.d, net.n, net.n], -1)
    return net.o(y * (b * c).sum(-1, keepdim=True) * functional.silu(gate)) * step
