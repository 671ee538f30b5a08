"""The passes by PyTorch operations, for buckets of equal weights, in blocks that stay in a core's own cache.

A weight is read from memory once for its energies and once for its gradient, and no temporary grows with the model.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from oicsr.fast.table import Bucket, block_size, same_memory_order


class Scratch(threading.local):
    """Memory for temporaries, used again by every block: on a CPU it stays in the cache.

    Each thread has its own.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory: dict[torch.dtype, Tensor] = {}

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return uninitialised memory, valid until the next call."""
        size = math.prod(shape)
        memory = self._memory.get(dtype)
        if memory is None or memory.numel() < size:
            room = max(size, block_size(self._device)) if self._device.type == "cpu" else size
            with torch.inference_mode(False):  # a tensor made in that mode could not be written to outside of it
                memory = self._memory[dtype] = torch.empty(room, dtype=dtype, device=self._device)
        return memory[:size].view(shape)


# 2 MiB per thread and type that stay: where freed memory goes back to the system, getting it again takes as long as
# half of a pass over ResNet-56
_ON_CPU = Scratch(torch.device("cpu"))


def scratch_on(device: torch.device) -> Scratch:
    """Return memory for the temporaries of one pass."""
    return _ON_CPU if device.type == "cpu" else Scratch(device)


# ----------------------------------------------------------------------------------------------------------------
# energies
# ----------------------------------------------------------------------------------------------------------------


def bucket_energies(weights: Sequence[Tensor], bucket: Bucket, scratch: Scratch) -> list[Tensor]:
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
# combining every weight with the factors of its slices
# ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Operation:
    """What is done with a weight and the factors of its rows and columns.

    Attributes:
        join: How the factor of a row and that of a column become one: `torch.add` or `torch.mul`.
        neutral: The factor of a slice that belongs to no channel.
        fresh: Whether the results are new tensors; otherwise the targets are changed in place.
        one: `(target, weight, factors)`: combine one block into a target.
        many: `(targets, weights, factors)`: combine many weights, and return the results where they are new.
    """

    join: Callable[..., Tensor]
    neutral: float
    fresh: bool
    one: Callable[[Tensor, Tensor, Tensor], object]
    many: Callable[[list[Tensor], list[Tensor], list[Tensor]], Any]


def _multiply(target: Tensor, weight: Tensor, factors: Tensor) -> None:
    torch.mul(weight, factors, out=target)


PRODUCT = Operation(torch.add, 0.0, True, _multiply, lambda into, w, f: torch._foreach_mul(w, f))
ADD = Operation(torch.add, 0.0, False, Tensor.addcmul_, lambda into, w, f: torch._foreach_addcmul_(into, w, f))
SCALE = Operation(torch.mul, 1.0, False, _multiply, lambda into, w, f: torch._foreach_mul_(into, f))


def combine_bucket(
    operation: Operation,
    targets: Sequence[Tensor | None],
    weights: Sequence[Tensor],
    bucket: Bucket,
    per_slice: Tensor,
    scratch: Scratch,
) -> dict[int, Tensor]:
    """Combine the weights of a bucket, and return the results by position.

    Args:
        operation: What to do.
        targets: Tensors of the weights' shapes, changed in place unless the results are new; None passes a weight over.
        weights: All weights.
        bucket: Which of them to combine.
        per_slice: The factor of each slice, `(slices,)`.
        scratch: Memory for temporaries.
    """
    into = {i: target for i in bucket.weights if (target := targets[i]) is not None}
    if not into:
        return {}
    first = next(iter(into))
    large = weights[first].numel() > block_size(weights[first].device)
    if large and same_memory_order(into[first], weights[first]):  # a large weight is a bucket of its own
        result = torch.empty_like(into[first]) if operation.fresh else into[first]
        _blockwise(operation, result, weights[first], bucket, per_slice, scratch)
        return {first: result}
    factors = _factors(operation, bucket, per_slice, scratch)
    wanted = [factor for i, factor in zip(bucket.weights, factors, strict=True) if i in into]
    results = operation.many(list(into.values()), [weights[i] for i in into], wanted)
    return dict(zip(into, results, strict=True)) if operation.fresh else into


def _factors(operation: Operation, bucket: Bucket, per_slice: Tensor, scratch: Scratch) -> Sequence[Tensor]:
    """Return the factors of the weights of a bucket, each broadcastable to the weight and in its memory order."""
    rows, columns = _row_factors(bucket, per_slice), _column_factors(bucket, per_slice)
    if rows is not None and columns is not None:
        shape = (len(rows), rows.shape[1], columns.shape[2])
        total = operation.join(rows, columns, out=scratch.take(shape, rows.dtype))  # (weights, rows, width)
    else:
        total = _only(rows, columns)
    height, width = total.shape[1:]
    if width == 1:
        shaped = total.view(-1, height, *[1] * (len(bucket.shape) - 1))
    elif bucket.channels_last:
        shaped = total.view(-1, height, *bucket.shape[2:], bucket.shape[1]).permute(0, 1, 4, 2, 3)
    else:
        shaped = total.view(-1, height, *bucket.shape[1:])
    return shaped.unbind(0)


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


def _blockwise(
    operation: Operation, target: Tensor, weight: Tensor, bucket: Bucket, per_slice: Tensor, scratch: Scratch
) -> None:
    """Combine one large weight with its factors into `target`, block by block."""
    rows, columns = _row_factors(bucket, per_slice), _column_factors(bucket, per_slice)
    matrix, into = _as_matrix(weight, bucket), _as_matrix(target, bucket)
    if rows is None or columns is None:
        operation.one(into, matrix, _only(rows, columns)[0])
        return
    height = max(1, block_size(weight.device) // bucket.width)
    buffer = scratch.take((height, bucket.width), weight.dtype)
    for out, block, own in zip(into.split(height), matrix.split(height), rows[0].split(height), strict=True):
        operation.one(out, block, operation.join(own, columns[0], out=buffer[: len(block)]))
