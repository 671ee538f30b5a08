"""Operators that cut an axis into pieces or pick from it."""

from __future__ import annotations

from torch import Tensor, fx

from oicsr.rules.registry import Result, Value, argument, aten, follows, gives_many, operator_name, shape_of
from oicsr.rules.tracer import Tracer


@follows(*aten("split split_with_sizes chunk slice narrow select unbind tensor_split"))
def cut(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """Cuts an axis into pieces.

    Equal pieces of the channel axis are tied to one another, so that a cut in halves stays a cut in halves whatever
    is removed; any other cut of the channel axis, whose position is a number in the code, fixes its channels.
    """
    many = gives_many(node)
    shapes = [tuple(v.shape) for v in node.meta["val"]] if many else [shape_of(node)]
    values = [Value(piece) for piece in _pieces(tracer, node, ids, shapes)]
    return values if many else values[0]


def _pieces(tracer: Tracer, node: fx.Node, ids: Tensor, shapes: list[tuple[int, ...]]) -> list[Tensor]:
    name = operator_name(node).removeprefix("aten::")
    axis = int(argument(node, 1 if name in ("slice", "narrow", "select", "unbind") else 2, 0)) % ids.ndim
    dropped = name in ("select", "unbind")
    if ids.shape[axis] == 1:
        return [ids.squeeze(axis) if dropped else ids for _ in shapes]
    if dropped:
        tracer.opaque(node, "picks single channels")
        return [ids.select(axis, i) for i in range(len(shapes))]
    sizes = [shape[axis] for shape in shapes]
    start = int(argument(node, 2, 0) or 0) if name in ("slice", "narrow") else 0
    start %= ids.shape[axis]
    step = int(argument(node, 4, 1)) if name == "slice" else 1
    if sizes[0] == ids.shape[axis]:
        return [ids] * len(shapes)
    if len(set(sizes)) > 1 or ids.shape[axis] % sizes[0] or start % sizes[0] or step != 1:
        tracer.opaque(node, "cuts the channel axis into unequal pieces")
    else:
        tracer.tie_pieces(ids, axis, sizes[0])
        tracer.cuts_by_number |= name != "chunk"
    starts = [start + sum(sizes[:i]) for i in range(len(sizes))]
    if step != 1:
        return [ids.narrow(axis, 0, sizes[0])]  # fixed above
    return [ids.narrow(axis, begin, size) for begin, size in zip(starts, sizes, strict=True)]
