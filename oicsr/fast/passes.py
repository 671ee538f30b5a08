"""The passes over all weights of a model: energies, and combining every weight with the factors of its slices.

Each is done by Triton kernels where the table has them, by PyTorch operations on buckets where not, and one axis at a
time for weights of an unusual kind (other axes, half precision, gaps in memory).
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from oicsr.fast import blocks
from oicsr.fast.blocks import ADD, PRODUCT, SCALE, Operation
from oicsr.fast.table import Table, same_memory_order
from oicsr.reference import along_axis, slice_energies

P = ParamSpec("P")
R = TypeVar("R")


def _few_threads(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function work with one thread where more do not pay for the table among its arguments.

    Setting their number takes less than a microsecond. It is also the number that other threads begin with, so it is
    left alone where there are others.
    """

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        """Call the function, with one thread where its table says so."""
        count = torch.get_num_threads()
        settled = count == 1 or threading.active_count() > 1  # nothing to gain, or others to disturb
        if settled or not any(isinstance(argument, Table) and argument.serial for argument in args):
            return function(*args, **options)
        torch.set_num_threads(1)
        try:
            return function(*args, **options)
        finally:
            torch.set_num_threads(count)

    return call


@_few_threads
def energies(weights: Sequence[Tensor], table: Table) -> Tensor:
    """Return the energy of every channel, `(channels,)`; the weights are detached by the caller."""
    total = None if table.tiles is None else table.tiles.energies(weights)  # (channels + 1,)
    buckets = table.buckets if total is None else ()
    scratch = blocks.scratch_on(table.index.device)
    parts = [part for bucket in buckets for part in blocks.bucket_energies(weights, bucket, scratch)]
    parts += [slice_energies(weights[term.weight], term.dim) for term, _ in table.others]
    if total is None:
        total = torch.zeros(table.channels + 1, dtype=table.dtype, device=table.index.device)
    if parts:
        slices = torch.cat([part.flatten().to(table.dtype) for part in parts])  # (slices,)
        _add_in_order(total, table.index[len(table.index) - len(slices) :], slices)
    return total[:-1]


def _add_in_order(total: Tensor, index: Tensor, slices: Tensor) -> None:
    """Add slices to their channels in an order that is the same in every run, in place.

    On CUDA `index_add_` adds in whatever order its threads arrive; `index_put_` sorts first.
    """
    if total.device.type == "cpu":
        total.index_add_(0, index, slices)
    else:
        total.index_put_((index,), slices, accumulate=True)


@_few_threads
def products(weights: Sequence[Tensor], needed: Sequence[bool], table: Table, factors: Tensor) -> list[Tensor | None]:
    """Return each weight times the sum of its slices' factors; None where it is not needed.

    Args:
        weights: The weights.
        needed: Which products are wanted.
        table: Their table.
        factors: `(channels,)`.
    """
    return _combine(
        PRODUCT, [w if need else None for w, need in zip(weights, needed, strict=True)], weights, table, factors
    )


@_few_threads
def add_products_(targets: Sequence[Tensor | None], weights: Sequence[Tensor], table: Table, factors: Tensor) -> None:
    """Add each weight times the sum of its slices' factors to a tensor of its shape, in place.

    Args:
        targets: What to add to; None passes a weight over.
        weights: The weights.
        table: Their table.
        factors: `(channels,)`.
    """
    _combine(ADD, targets, weights, table, factors)


@_few_threads
def scale_(weights: Sequence[Tensor], needed: Sequence[bool], table: Table, factors: Tensor) -> None:
    """Multiply each weight by the product of its slices' factors, in place.

    Args:
        weights: The weights, detached.
        needed: Which of them to scale.
        table: Their table.
        factors: `(channels,)`.
    """
    _combine(SCALE, [w if need else None for w, need in zip(weights, needed, strict=True)], weights, table, factors)


def spread(table: Table, factors: Tensor, neutral: float) -> Tensor:
    """Return the factor of each slice, `(slices,)`: that of its channel, or `neutral` where it has none.

    Raises:
        ValueError: There is not one factor per channel.
    """
    if factors.shape != (table.channels,):
        raise ValueError(f"the factors have shape {tuple(factors.shape)}; there are {table.channels} channels")
    return torch.cat([factors.to(table.dtype), factors.new_full((1,), neutral, dtype=table.dtype)])[table.index]


def _combine(
    operation: Operation, targets: Sequence[Tensor | None], weights: Sequence[Tensor], table: Table, factors: Tensor
) -> list[Tensor | None]:
    """Combine each weight with the factors of its slices; the results, None where a target is.

    Args:
        operation: What to do.
        targets: Tensors of the weights' shapes, changed in place unless the results are new; None passes a weight over.
        weights: The weights.
        table: Their table.
        factors: `(channels,)`.
    """
    per_slice, scratch = spread(table, factors, operation.neutral), blocks.scratch_on(factors.device)
    done: dict[int, Tensor] = {}
    if table.tiles is not None:
        done = _by_kernels(operation, targets, weights, table, per_slice)
        targets = [None if i in done else target for i, target in enumerate(targets)]
    for bucket in table.buckets:
        done |= blocks.combine_bucket(operation, targets, weights, bucket, per_slice, scratch)
    for position, factor in _other_factors(operation, weights, table, per_slice).items():
        target, weight = targets[position], weights[position]
        if target is not None:
            product = weight * factor
            done[position] = result = torch.empty_like(weight) if operation.fresh else target
            if operation is ADD:
                result.add_(product)
            else:
                result.copy_(product)
    return [done.get(i) for i in range(len(weights))]


def _by_kernels(
    operation: Operation, targets: Sequence[Tensor | None], weights: Sequence[Tensor], table: Table, per_slice: Tensor
) -> dict[int, Tensor]:
    """Combine by the Triton kernels what they can, and return the results by position.

    A target that is not like its weight in memory is left to PyTorch; it does not turn the kernels off for the others.
    """
    assert table.tiles is not None
    results: list[Tensor | None] = [None] * len(weights)
    for i in table.tiles.weights:
        target, weight = targets[i], weights[i]
        if target is not None and operation.fresh:
            results[i] = torch.empty_like(weight)
        elif target is not None and target.dtype is weight.dtype and target.device == weight.device:
            results[i] = target if target.shape == weight.shape and same_memory_order(target, weight) else None
    add, multiply = operation is ADD, operation is SCALE
    if not table.tiles.combine(results, weights, per_slice, add=add, multiply=multiply):
        return {}
    return {i: result for i, result in enumerate(results) if result is not None}


def _other_factors(
    operation: Operation, weights: Sequence[Tensor], table: Table, per_slice: Tensor
) -> dict[int, Tensor]:
    """Return the factors of the weights of an unusual kind by position, each broadcastable to its weight."""
    factors: dict[int, Tensor] = {}
    for term, place in table.others:
        own = along_axis(per_slice[place], term.dim, weights[term.weight].ndim)
        factors[term.weight] = operation.join(factors[term.weight], own) if term.weight in factors else own
    return factors
