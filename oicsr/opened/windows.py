"""Attention in windows (Swin of torchvision, in two and three dimensions) with inner widths of its own."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

NAMES = {"ShiftedWindowAttention", "ShiftedWindowAttentionV2", "ShiftedWindowAttention3d"}
MASKED = -100.0  # what torchvision adds to scores between regions that are no neighbours
LARGEST_SCALE = math.log(100.0)


def is_window_attention(module: nn.Module) -> bool:
    """Return whether a module is one of torchvision's attentions in windows."""
    return type(module).__name__ in NAMES and type(module).__module__.startswith("torchvision.models.")


class OpenWindowAttention(nn.Module):
    """Attention in shifted windows as torchvision's, with heads and head widths that are free.

    Parameters, buffers and their names are those of the source. Two and three dimensions, and the cosine scores of the
    second version (Liu et al., CVPR 2022), go through the same code.

    Args:
        source: The attention whose weights it takes over.

    Attributes:
        scale: What scores are multiplied with: that of the source, whatever goes later.
    """

    qkv: nn.Linear
    proj: nn.Linear
    num_heads: int
    window_size: list[int]
    shift_size: list[int]
    attention_dropout: float
    dropout: float

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        vars(self).update({name: copy.copy(value) for name, value in vars(source).items()})
        self.scale = (self.qkv.out_features // (3 * self.num_heads)) ** -0.5
        self._source = type(source)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within windows; `x` and the output are `(batch, *sizes, channels)`."""
        sizes = x.shape[1:-1]
        window, shift = self._fitting(sizes)
        pads = [(w - size % w) % w for size, w in zip(sizes, window, strict=True)]
        x = functional.pad(x, [0, 0, *(end for pad in reversed(pads) for end in (0, pad))])
        padded, axes = x.shape[1:-1], tuple(range(1, 1 + len(sizes)))
        moved = any(shift)
        x = torch.roll(x, [-s for s in shift], axes) if moved else x
        mask = _mask(x, padded, window, shift) if moved else None
        x = self._attend(_windows(x, window), window, mask)
        x = _together(x, padded, window)
        x = torch.roll(x, list(shift), axes) if moved else x
        for axis, size in zip(axes, sizes, strict=True):
            x = x.narrow(axis, 0, size)
        return x.contiguous()

    def _fitting(self, sizes: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return window and shift; a map no larger than the window is not shifted, and in 3-D is the window."""
        window, shift = list(self.window_size), list(self.shift_size)
        for axis, size in enumerate(sizes):
            if size <= window[axis]:
                shift[axis] = 0
                window[axis] = size if len(sizes) > 2 else window[axis]
        return window, shift

    def _attend(self, x: Tensor, window: list[int], mask: Tensor | None) -> Tensor:
        """Attend among the tokens of each window, `(batch * windows, tokens, channels)`."""
        bias: Tensor | None = self.qkv.bias
        cosine = self._parameters.get("logit_scale")
        if cosine is not None and bias is not None:  # keys have none
            first, second, third = bias.chunk(3)
            bias = torch.cat([first, torch.zeros_like(second), third])
        parts = functional.linear(x, self.qkv.weight, bias).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        if cosine is None:
            scores = (q * self.scale) @ k.transpose(-2, -1)
        else:
            scores = functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).transpose(-2, -1)
            scores = scores * cosine.clamp(max=LARGEST_SCALE).exp()
        scores = scores + self.get_relative_position_bias(window)
        if mask is not None:
            scores = (scores.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
        weights = functional.dropout(scores.softmax(-1), self.attention_dropout, self.training)
        mixed = self.proj((weights @ v).transpose(1, 2).flatten(2))
        return functional.dropout(mixed, self.dropout, self.training)

    def get_relative_position_bias(self, window: list[int]) -> Tensor:
        """Return what is added to the scores, `(1, heads, tokens, tokens)`: the source's code works it out."""
        source: Any = self._source
        bias: Tensor
        if len(window) > 2:
            bias = source.get_relative_position_bias(self, window)
        else:
            bias = source.get_relative_position_bias(self)
        return bias

    def extra_repr(self) -> str:
        """Return the number of heads and the windows."""
        return f"num_heads={self.num_heads}, window_size={self.window_size}, shift_size={self.shift_size}"


def _windows(x: Tensor, window: Sequence[int]) -> Tensor:
    """Cut `(batch, *sizes, channels)` into windows: `(batch * windows, tokens, channels)`."""
    count = len(window)
    for axis in reversed(range(count)):
        x = x.unflatten(1 + axis, (-1, window[axis]))
    outer, inner = range(1, 1 + 2 * count, 2), range(2, 2 + 2 * count, 2)
    return x.permute(0, *outer, *inner, 1 + 2 * count).flatten(1 + count, 2 * count).flatten(0, count)


def _together(x: Tensor, sizes: Sequence[int], window: Sequence[int]) -> Tensor:
    """Undo `_windows`."""
    count = len(window)
    grid = [size // w for size, w in zip(sizes, window, strict=True)]
    x = x.unflatten(1, list(window)).unflatten(0, (-1, *grid))
    x = x.permute(0, *(axis for i in range(count) for axis in (1 + i, 1 + count + i)), 1 + 2 * count)
    for axis in range(count):
        x = x.flatten(1 + axis, 2 + axis)
    return x


def _mask(x: Tensor, sizes: Sequence[int], window: Sequence[int], shift: Sequence[int]) -> Tensor:
    """Return what keeps tokens of a window apart that the shift brought together, `(windows, tokens, tokens)`."""
    regions = torch.zeros(list(sizes), dtype=torch.int64, device=x.device)
    for axis, (size, w, s) in enumerate(zip(sizes, window, shift, strict=True)):
        place = torch.arange(size, device=x.device)
        region = (place >= size - w).long() + (place >= size - s).long() if s else torch.zeros_like(place)
        regions = 3 * regions + region.reshape([-1 if k == axis else 1 for k in range(len(sizes))])
    flat = _windows(regions[None, ..., None], window).squeeze(-1)
    apart = flat.unsqueeze(1) != flat.unsqueeze(2)
    return torch.zeros(apart.shape, dtype=x.dtype, device=x.device).masked_fill(apart, MASKED)
