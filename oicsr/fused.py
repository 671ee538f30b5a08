"""Energies of every slice of many weights, and the gradient that follows from them, at the speed of memory.

A weight `(rows, columns, ...)` may carry energy along its first axis, along its second, or along both. One vector holds
the energies of all those slices of all weights; one `index_add` sends them to their channels, and one gather brings a
factor per channel back. In between, weights of one shape are worked on together, in blocks that stay in a core's own
cache, so that a weight is read from memory once for its energies and once for its gradient, and no temporary grows
with the model. On CUDA the same two passes are one Triton kernel each (`oicsr.kernels`).

`reference_energies` and `reference_scale` say the same thing one axis of one weight at a time; weights of an unusual
kind (other axes, half precision, strided memory) go through them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from oicsr.kernels import Tiles

CACHE_BLOCK = 1 << 19  # elements worked on at once on a CPU, 2 MiB of float32: measured best with one and two threads
SERIAL_ELEMENTS = 1 << 22  # below, waking a CPU's other threads for every operation takes longer than they save
DEVICE_BLOCK = 1 << 24  # elsewhere: bounds the temporaries at 64 MiB
KERNEL_DEVICES = {"cuda"}  # where the Triton kernels are used

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class Term:
    """The slices of one parameter along one axis, and where each one's energy goes."""

    weight: int  # position in the list of weights
    dim: int
    channels: Tensor  # int64, (size of the axis,): position in the vector of all channels; the last one is a waste bin


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
    """

    buckets: tuple[Bucket, ...]
    others: tuple[tuple[Term, slice], ...]
    index: Tensor
    channels: int
    dtype: torch.dtype
    serial: bool = False
    tiles: Tiles | None = None


def make_table(weights: Sequence[Tensor], terms: Sequence[Term], channels: int) -> Table:
    """Sort weights into buckets.

    Args:
        weights: The weights, all on one device.
        terms: The axes that carry energy.
        channels: The number of channels that the terms point to.
    """
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
    dtype = torch.float64 if any(w.dtype is torch.float64 for w in weights) else torch.float32
    device = weights[0].device
    tiles = _make_tiles(buckets, device) if dtype is torch.float32 else None
    serial = device.type == "cpu" and sum(weights[i].numel() for i in axes) < SERIAL_ELEMENTS
    return Table(tuple(buckets), tuple(others), together.to(device), channels, dtype, serial, tiles)


def _few_threads(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function work with one thread where more do not pay for the table among its arguments.

    Setting their number takes less than a microsecond.
    """

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        """Call the function, with one thread where its table says so."""
        count = torch.get_num_threads()
        if count == 1 or not any(isinstance(argument, Table) and argument.serial for argument in args):
            return function(*args, **options)
        torch.set_num_threads(1)
        try:
            return function(*args, **options)
        finally:
            torch.set_num_threads(count)

    return call


def _make_tiles(buckets: Sequence[Bucket], device: torch.device) -> Tiles | None:
    """Describe the buckets to the Triton kernels; None where there is no Triton or no use for it."""
    if device.type not in KERNEL_DEVICES:
        return None
    try:
        from oicsr import kernels
    except ImportError:
        return None
    rows: list[tuple[int, ...]] = []
    for bucket in buckets:
        columns = bucket.shape[1] if len(bucket.shape) > 1 else 1
        divisor = 1 if bucket.channels_last else bucket.width // columns
        for k in range(len(bucket.weights)):
            own_rows = -1 if bucket.rows is None else bucket.rows.start + k * bucket.shape[0]
            own_columns = -1 if bucket.columns is None else bucket.columns.start + k * columns
            rows.append((bucket.shape[0], bucket.width, divisor, columns, own_rows, own_columns))
    return kernels.make_tiles(rows, [i for bucket in buckets for i in bucket.weights], device)


def _kernels(table: Table) -> Tiles | None:
    """Return what the kernels need, unless results must be the same to the last bit in every run."""
    return None if torch.are_deterministic_algorithms_enabled() else table.tiles


def is_usual(weight: Tensor) -> bool:
    """Return whether a weight is of full precision and without gaps in memory, its rows outermost."""
    dense = weight.is_contiguous() or (weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last))
    return dense and weight.dtype in (torch.float32, torch.float64)


def block_size(device: torch.device) -> int:
    """Return how many elements are worked on at once."""
    return CACHE_BLOCK if device.type == "cpu" else DEVICE_BLOCK


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


class Scratch:
    """Memory for the temporaries of one pass, used again by every block: on a CPU it stays in the cache."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory: dict[torch.dtype, Tensor] = {}

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return uninitialised memory, valid until the next call."""
        size = math.prod(shape)
        memory = self._memory.get(dtype)
        if memory is None or memory.numel() < size:
            room = max(size, block_size(self._device)) if self._device.type == "cpu" else size
            memory = self._memory[dtype] = torch.empty(room, dtype=dtype, device=self._device)
        return memory[:size].view(shape)


# ----------------------------------------------------------------------------------------------------------------
# energies
# ----------------------------------------------------------------------------------------------------------------


@_few_threads
def energies(weights: Sequence[Tensor], table: Table) -> Tensor:
    """Return the energy of every channel, `(channels,)`; the weights are detached by the caller."""
    tiles = _kernels(table)
    found = None if tiles is None else tiles.energies(weights, table.index, table.channels)
    buckets = table.buckets if found is None else ()
    scratch = Scratch(table.index.device)
    parts = [part for bucket in buckets for part in _bucket_energies(weights, bucket, scratch)]
    parts += [reference_energies(weights[term.weight], term.dim) for term, _ in table.others]
    total = torch.zeros(table.channels + 1, dtype=table.dtype, device=table.index.device) if found is None else found
    if parts:
        slices = torch.cat([part.flatten().to(table.dtype) for part in parts])  # (slices,)
        total.index_add_(0, table.index[len(table.index) - len(slices) :], slices)
    return total[:-1]


def reference_energies(weight: Tensor, dim: int) -> Tensor:
    """Return the energy of each slice of a weight along an axis, `(size of the axis,)`, in at least float32."""
    exact = weight if weight.dtype is torch.float64 else weight.float()
    others = [axis for axis in range(weight.ndim) if axis != dim]
    return exact.square().sum(others) if others else exact.square()


def _bucket_energies(weights: Sequence[Tensor], bucket: Bucket, scratch: Scratch) -> list[Tensor]:
    """Return the energies of a bucket: of rows `(weights, rows)`, then of columns `(weights, columns)`."""
    matrices = [_as_matrix(weights[i], bucket) for i in bucket.weights]
    first = matrices[0]
    if bucket.columns is None:
        stacked = _stack(matrices, scratch) if len(matrices) > 1 else first[None]  # (weights, rows, width)
        return [torch.linalg.vector_norm(stacked, dim=2).square_()]
    if first.numel() > block_size(first.device):
        rows, columns = _blockwise_sums(first, scratch, with_rows=bucket.rows is not None)
    else:
        square = _stack(matrices, scratch).square_()  # (weights, rows, width)
        rows, columns = (square.sum(2) if bucket.rows else None), square.sum(1)
    columns = _over_positions(columns, bucket)
    return [columns] if rows is None else [rows, columns]


def _stack(matrices: Sequence[Tensor], scratch: Scratch) -> Tensor:
    """Return `(weights, rows, width)` in scratch memory."""
    shape = (len(matrices), *matrices[0].shape)
    return torch.stack(matrices, out=scratch.take(shape, matrices[0].dtype))  # type: ignore[arg-type]


def _as_matrix(weight: Tensor, bucket: Bucket) -> Tensor:
    """Return a view `(rows, width)` in the order of memory."""
    if bucket.channels_last:
        weight = weight.permute(0, 2, 3, 1)
    return weight.reshape(bucket.shape[0], -1)  # (rows, width), a view: the weight is dense


def _over_positions(columns: Tensor, bucket: Bucket) -> Tensor:
    """Sum over kernel positions: `(weights, width)` to `(weights, columns)`."""
    positions = bucket.width // bucket.shape[1]
    if positions == 1:
        return columns
    if bucket.channels_last:
        return columns.view(-1, positions, bucket.shape[1]).sum(1)
    return columns.view(-1, bucket.shape[1], positions).sum(2)


def _blockwise_sums(matrix: Tensor, scratch: Scratch, *, with_rows: bool) -> tuple[Tensor | None, Tensor]:
    """Return the energies of the rows and of the columns of one large matrix, read once, as `(1, ...)` each."""
    height = max(1, block_size(matrix.device) // matrix.shape[1])
    rows, columns = matrix.new_empty(len(matrix)), matrix.new_zeros(matrix.shape[1])
    buffer = scratch.take((height, matrix.shape[1]), matrix.dtype)
    for block, row_sums in zip(matrix.split(height), rows.split(height), strict=True):
        square = torch.mul(block, block, out=buffer[: len(block)])
        if with_rows:
            torch.sum(square, 1, out=row_sums)
        columns += square.sum(0)
    return (rows[None] if with_rows else None), columns[None]


# ----------------------------------------------------------------------------------------------------------------
# products: every weight times the factors of its slices
# ----------------------------------------------------------------------------------------------------------------


@_few_threads
def products(weights: Sequence[Tensor], needed: Sequence[bool], table: Table, factors: Tensor) -> list[Tensor | None]:
    """Return each weight times the sum of its slices' factors; None where it is not needed.

    Args:
        weights: The weights.
        needed: Which products are wanted.
        table: Their table.
        factors: `(channels,)`.
    """
    found: list[Tensor | None] = [None] * len(weights)
    per_slice, scratch = spread(table, factors, 0), Scratch(factors.device)
    tiles = _kernels(table)
    if tiles is not None:
        fresh = {i: torch.empty_like(weights[i]) for i in tiles.weights if needed[i]}
        if tiles.combine([fresh.get(i) for i in range(len(weights))], weights, per_slice, add=False):
            found = [fresh.get(i) for i in range(len(weights))]
        else:
            tiles = None
    for bucket in table.buckets if tiles is None else ():
        wanted = [k for k, i in enumerate(bucket.weights) if needed[i]]
        chosen = [weights[bucket.weights[k]] for k in wanted]
        if chosen and _is_large(chosen[0]):
            results = [torch.empty_like(chosen[0])]
            _blockwise(chosen[0], results[0], bucket, per_slice, torch.add, _multiply_into, scratch)
        elif chosen:
            results = list(torch._foreach_mul(chosen, _scales(bucket, per_slice, torch.add, wanted, scratch)))
        for k, result in zip(wanted, results if chosen else [], strict=True):
            found[bucket.weights[k]] = result
    for position, scale in _other_scales(weights, table, per_slice, torch.add).items():
        if needed[position]:
            found[position] = (weights[position] * scale).to(weights[position].dtype)
    return found


@_few_threads
def add_products_(targets: Sequence[Tensor | None], weights: Sequence[Tensor], table: Table, factors: Tensor) -> None:
    """Add each weight times the sum of its slices' factors to a tensor of its shape, in place.

    Args:
        targets: What to add to; None passes a weight over.
        weights: The weights.
        table: Their table.
        factors: `(channels,)`.
    """
    per_slice, scratch = spread(table, factors, 0), Scratch(factors.device)
    tiles = _kernels(table)
    done = tiles is not None and tiles.combine(targets, weights, per_slice, add=True)
    for bucket in () if done else table.buckets:
        wanted = [k for k, i in enumerate(bucket.weights) if targets[i] is not None]
        chosen = [weights[bucket.weights[k]] for k in wanted]
        into = [target for i in bucket.weights if (target := targets[i]) is not None]
        if chosen and _is_large(chosen[0]) and into[0].stride() == chosen[0].stride():
            _blockwise(chosen[0], into[0], bucket, per_slice, torch.add, _add_product_into, scratch)
        elif chosen:
            torch._foreach_addcmul_(into, chosen, _scales(bucket, per_slice, torch.add, wanted, scratch))
    for position, scale in _other_scales(weights, table, per_slice, torch.add).items():
        target = targets[position]
        if target is not None:
            target.add_(weights[position] * scale)


@_few_threads
def scale_(weights: Sequence[Tensor], needed: Sequence[bool], table: Table, factors: Tensor) -> None:
    """Multiply each weight by the product of its slices' factors, in place.

    Args:
        weights: The weights, detached.
        needed: Which of them to scale.
        table: Their table.
        factors: `(channels,)`.
    """
    per_slice, scratch = spread(table, factors, 1), Scratch(factors.device)
    tiles = _kernels(table)
    own = [weight if need else None for weight, need in zip(weights, needed, strict=True)]
    done = tiles is not None and tiles.combine(own, weights, per_slice, add=False, multiply=True)
    for bucket in () if done else table.buckets:
        wanted = [k for k, i in enumerate(bucket.weights) if needed[i]]
        chosen = [weights[bucket.weights[k]] for k in wanted]
        if chosen and _is_large(chosen[0]):
            _blockwise(chosen[0], chosen[0], bucket, per_slice, torch.mul, _multiply_into, scratch)
        elif chosen:
            torch._foreach_mul_(chosen, _scales(bucket, per_slice, torch.mul, wanted, scratch))
    for position, scale in _other_scales(weights, table, per_slice, torch.mul).items():
        if needed[position]:
            weights[position].mul_(scale)


def spread(table: Table, factors: Tensor, waste: float) -> Tensor:
    """Return the factor of each slice, `(slices,)`: that of its channel, or `waste` where it has none."""
    return torch.cat([factors.to(table.dtype), factors.new_full((1,), waste, dtype=table.dtype)])[table.index]


Join = Callable[..., Tensor]  # how the factor of a row and that of a column become one: torch.add or torch.mul
Combine = Callable[[Tensor, Tensor, Tensor], None]  # (target, weight, scale)


def _is_large(weight: Tensor) -> bool:
    return weight.numel() > block_size(weight.device)


def _scales(bucket: Bucket, per_slice: Tensor, join: Join, wanted: Sequence[int], scratch: Scratch) -> list[Tensor]:
    """Return the factors of the weights of a bucket, each broadcastable to the weight and in its memory order."""
    rows, columns = _row_factors(bucket, per_slice), _column_factors(bucket, per_slice)
    total = _joined(rows, columns, join, scratch)
    height, width = total.shape[1:]
    if width == 1:
        shaped = total.view(-1, height, *[1] * (len(bucket.shape) - 1))
    elif bucket.channels_last:
        shaped = total.view(-1, height, *bucket.shape[2:], bucket.shape[1]).permute(0, 1, 4, 2, 3)
    else:
        shaped = total.view(-1, height, *bucket.shape[1:])
    scales = shaped.unbind(0)
    return list(scales) if len(wanted) == len(scales) else [scales[k] for k in wanted]


def _joined(rows: Tensor | None, columns: Tensor | None, join: Join, scratch: Scratch) -> Tensor:
    """Join factors of rows `(weights, rows, 1)` and columns `(weights, 1, width)`, where there are both."""
    if rows is not None and columns is not None:
        shape = (len(rows), rows.shape[1], columns.shape[2])
        return join(rows, columns, out=scratch.take(shape, rows.dtype))  # (weights, rows, width)
    return _only(rows, columns)


def _only(rows: Tensor | None, columns: Tensor | None) -> Tensor:
    only = rows if rows is not None else columns
    assert only is not None  # every bucket has rows or columns
    return only


def _row_factors(bucket: Bucket, per_slice: Tensor) -> Tensor | None:
    """Return `(weights, rows, 1)`."""
    return None if bucket.rows is None else per_slice[bucket.rows].view(-1, bucket.shape[0], 1)


def _column_factors(bucket: Bucket, per_slice: Tensor) -> Tensor | None:
    """Return `(weights, 1, width)`: the factors of the columns, repeated over the kernel positions.

    Repeating them here, where it is cheap, lets every later loop run over contiguous memory.
    """
    if bucket.columns is None:
        return None
    columns, positions = bucket.shape[1], bucket.width // bucket.shape[1]
    factors = per_slice[bucket.columns].view(-1, 1, columns)
    if bucket.channels_last:
        return factors.repeat(1, 1, positions)
    return factors[..., None].expand(-1, 1, columns, positions).reshape(-1, 1, bucket.width)


def _multiply_into(target: Tensor, weight: Tensor, scale: Tensor) -> None:
    torch.mul(weight, scale, out=target)


def _add_product_into(target: Tensor, weight: Tensor, scale: Tensor) -> None:
    target.addcmul_(weight, scale)


def _blockwise(
    weight: Tensor,
    target: Tensor,
    bucket: Bucket,
    per_slice: Tensor,
    join: Join,
    combine: Combine,
    scratch: Scratch,
) -> None:
    """Combine one large weight and its factors into `target`, block by block."""
    rows, columns = _row_factors(bucket, per_slice), _column_factors(bucket, per_slice)
    matrix, into = _as_matrix(weight, bucket), _as_matrix(target, bucket)
    if rows is None or columns is None:
        combine(into, matrix, _only(rows, columns)[0])
        return
    height = max(1, block_size(weight.device) // bucket.width)
    buffer = scratch.take((height, bucket.width), weight.dtype)
    for out, block, own in zip(into.split(height), matrix.split(height), rows[0].split(height), strict=True):
        combine(out, block, join(own, columns[0], out=buffer[: len(block)]))


def _other_scales(weights: Sequence[Tensor], table: Table, per_slice: Tensor, join: Join) -> dict[int, Tensor]:
    """Return the factors of the weights of an unusual kind by position, each broadcastable to its weight."""
    scales: dict[int, Tensor] = {}
    for term, place in table.others:
        scale = reference_scale(weights[term.weight], term.dim, per_slice[place])
        scales[term.weight] = join(scales[term.weight], scale) if term.weight in scales else scale
    return scales


def reference_scale(weight: Tensor, dim: int, factors: Tensor) -> Tensor:
    """Return factors `(size of the axis,)` in a shape that broadcasts along axis `dim` of a weight."""
    shape = [1] * weight.ndim
    shape[dim] = -1
    return factors.reshape(shape)
