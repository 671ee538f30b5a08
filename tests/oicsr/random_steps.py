"""More kinds of steps for random networks: computed weights, numbers kept on modules, recurrent layers, deformations.

A kind is a pair: what fills a step in, given the widths before and after, and its forward. What is filled in may set
`step.first`, `step.norm`, `step.width` and anything else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import DeformConv2d

Fill = Callable[[Any, int, int], None]
Forward = Callable[[Any, Tensor], Tensor]


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) / math.sqrt(shape[-1]))


class GroupNorm(nn.Module):
    """A group normalisation of one's own, its number of groups in an attribute."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.groups, self.weight, self.bias = 4, weight(width), weight(width)

    def forward(self, x: Tensor) -> Tensor:
        return functional.group_norm(x, self.groups, self.weight, self.bias)


def matrix(step: Any, width: int, wide: int) -> None:
    step.weight, step.bias, step.width = weight(wide, width), weight(wide), wide


def kernel(step: Any, width: int, wide: int) -> None:
    step.weight, step.scale, step.width = weight(wide, width, 3, 3), nn.Parameter(torch.rand(wide, 1, 1, 1)), wide


def low_rank(step: Any, width: int, wide: int) -> None:
    matrix(step, width, wide)
    step.lower, step.upper = weight(2, width), weight(wide, 2)


def masked(step: Any, width: int, wide: int) -> None:
    kernel(step, width, wide)
    step.register_buffer("mask", (torch.rand(wide, width, 3, 3) > 0.3).float())


def normed(norm: Callable[[int], nn.Module]) -> Fill:
    def fill(step: Any, width: int, wide: int) -> None:
        step.norm = norm(width)

    return fill


def pieces(step: Any, width: int, wide: int) -> None:
    step.sizes, step.width = [width // 4, width - width // 4], 2 * wide
    step.few, step.many = nn.Conv2d(width // 4, wide, 1), nn.Conv2d(width - width // 4, wide, 3, padding=1)


def convolution(step: Any, width: int, wide: int) -> None:
    step.first, step.width = nn.Conv2d(width, wide, 3, padding=1), wide


def recurrent(cls: type[nn.RNNBase], **options: Any) -> Fill:
    def fill(step: Any, width: int, wide: int) -> None:
        step.rows = cls(width, 2 * wide, batch_first=True, **options)
        step.width = 2 * wide * (1 + options.get("bidirectional", False))

    return fill


def deformed(step: Any, width: int, wide: int) -> None:
    step.first, step.width = DeformConv2d(width, wide, 3, padding=1), wide
    step.places = nn.Conv2d(width, 18, 3, padding=1)


def linear(step: Any, x: Tensor, computed: Tensor) -> Tensor:
    return functional.linear(x.permute(0, 2, 3, 1), computed, step.bias).permute(0, 3, 1, 2)


def standardised(step: Any, x: Tensor) -> Tensor:
    w = step.weight
    w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-3)
    return functional.conv2d(x, w * step.scale, padding=1)


def cut(step: Any, x: Tensor) -> Tensor:
    few, many = torch.split(x, step.sizes, 1)
    return torch.relu(torch.cat([step.few(few), step.many(many)], 1))


def rows(step: Any, x: Tensor) -> Tensor:
    read = step.rows(x.flatten(2).transpose(1, 2))[0]
    return read.transpose(1, 2).unflatten(2, x.shape[2:])


def halves(step: Any, x: Tensor) -> Tensor:
    left, right = step.weight.chunk(2)
    x = x.permute(0, 2, 3, 1)
    return (functional.linear(x, left) * torch.sigmoid(functional.linear(x, right))).permute(0, 3, 1, 2)


def doubled(step: Any, width: int, wide: int) -> None:
    step.weight, step.width = weight(2 * wide, width), wide


MORE: dict[str, tuple[Fill, Forward]] = {
    "raw_matrix": (matrix, lambda step, x: (x.permute(0, 2, 3, 1) @ step.weight.t() + step.bias).permute(0, 3, 1, 2)),
    "matrix_in_front": (matrix, lambda step, x: (step.weight @ x.flatten(2)).unflatten(2, x.shape[2:])),
    "einsum": (matrix, lambda step, x: torch.einsum("bchw,dc->bdhw", x, step.weight)),
    "transposed_weight": (matrix, lambda step, x: linear(step, x, step.weight.t().contiguous().t())),
    "equalised": (kernel, lambda step, x: functional.conv2d(x, step.weight * 0.3, padding=1)),
    "scaled_rows": (kernel, lambda step, x: functional.conv2d(x, step.weight * step.scale, padding=1)),
    "standardised": (kernel, standardised),
    "masked_by_hand": (masked, lambda step, x: functional.conv2d(x, step.weight * step.mask, padding=1)),
    "low_rank": (low_rank, lambda step, x: linear(step, x, step.weight + step.upper @ step.lower)),
    "halves": (doubled, halves),
    "plain_group_norm": (normed(lambda width: nn.GroupNorm(4, width, affine=False)), lambda step, x: step.norm(x)),
    "own_group_norm": (normed(GroupNorm), lambda step, x: step.norm(x)),
    "kept_sizes": (pieces, cut),
    "own_width_in_a_layer": (convolution, lambda step, x: step.first(x / math.sqrt(step.first.in_channels))),
    "lstm": (recurrent(nn.LSTM, num_layers=2), rows),
    "gru": (recurrent(nn.GRU, bidirectional=True), rows),
    "deformed": (deformed, lambda step, x: step.first(x, torch.tanh(step.places(x)))),
}
