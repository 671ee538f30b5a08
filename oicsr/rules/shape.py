"""Operators that give each element another index: reshape, permute, expand, repeat, concatenate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx

from oicsr.rules.broadcasting import Operand, combine
from oicsr.rules.calls import argument, axis_of, operator_name, shape_of, source_of
from oicsr.rules.ids import on_axis, pad_left, reshape_ids, varying
from oicsr.rules.names import EXPANSIONS, JOINED, RESHAPES, TURNS
from oicsr.rules.registry import Result, Value, aten, follows, register_rule
from oicsr.rules.tracer import Tracer


@follows(*RESHAPES)
def reshape(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor:
    """Each element keeps its channel under its new index.

    Where the channel axis is split, as in `(groups, channels / groups)` or `(channels, height, width)`, what reads the
    value says along which of the new axes slices may go; see `Tracer.add_split`.
    """
    result = reshape_ids(ids, shape_of(source_of(node)), shape_of(node))
    if len(varying(result)) > len(varying(ids)):
        tracer.add_split(result, left_open(node))
    return result


def left_open(node: fx.Node) -> int | None:
    """Return the axis whose size the code leaves open (-1) in a reshape, if it does."""
    name = operator_name(node).removeprefix("aten::")
    sizes = argument(node, 2 if name == "unflatten" else 1)
    if name not in ("view", "reshape", "unflatten", "_unsafe_view") or -1 not in sizes:
        return None
    return int(sizes.index(-1)) + (axis_of(node, len(shape_of(source_of(node)))) if name == "unflatten" else 0)


@follows(*TURNS)
def permute(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor:
    """Moves axes, and the channels with them."""
    name, arguments = operator_name(node).removeprefix("aten::"), node.args[1:]
    if name == "permute":
        return ids.permute(argument(node, "dims"))
    if name in ("movedim", "moveaxis"):
        return torch.movedim(ids, argument(node, "source"), argument(node, "destination"))
    if name in ("mT", "adjoint"):
        return ids.mT
    if name == "numpy_T":
        return ids.permute(*reversed(range(ids.ndim)))
    return ids.t() if name == "t" else ids.transpose(*arguments)  # type: ignore[arg-type]


@follows("aten::rot90")
def rotate(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor:
    """Turns a plane of two axes by right angles, and the channels with them."""
    return ids.rot90(argument(node, 1), argument(node, 2))


@follows(*EXPANSIONS)
def expand(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor:
    """Repeats axes of size 1, which hold no channels."""
    return ids.reshape(pad_left(ids.shape, len(shape_of(node))))


@follows(*aten("repeat tile"))
def repeat(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor:
    """Repeats the value along each axis; the copies of a channel are that channel."""
    counts = pad_left(argument(node, 1), len(shape_of(node)))
    ids = ids.reshape(pad_left(ids.shape, len(counts)))
    return ids.repeat([count if size > 1 else 1 for count, size in zip(counts, ids.shape, strict=True)])


@follows("aten::repeat_interleave")
def repeat_elements(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """Repeats each slice of an axis; the copies of a channel are that channel."""
    count, form = argument(node, 1), "repeats slices in a form without a rule"
    if argument(node, "dim") is None:
        return tracer.opaque(node, form)
    axis = axis_of(node, ids.ndim)
    if ids.shape[axis] == 1:
        return ids
    return ids.repeat_interleave(count, axis) if isinstance(count, int) else tracer.opaque(node, form)


@follows("aten::diagonal")
def diagonal(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """Takes the diagonal of a plane of two axes that hold no channels; it becomes the last axis."""
    rank = ids.ndim
    axes = [axis_of(node, rank, name, default) for name, default in (("dim1", 0), ("dim2", 1))]
    if any(ids.shape[axis] > 1 for axis in axes):
        return tracer.opaque(node, "takes the diagonal of channels")
    return ids.diagonal(0, *axes)


@follows("aten::flip")
def flip(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor:
    """Turns axes round, and the channels with them."""
    return ids.flip(argument(node, "dims"))


@register_rule(*JOINED)
def concatenate(tracer: Tracer, node: fx.Node) -> Result:
    """Along the channel axis, channels are concatenated; along any other axis they are tied."""
    nodes: list[fx.Node] = [n for n in argument(node, 0) if 0 not in shape_of(n)] or list(argument(node, 0))
    rank = len(shape_of(node))
    axis = axis_of(node, rank)
    parts = [Operand.of(tracer, source, rank) for source in nodes]
    if all(part.ids is None for part in parts):
        wide = [source for source in nodes if shape_of(source)[axis] > 1]  # not a column of ones
        states = rank != 3 and axis == 1 and any(tracer.is_uniform(source, axis) for source in wide)
        states &= axis not in tracer.evaluated.differing(node)
        if not states:  # of a recurrent cell, which is joined to its hidden channels later
            reasons = [part.reason for part in parts]
            return Value(None, next((reason for reason in reasons if reason not in tracer.uniform), reasons[0]))
        return Value(torch.cat(_aligned(tracer, node, nodes, parts, axis), axis))
    along = [axis in part.axes for part in parts]
    if all(along) and len({tuple(part.axes) for part in parts}) > 1:
        parts = [_along(tracer, part, axis) for part in parts]
    beyond = [sorted(set(part.axes) - {axis}) for part in parts if part.axes]
    if any(along) and all(axes == beyond[0] for axes in beyond):
        parts = [_spread(part, axis, shape_of(source)[axis]) for part, source in zip(parts, nodes, strict=True)]
        return Value(torch.cat(_aligned(tracer, node, nodes, parts, axis), axis))
    return _tied(tracer, node, parts, axis)


def _along(tracer: Tracer, part: Operand, axis: int) -> Operand:
    """Tie what a value holds for one slice of `axis`: a row of a table, or what was split into several axes."""
    if part.ids is None or axis not in part.axes:
        return part
    ids = part.ids
    for other in set(part.axes) - {axis}:
        ids = tracer.tie_axis(ids, other)
    return replace(part, ids=ids)


def _spread(part: Operand, axis: int, size: int) -> Operand:
    """Give all slices of an axis the channels on others: what of a head was rotated goes with it as a whole."""
    if part.ids is None or not part.axes or axis in part.axes:
        return part
    return replace(part, ids=part.ids.expand(*part.ids.shape[:axis], size, *part.ids.shape[axis + 1 :]))


def _aligned(
    tracer: Tracer, node: fx.Node, sources: Sequence[fx.Node], parts: Sequence[Operand], axis: int
) -> list[Tensor]:
    """Give every part ids along `axis` (fixed ones where it has none) and one common shape on the other axes."""
    filled = []
    for part, source in zip(parts, sources, strict=True):
        ids, size = part.ids, shape_of(source)[axis]
        if ids is None and tracer.is_uniform(source, axis):
            ids = on_axis(tracer.sets.new(size), axis, len(part.shape))
        if ids is None or ids.shape[axis] != size:
            if ids is not None:
                reason = tracer.notable(f"{tracer.where(node)} puts it behind channels that lie on another axis")
                tracer.sets.fix(ids, reason)
            ids = on_axis(tracer.sets.new_fixed(size, part.reason), axis, len(part.shape))
        filled.append(ids)
    common = [max(ids.shape[k] for ids in filled) for k in range(filled[0].ndim)]
    return [ids.expand([*common[:axis], ids.shape[axis], *common[axis + 1 :]]) for ids in filled]


def _tied(tracer: Tracer, node: fx.Node, parts: Sequence[Operand], axis: int | None) -> Value:
    """Tie the channels of values that are concatenated along `axis`, which holds none (None: a new axis)."""
    flat = []
    for part in parts:
        ids = part.ids
        if ids is not None and axis is not None:
            kept = tracer.whole(ids, [axis])
            if kept is None:
                tracer.sets.fix(ids, tracer.notable(f"{tracer.where(node)} puts other channels behind it"))
            ids = kept
        shape = [1 if k == axis else size for k, size in enumerate(part.shape)]
        flat.append(replace(part, ids=ids, shape=shape))
    return combine(tracer, node, flat)[0]


@register_rule("aten::stack")
def stack(tracer: Tracer, node: fx.Node) -> Result:
    """Stacks values along a new axis; their channels are tied."""
    nodes: list[fx.Node] = list(argument(node, 0))
    rank = len(shape_of(node)) - 1
    tied = _tied(tracer, node, [Operand.of(tracer, source, rank) for source in nodes], None)
    return tied if tied.ids is None else Value(tied.ids.unsqueeze(axis_of(node, rank + 1)))
