"""Operators that put values at places of another one: `out[:, t] = h`, `index_add_`, `scatter_add_`, `index_put_`.

What is written into is tied to what is written. Where it is one number everywhere (`torch.zeros(batch, steps, width)`),
it gets the channels of the first values that are written into it, or into a view of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx

from oicsr.rules.broadcasting import Operand, combine, narrow_shape
from oicsr.rules.calls import argument, axis_of, operator_name, shape_of, source_of, start_of
from oicsr.rules.registry import Result, Value, aten, register_rule
from oicsr.rules.tracer import Tracer

PICKS = "aten::select"
PIECES = frozenset(aten("slice narrow"))  # that keep their axis


@register_rule("aten::copy_")
def write(tracer: Tracer, node: fx.Node) -> Result:
    """Puts values into a whole value or a view of one."""
    return _put(tracer, node, Operand.of(tracer, argument(node, 1), len(shape_of(node))), set())


@register_rule(*aten("index_add index_copy"))
def put_slices(tracer: Tracer, node: fx.Node) -> Result:
    """Puts slices at places along an axis that holds no channels (messages, to the nodes of a graph)."""
    rank = len(shape_of(node))
    return _put(tracer, node, Operand.of(tracer, argument(node, 3), rank), {axis_of(node, rank)}, argument(node, 2))


@register_rule(*aten("scatter scatter_add scatter_reduce"))
def scatter(tracer: Tracer, node: fx.Node) -> Result:
    """Puts each element at a place along an axis that holds no channels; a number may go anywhere."""
    rank, source = len(shape_of(node)), argument(node, 3)
    axes, index = {axis_of(node, rank)}, argument(node, 2)
    written = Operand.of(tracer, source, rank) if isinstance(source, fx.Node) else Operand(None, [1] * rank)
    return _put(tracer, node, written, axes, index)


@register_rule("aten::index_fill")
def fill_slices(tracer: Tracer, node: fx.Node) -> Result:
    """Puts one number at places along an axis that holds no channels."""
    rank = len(shape_of(node))
    return _put(tracer, node, Operand(None, [1] * rank), {axis_of(node, rank)}, argument(node, 2))


@register_rule(*aten("select_scatter slice_scatter"))
def put_piece(tracer: Tracer, node: fx.Node) -> Result:
    """Gives a copy in which a piece along an axis that holds no channels, or a slice of it, is another one."""
    rank = len(shape_of(node))
    axis = axis_of(node, rank, default=0)
    if operator_name(node) == "aten::slice_scatter":
        return _put(tracer, node, Operand.of(tracer, argument(node, 1), rank), {axis})
    written = Operand.of(tracer, argument(node, 1), rank - 1)
    shape = [*written.shape[:axis], 1, *written.shape[axis:]]
    ids = None if written.ids is None else written.ids.unsqueeze(axis)
    return _put(tracer, node, replace(written, ids=ids, shape=shape), {axis})


@register_rule("aten::index_put")
def put_by_index(tracer: Tracer, node: fx.Node) -> Result:
    """Puts values at indices, or where masks say, along axes that hold no channels."""
    rank, entries = len(shape_of(node)), list(argument(node, 1))
    axes, inner = _indexed(entries)
    rest: list[int | None] = [axis for axis in range(rank) if axis not in axes]
    first = axes[0] if axes == list(range(axes[0], axes[-1] + 1)) else 0
    places = [*rest[:first], *[None] * inner, *rest[first:]]  # the axes of what is written
    written = Operand.of(tracer, argument(node, 2), len(places))
    ids = None
    if written.ids is not None:
        ids = tracer.whole(written.ids, [position for position, axis in enumerate(places) if axis is None])
        if ids is None:
            return tracer.opaque(node, "puts different channels at places")
    sizes = {axis: position for position, axis in enumerate(places) if axis is not None}
    shape = [written.shape[sizes[axis]] if axis in sizes else 1 for axis in range(rank)]
    if ids is not None:
        ids = ids.reshape([ids.shape[sizes[axis]] if axis in sizes else 1 for axis in range(rank)])
    whole = replace(written, ids=ids, shape=shape)
    return _put(tracer, node, whole, set(axes), *[entry for entry in entries if entry is not None])


@register_rule("aten::masked_scatter")
def put_by_mask(tracer: Tracer, node: fx.Node) -> Result:
    """Puts values one after the other where a mask says, which says the same of all channels.

    Images among the tokens of a text: the channels lie on the last axis of what is written and of the whole.
    """
    shape, source = shape_of(node), argument(node, 2)
    rank, width = len(shape), shape_of(source)[-1:]
    written = Operand.of(tracer, source, max(rank, len(shape_of(source))))
    last = len(written.shape) - 1
    if width != shape[-1:] or narrow_shape(argument(node, 1))[-1:] != [1] or set(written.axes) - {last}:
        return tracer.opaque(node, "puts values one after the other, whichever channels they belong to")
    ids = None if written.ids is None else written.ids.reshape([1] * (rank - 1) + [-1])
    whole = replace(written, ids=ids, shape=[1] * (rank - 1) + written.shape[-1:])
    return _put(tracer, node, whole, set(range(rank - 1)), argument(node, 1))


def _indexed(entries: Sequence[fx.Node | None]) -> tuple[list[int], int]:
    """Return the axes that indices or masks are given for, and how many axes these give in their place."""
    axes, inner, after = list[int](), 0, 0
    for entry in entries:
        count = 1
        if entry is not None:
            value = entry.meta["val"]
            is_mask = value.dtype in (torch.bool, torch.uint8)
            count, inner = (value.ndim, max(inner, 1)) if is_mask else (1, max(inner, value.ndim))
            axes += range(after, after + count)
        after += count
    return axes, inner


def _put(tracer: Tracer, node: fx.Node, written: Operand, axes: set[int], *places: fx.Node) -> Result:
    """Tie what is written, which lies like the whole, to the whole; `axes`: those along which places are given."""
    for place in places:
        tracer.fix(place, tracer.notable(f"{tracer.where(node)} takes places from it"))
    whole = Operand.of(tracer, source_of(node), len(shape_of(node)))
    parts = []
    for part in (whole, written):
        kept = None if part.ids is None else tracer.whole(part.ids, axes)
        if part.ids is not None and kept is None:
            return tracer.opaque(node, "puts values at places along the channels")
        parts.append(replace(part, ids=kept, shape=[1 if k in axes else size for k, size in enumerate(part.shape)]))
    result = combine(tracer, node, parts)[0]
    if operator_name(node).endswith("_"):
        _note_written(tracer, node, result)
    return result


def _note_written(tracer: Tracer, node: fx.Node, result: Value) -> None:
    """Give the channels of what is written to the numbers that it is written into, through views of these."""
    view, ids = source_of(node), result.ids
    while operator_name(view) in {PICKS, *PIECES}:
        shape = shape_of(source_of(view))
        axis = axis_of(view, len(shape), default=0)
        if ids is not None:
            ids = ids.unsqueeze(axis) if operator_name(view) == PICKS else _around(tracer, view, ids, axis, shape[axis])
        view = source_of(view)
    if tracer.ids(view) is None and tracer.reason(view) in tracer.uniform:
        tracer.values[view] = Value(ids, result.reason)


def _around(tracer: Tracer, view: fx.Node, ids: Tensor, axis: int, size: int) -> Tensor | None:
    """Return the channels of a whole of which a piece along an axis has the channels `ids`."""
    if ids.shape[axis] in (1, size):
        return ids
    start, step = start_of(view, size), int(argument(view, "step", 1))
    shape = [*ids.shape[:axis], size, *ids.shape[axis + 1 :]]
    labels = tracer.sets.new(math.prod(shape)).reshape(shape)
    places = torch.arange(size)[start::step][: ids.shape[axis]]
    tracer.sets.join(labels.index_select(axis, places), ids)
    return labels
