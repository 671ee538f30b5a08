"""Means over channels that layers read, as in spatial attention and cost volumes: columns make up for the width.

Where m of n channels stay, and those that went were zero, a mean over them is n / m times what it was. Where nothing
but layers reads it, through what keeps such a factor (concatenation, pooling, ReLU), the columns that read it are
multiplied by m / n.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor, fx

from oicsr.rules.calls import argument, axis_of, module_path, operator_name, shape_of, source_of
from oicsr.rules.names import AFFINE, DIVISIONS, JOINED, MULTIPLICATIONS, UNCHANGED
from oicsr.rules.notes import Norm
from oicsr.rules.registry import Value, aten
from oicsr.rules.spatial import SPATIAL
from oicsr.rules.tracer import Tracer

OVER = "reduces over the channels"
SAME = frozenset(  # operators that scale with their input: f(c·x) = c·f(x) for c > 0
    [*UNCHANGED, *aten("dropout feature_dropout relu relu_ leaky_relu leaky_relu_ neg")]
)
POOLS = frozenset(aten(SPATIAL))


@dataclass(frozen=True)
class _Part:
    """Where a mean lies in a value: at `places` along an axis; everywhere where that is None."""

    node: fx.Node
    axis: int | None = None
    places: tuple[int, ...] = ()


def average(tracer: Tracer, node: fx.Node, ids: Tensor) -> Value | None:
    """Note a mean over channels; return what it gives, which holds none, where layers alone read it."""
    path, columns = module_path(node), list[Norm]()
    waiting = [_Part(node)]
    while waiting:
        part = waiting.pop()
        for user in part.node.users:
            column = _column(tracer, user, part, path, ids.flatten())
            found = None if column is not None else _passed_on(user, part)
            if column is None and found is None:
                return None
            columns += [] if column is None else [column]
            waiting += [] if found is None else [found]
    if not columns or not tracer.doubts.allow(tracer.sets, node, ids):
        return None
    tracer.norms += columns
    return Value(None, tracer.notable(f"{tracer.where(node)} {OVER}"))


def _column(tracer: Tracer, layer: fx.Node, part: _Part, path: str, channels: Tensor) -> Norm | None:
    """Return the columns of a layer that read a mean; None of what is no such layer."""
    name = operator_name(layer)
    if name not in AFFINE or source_of(layer) is not part.node or int(argument(layer, "groups", 1)) > 1:
        return None
    weight, shape = argument(layer, 1), shape_of(part.node)
    axis = len(shape) - (1 if name == "aten::linear" else len(shape_of(weight)) - 1)
    if weight not in tracer.parameters or part.axis not in (None, axis) or part.node in layer.args[1:]:
        return None
    places = tuple(range(shape[axis])) if part.axis is None else part.places
    return Norm(path, tracer.parameters[weight], channels, "", 1, power=1.0, slices=places)


def _passed_on(user: fx.Node, part: _Part) -> _Part | None:
    """Return where a mean lies in what an operator makes of it; None where that does not keep a factor."""
    if user.op != "call_function":
        return None
    name, rank = operator_name(user), len(shape_of(part.node))
    if name in JOINED or name == "aten::stack":
        return _joined(user, part, stacked=name not in JOINED)
    if part.node is not source_of(user) or part.node in user.args[1:]:
        return None
    if name in SAME or (name in MULTIPLICATIONS | DIVISIONS and not isinstance(argument(user, 1), fx.Node)):
        return replace(part, node=user)
    if name in POOLS and (part.axis is None or part.axis < rank - int(re.findall(r"(\d)d", name)[0])):
        return replace(part, node=user)
    if name == "aten::unsqueeze":
        new = axis_of(user, rank + 1)
        return _Part(user, None if part.axis is None else part.axis + (new <= part.axis), part.places)
    return replace(part, node=user) if part.axis is None and name in aten("squeeze view reshape flatten") else None


def _joined(user: fx.Node, part: _Part, *, stacked: bool) -> _Part | None:
    """Return where a mean lies among values that are concatenated."""
    axis = axis_of(user, len(shape_of(user)))
    if part.axis is not None and (stacked or part.axis != axis):
        return None

    def places() -> Iterator[int]:
        """Yield the places of all that it is put at."""
        start = 0
        for source in argument(user, 0):
            size = 1 if stacked else shape_of(source)[axis]
            if source is part.node:
                yield from (start + place for place in (range(size) if part.axis is None else part.places))
            start += size

    return _Part(user, axis, tuple(places()))
