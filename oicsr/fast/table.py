"""The plan for one model: which weights are worked on together, and where the energy of each slice goes.

A weight `(rows, columns, ...)` may carry energy along its first axis, along its second, or along both. One vector holds
the energies of all those slices of all weights; `Table.index` names the channel of each. Weights of one shape, type and
memory order form a bucket.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from oicsr.fast.tiles import Tiles, make_tiles
from oicsr.networks.state import indices_on_cpu
from oicsr.reference import Term, energy_type

CACHE_BLOCK = 1 << 19  # elements worked on at once on a CPU, 2 MiB of float32: measured best with one and two threads
SERIAL_ELEMENTS = 1 << 22  # below, waking a CPU's other threads for every operation takes longer than they save
DEVICE_BLOCK = 1 << 24  # elsewhere: bounds the temporaries at 64 MiB


@dataclass(frozen=True, eq=False)
class Bucket:
    """Weights of one shape, type and memory order, worked on together.

    Attributes:
        weights: Their positions in the list of weights.
        shape: The shape of each.
        channels_last: Whether the second axis is the last in memory.
        rows: Where the energies of the first axes stand in the vector of all slices, or None.
        columns: The same of the second axes.
    """

    weights: tuple[int, ...]
    shape: tuple[int, ...]
    channels_last: bool
    rows: slice | None
    columns: slice | None

    @property
    def width(self) -> int:
        """Elements per row."""
        return math.prod(self.shape[1:])


@dataclass(frozen=True, eq=False)
class Table:
    """How the weights of one model are worked on: a plan for their shapes, types, memory orders and device.

    Attributes:
        buckets: Weights of the usual kind.
        others: Terms of any other weights, each with the place of its slices in the vector of all slices.
        index: int64, `(slices,)`: the channel of each slice.
        channels: Channels in all; the position after the last is a waste bin.
        dtype: Type of the energies: float32, or float64 where a weight is.
        serial: Whether one thread is quicker than many.
        tiles: The buckets as the Triton kernels want them, where they can be used.
        terms: All axes that carry energy, as they were given.
    """

    buckets: tuple[Bucket, ...]
    others: tuple[tuple[Term, slice], ...]
    index: Tensor
    channels: int
    dtype: torch.dtype
    serial: bool = False
    tiles: Tiles | None = None
    terms: tuple[Term, ...] = ()


@indices_on_cpu()
def make_table(weights: Sequence[Tensor], terms: Sequence[Term], channels: int) -> Table:
    """Sort weights into buckets.

    Args:
        weights: The weights, each as long along every axis of `terms` as the term says.
        terms: The axes that carry energy.
        channels: The number of channels that the terms point to.

    Raises:
        ValueError: The weights are on several devices.
    """
    devices = sorted({str(weight.device) for weight in weights})
    if len(devices) > 1:
        raise ValueError(f"the weights are on {', '.join(devices)}; couplings must be those of parts on one device")
    axes: dict[int, dict[int, Term]] = {}
    for term in terms:
        axes.setdefault(term.weight, {})[term.dim] = term
    groups: dict[tuple[object, ...], list[int]] = {}
    unusual: list[Term] = []
    for position, own in axes.items():
        weight = weights[position]
        if is_usual(weight) and set(own) <= {0, 1}:
            key = (*weight.shape, weight.dtype, weight.is_contiguous(), 0 in own, 1 in own)
            groups.setdefault(key, []).append(position)
        else:
            unusual.extend(own.values())
    index: list[Tensor] = []
    buckets = [
        _make_bucket(chunk, weights, axes, index) for group in groups.values() for chunk in _chunks(group, weights)
    ]
    others = [(term, _place([term], index)) for term in unusual]
    together = torch.cat(index) if index else torch.zeros(0, dtype=torch.int64)
    dtype = energy_type(weights)
    device = weights[0].device
    tiles = make_tiles(_describe(buckets), together, channels, device) if dtype is torch.float32 else None
    serial = device.type == "cpu" and sum(weights[i].numel() for i in axes) < SERIAL_ELEMENTS
    return Table(tuple(buckets), tuple(others), together.to(device), channels, dtype, serial, tiles, tuple(terms))


def is_usual(weight: Tensor) -> bool:
    """Return whether a weight is of full precision and without gaps in memory, its rows outermost."""
    dense = weight.is_contiguous() or (weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last))
    return dense and weight.dtype in (torch.float32, torch.float64)


def block_size(device: torch.device) -> int:
    """Return how many elements are worked on at once."""
    return CACHE_BLOCK if device.type == "cpu" else DEVICE_BLOCK


def same_memory_order(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors of one shape have their elements in the same order in memory.

    The stride of an axis of size 1 says nothing: a 1 x 1 convolution has two sets of strides in each memory format.
    """
    if one.stride() == other.stride():
        return True
    strides = zip(one.shape, one.stride(), other.stride(), strict=True)
    return all(size <= 1 or own == others for size, own, others in strides)


def _describe(buckets: Sequence[Bucket]) -> dict[int, tuple[int, ...]]:
    """Return what the kernels need to know of each weight, by its position (`oicsr.fast.tiles.FIELDS`)."""
    known: dict[int, tuple[int, ...]] = {}
    for bucket in buckets:
        columns = bucket.shape[1] if len(bucket.shape) > 1 else 1
        divisor = 1 if bucket.channels_last else bucket.width // max(1, columns)
        for k, position in enumerate(bucket.weights):
            own_rows = -1 if bucket.rows is None else bucket.rows.start + k * bucket.shape[0]
            own_columns = -1 if bucket.columns is None else bucket.columns.start + k * columns
            known[position] = (bucket.shape[0], bucket.width, divisor, columns, own_rows, own_columns)
    return known


def _chunks(group: list[int], weights: Sequence[Tensor]) -> list[list[int]]:
    """Cut a group of equal weights into runs that fit a block."""
    first = weights[group[0]]
    size = max(1, block_size(first.device) // max(1, first.numel()))
    return [group[start : start + size] for start in range(0, len(group), size)]


def _make_bucket(
    chunk: list[int], weights: Sequence[Tensor], axes: dict[int, dict[int, Term]], index: list[Tensor]
) -> Bucket:
    first, own = weights[chunk[0]], axes[chunk[0]]
    rows = _place([axes[i][0] for i in chunk], index) if 0 in own else None
    columns = _place([axes[i][1] for i in chunk], index) if 1 in own else None
    return Bucket(tuple(chunk), tuple(first.shape), not first.is_contiguous(), rows, columns)


def _place(terms: Sequence[Term], index: list[Tensor]) -> slice:
    """Append the slices of some terms to the vector of all slices, and return where they stand."""
    start = sum(len(part) for part in index)
    index.extend(term.channels.cpu() for term in terms)
    return slice(start, sum(len(part) for part in index))
