"""Operators that give each element another index: reshape, permute, expand, concatenate."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from oicsr.rules.ids import on_axis, pad_left, reshape_ids, varying
from oicsr.rules.registry import (
    Result,
    Value,
    argument,
    aten,
    follows,
    operator_name,
    register_rule,
    shape_of,
    source_of,
)
from oicsr.rules.tracer import Tracer

RESHAPES = """
    flatten view view_as reshape reshape_as unflatten _unsafe_view view_copy squeeze unsqueeze _reshape_alias
"""


@follows(*aten(RESHAPES))
def reshape(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """Each element keeps its channel under its new index.

    Where the channel axis is split into `(groups, channels / groups)`, the groups are tied to one another, so that
    they stay equally large, and the split in the same place, whatever is removed. The axis of the groups then holds
    one channel alike, and may be summed or normalised over (the radix of split attention).
    """
    result = reshape_ids(ids, shape_of(source_of(node)), shape_of(node))
    if len(varying(result)) > len(varying(ids)):
        tracer.cuts_by_number = True
        for axis in varying(result)[:-1]:
            tracer.tie_pieces(result, axis, 1)
            result = result.narrow(axis, 0, 1)
    return result


@follows(*aten("permute transpose t swapaxes movedim"))
def permute(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """Moves axes, and the channels with them."""
    name, arguments = operator_name(node), node.args[1:]
    if name == "aten::permute":
        return ids.permute(*arguments)  # type: ignore[arg-type]
    if name == "aten::movedim":
        return torch.movedim(ids, *arguments)  # type: ignore[arg-type]
    return ids.t() if name == "aten::t" else ids.transpose(*arguments)  # type: ignore[arg-type]


@follows(*aten("expand broadcast_to expand_as"))
def expand(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """Repeats axes of size 1, which hold no channels."""
    return ids.reshape(pad_left(ids.shape, len(shape_of(node))))


@register_rule(*aten("cat concat concatenate"))
def concatenate(tracer: Tracer, node: fx.Node) -> Result:
    """Along the channel axis the channels stand behind one another; along any other axis they are tied."""
    nodes: list[fx.Node] = list(argument(node, 0))
    axis = int(argument(node, 1, 0)) % len(shape_of(node))
    parts = [tracer.ids(n) for n in nodes]
    if all(part is None for part in parts):
        return Value(None, tracer.reason(nodes[0]))
    if not any(part is not None and part.shape[axis] > 1 for part in parts):
        return _tie(tracer, nodes, parts)
    return Value(torch.cat(_aligned(tracer, nodes, parts, axis), axis))


def _aligned(tracer: Tracer, nodes: list[fx.Node], parts: list[Tensor | None], axis: int) -> list[Tensor]:
    """Give every part ids along `axis` (fixed ones where it has none) and one common shape on the other axes."""
    filled = []
    for source, part in zip(nodes, parts, strict=True):
        size = shape_of(source)[axis]
        if part is None or part.shape[axis] != size:
            if part is not None:
                tracer.sets.fix(part, "is concatenated along an axis that holds other channels")
            part = on_axis(tracer.sets.new_fixed(size, tracer.reason(source)), axis, len(shape_of(source)))
        filled.append(part)
    common = [max(part.shape[k] for part in filled) for k in range(filled[0].ndim)]
    return [part.expand([*common[:axis], part.shape[axis], *common[axis + 1 :]]) for part in filled]


def _tie(tracer: Tracer, nodes: list[fx.Node], parts: list[Tensor | None]) -> Value:
    known = [part for part in parts if part is not None]
    first = max(known, key=lambda part: part.numel())
    for source, part in zip(nodes, parts, strict=True):
        if part is None or part.shape != first.shape:
            tracer.sets.fix(first, tracer.reason(source))
            if part is not None:
                tracer.sets.fix(part, tracer.reason(source))
        else:
            tracer.sets.join(first, part)
    return Value(first)


@register_rule("aten::stack")
def stack(tracer: Tracer, node: fx.Node) -> Result:
    """Puts values behind one another on a new axis; their channels are tied."""
    nodes: list[fx.Node] = list(argument(node, 0))
    axis = int(argument(node, 1, 0)) % len(shape_of(node))
    parts = [tracer.ids(n) for n in nodes]
    if all(part is None for part in parts):
        return Value(None, tracer.reason(nodes[0]))
    tied = _tie(tracer, nodes, parts)
    return Value(None if tied.ids is None else tied.ids.unsqueeze(axis), tied.reason)
