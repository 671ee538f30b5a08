"""Numbers that the code makes: those that differ from channel to channel keep channels, whatever a proof would say."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import oicsr
from tests.oicsr.networks import check_every_channel

Make = Callable[[Tensor], Tensor]


class Scaled(nn.Module):
    """Two convolutions, and numbers that the code makes between them; `width`: the channels of the first."""

    def __init__(self, make: Make, width: int) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, width, 1), nn.Conv2d(width, 5, 1), nn.Conv2d(5, 2, 1)
        self.make = make

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        return self.three(torch.relu(self.two(y * self.make(y).to(y))))


def column(y: Tensor, number: float = 1.0) -> Tensor:
    return torch.full((y.shape[1], 1, 1), number)


def halves(y: Tensor) -> Tensor:
    p = column(y)
    p[: y.shape[1] // 2] = 2
    return p


def quarter(y: Tensor) -> Tensor:
    p = y.new_zeros(y.shape[1], 1, 1)
    p[y.shape[1] // 4 :] = 1
    return p


def every_second(y: Tensor) -> Tensor:
    p = column(y)
    p[::2] *= 3
    return p


def copied(y: Tensor) -> Tensor:
    p = torch.empty(y.shape[1], 1, 1)
    p[: y.shape[1] // 2].copy_(column(y)[: y.shape[1] // 2] * 2)
    return p


def through_a_view(y: Tensor) -> Tensor:
    p = column(y)
    seen = p.view(-1)
    p.permute(1, 2, 0)[..., : y.shape[1] // 2] = 2
    return seen[:, None, None]


def joined(y: Tensor) -> Tensor:
    first = y.shape[1] // 2
    return torch.cat([torch.ones(1, first, 1, 1), torch.full((1, y.shape[1] - first, 1, 1), 2.0)], 1)


def in_turns(y: Tensor) -> Tensor:
    first = torch.ones(y.shape[1] // 2)
    return torch.stack([first, 0 * first], 1).flatten()[:, None, None]


def padded(y: Tensor) -> Tensor:
    return functional.pad(column(y)[::2], (0, 0, 0, 0, 0, y.shape[1] // 2), value=2.0)


def counted(y: Tensor) -> Tensor:
    return torch.ones(y.shape[1]).cumsum(0)[:, None, None]


def noise_in_half(y: Tensor) -> Tensor:
    p = torch.rand(y.shape[1], 1, 1)
    p[: y.shape[1] // 2].zero_()
    return p


def chosen(y: Tensor) -> Tensor:
    return torch.where(halves(y) > 1, column(y, 3.0), column(y))


@pytest.mark.parametrize("width", [16, 24])
@pytest.mark.parametrize(
    "make",
    [
        halves, quarter, every_second, copied, through_a_view, joined, in_turns, padded, counted, noise_in_half, chosen,
    ],
)  # fmt: skip
def test_numbers_that_differ_from_channel_to_channel_keep_channels(make: Make, width: int) -> None:
    with pytest.warns(oicsr.UnprunedChannelsWarning, match="numbers that differ from channel to channel"):
        couplings = oicsr.find_couplings(Scaled(make, width), torch.randn(2, 3, 4, 4), verify="off")
    assert [coupling.name for coupling in couplings] == ["two"]


def rows(y: Tensor) -> Tensor:
    p = torch.ones(*y.shape)
    p[:, :, : y.shape[2] // 2] = 2
    return p


def padded_rows(y: Tensor) -> Tensor:
    return functional.pad(torch.ones(y.shape[1], 1, 1), (0, 0, 1, y.shape[2] - 2), value=2.0)


def joined_rows(y: Tensor) -> Tensor:
    return torch.cat([torch.ones(y.shape[1], 1, 1), torch.zeros(y.shape[1], y.shape[2] - 1, 1)], 1)


def counted_rows(y: Tensor) -> Tensor:
    return torch.ones(y.shape[1], y.shape[2], 1).cumsum(1)


def a_triangle(y: Tensor) -> Tensor:
    return torch.ones(y.shape[1], *y.shape[2:]).tril()


def all_written(y: Tensor) -> Tensor:
    p = torch.empty(y.shape[1], 1, 1)
    p[:] = 2
    return p.mul_(3)


def the_same_in_both_halves(y: Tensor) -> Tensor:
    first = y.shape[1] // 2
    return torch.cat([column(y, 2.0)[:first], column(y, 2.0)[first:]])


@pytest.mark.parametrize(
    "make", [rows, padded_rows, joined_rows, counted_rows, a_triangle, all_written, the_same_in_both_halves]
)
def test_numbers_that_differ_along_other_axes_are_in_no_channels_way(make: Make) -> None:
    assert check_every_channel(Scaled(make, 16), torch.randn(2, 3, 4, 4)) == {"one": 16, "two": 5}
