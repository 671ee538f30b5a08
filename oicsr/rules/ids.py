"""Arithmetic on ids: integer tensors, broadcastable to a value's shape, that name the channel of each element."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor


def varying(ids: Tensor) -> list[int]:
    """Return the axes along which the channel changes."""
    return [axis for axis, size in enumerate(ids.shape) if size > 1]


def on_axis(vector: Tensor, axis: int, ndim: int) -> Tensor:
    """Return ids of `ndim` axes that change along `axis` only."""
    shape = [1] * ndim
    shape[axis] = vector.numel()
    return vector.reshape(shape)


def squeeze_constant_axes(ids: Tensor) -> Tensor:
    """Shrink to size 1 every axis along which the ids do not change."""
    for axis in varying(ids):
        first = ids.narrow(axis, 0, 1)
        if bool((ids == first).all()):
            ids = first
    return ids


def reshape_ids(ids: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """Return the ids of a value reshaped from `old` to `new`, both shapes of the same number of elements.

    Where sizes depend on the data, the numbers that stand for them need not multiply to the same: channels are followed
    on the last axes, if these stay as they are (`x[mask].reshape(batch, -1, channels)`).
    """
    if math.prod(old) != math.prod(new):
        last = 0
        while last < min(len(old), len(new)) and old[-1 - last] == new[-1 - last]:
            last += 1
        if all(axis >= len(old) - last for axis in varying(ids)):
            return ids.reshape([1] * (len(new) - last) + list(ids.shape[len(old) - last :]))
    lead = 0
    while lead < min(len(old), len(new)) and old[lead] == new[lead] and ids.shape[lead] == 1:
        lead += 1
    tail = 0
    while (
        tail < min(len(old), len(new)) - lead
        and old[-1 - tail] == new[-1 - tail]
        and ids.shape[len(old) - 1 - tail] == 1
    ):
        tail += 1
    inner_old, inner_new = old[lead : len(old) - tail], new[lead : len(new) - tail]
    core = ids.reshape(ids.shape[lead : len(old) - tail]).expand(tuple(inner_old)).reshape(tuple(inner_new))
    core = squeeze_constant_axes(core)
    return core.reshape([1] * lead + list(core.shape) + [1] * tail)


def pad_left(shape: Sequence[int], ndim: int) -> list[int]:
    """Return `shape` with ones in front, as broadcasting does."""
    return [1] * (ndim - len(shape)) + list(shape)
