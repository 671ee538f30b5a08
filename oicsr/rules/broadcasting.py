"""What elementwise operators make of the channels of their operands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from oicsr.rules.calls import axis_of, gives_many, operator_name, shape_of, tensor_inputs
from oicsr.rules.ids import pad_left, varying
from oicsr.rules.names import ELEMENTWISE, JOINED, SPREADING
from oicsr.rules.pairs import pair_of
from oicsr.rules.registry import Value
from oicsr.rules.tracer import Tracer

CROSSED = "is combined with channels on another axis"
MOST_CALLS = 16  # between the operator that spreads a value and the one that combines it


@dataclass(frozen=True)
class Operand:
    """An operand of an elementwise operator, of the rank of the result.

    Attributes:
        ids: Its channels, or None where none are followed.
        shape: Its shape, with ones in front.
        reason: Why no channels are followed.
        is_activation: Whether it depends on the model's input.
        pair: In the place of `ids`, those of a value with channels on two axes; elementwise operators meet none.
        is_buffer: Whether it is a buffer of the model, which nothing learns.
    """

    ids: Tensor | None
    shape: list[int]
    reason: str = ""
    is_activation: bool = True
    pair: tuple[Tensor, ...] = ()
    is_buffer: bool = False

    @staticmethod
    def of(tracer: Tracer, source: fx.Node, rank: int) -> Operand:
        """Return the value at `source` as an operand."""
        ids, pair = tracer.ids(source), pair_of(tracer, source)
        padded = None if ids is None else ids.reshape(pad_left(ids.shape, rank))
        shape, reason = pad_left(shape_of(source), rank), tracer.reason(source)
        if not pair and (ids is None or not varying(ids)):
            shape = pad_left(narrow_shape(source), rank)
            if reason in tracer.uniform:  # it stands in no channel's way where it is one number along the channels
                differing = {axis + rank - len(shape_of(source)) for axis in tracer.evaluated.differing(source)}
                shape = [size if axis in differing else 1 for axis, size in enumerate(shape)]
        pair = tuple(part.reshape(pad_left(part.shape, rank)) for part in pair)
        return Operand(padded, shape, reason, tracer.depends_on_input(source), pair, _is_buffer(tracer, source))

    @property
    def axes(self) -> list[int]:
        """The axes along which its channels lie."""
        return [] if self.ids is None else varying(self.ids)

    def covers(self, other: Operand) -> list[int]:
        """Return those of the other's channel axes on which this one has full size too."""
        return [axis for axis in other.axes if self.shape[axis] == other.shape[axis]]


def _is_buffer(tracer: Tracer, source: fx.Node) -> bool:
    owner, _, name = tracer.parameters.get(source, "").rpartition(".")
    module = (tracer.modules or {}).get(owner)
    return module is not None and name in module._buffers


def narrow_shape(value: fx.Node, most: int = MOST_CALLS) -> list[int]:
    """Return the shape of a value with 1 for axes along which the code spread it (a gate, a mask).

    There it is as wide as what it is combined with, if the code takes the width from that; the proof finds out.
    """
    shape = list(shape_of(value))
    if value.op != "call_function" or gives_many(value) or not most:
        return shape
    name, sources = operator_name(value).rstrip("_"), tensor_inputs(value)
    if name in ELEMENTWISE:
        inner = [pad_left(narrow_shape(source, most - 1), len(shape)) for source in sources]
    elif name in SPREADING or (name in JOINED and len(set(sources)) == 1):
        inner = [pad_left(narrow_shape(sources[0], most - 1), len(shape))]
    elif name == "aten::unsqueeze":
        inner = [narrow_shape(sources[0], most - 1)]
        inner[0].insert(axis_of(value, len(shape)), 1)
    else:
        return shape
    if not inner:
        return shape
    return [1 if all(own[axis] == 1 for own in inner) else size for axis, size in enumerate(shape)]


def combine(tracer: Tracer, node: fx.Node, operands: Sequence[Operand]) -> tuple[Value, bool]:
    """Combine the operands of an elementwise operator; return the value and whether different channels were joined."""
    result, *others = operands
    joined = False
    for other in others:
        ids, tied = _combine(tracer, node, result, other)
        joined |= tied
        shape = [max(a, b) for a, b in zip(result.shape, other.shape, strict=True)]
        is_activation = result.is_activation or other.is_activation
        reason = other.reason if result.reason in {"", *tracer.uniform} else result.reason
        result = Operand(ids, shape, reason, is_activation)
    return Value(result.ids, result.reason), joined


def _combine(tracer: Tracer, node: fx.Node, first: Operand, second: Operand) -> tuple[Tensor | None, bool]:
    """Return the ids of two operands together, and whether different channels were joined.

    | channels of the two lie on       | so that                                                                |
    |----------------------------------|------------------------------------------------------------------------|
    | no axis of either                | they have one channel at most, which is never removed                  |
    | axes of one only                 | they pass, but for axes on which the other has numbers: `_meet_numbers`|
    | common axes                      | they are tied, one for one: `_tie`                                     |
    | different axes                   | every channel meets every other, and one operand's stay: `_cross`      |
    """
    if not first.axes and not second.axes:
        if first.ids is None or second.ids is None or first.shape != second.shape:
            return None, False
        return first.ids, tracer.sets.join(*torch.broadcast_tensors(first.ids, second.ids))
    if not first.axes:
        return _meet_numbers(tracer, node, second, first), False
    if not second.axes:
        return _meet_numbers(tracer, node, first, second), False
    if set(first.axes) & set(second.axes):
        return _tie(tracer, node, first, second)
    return _cross(tracer, node, first, second), False


def _meet_numbers(tracer: Tracer, node: fx.Node, own: Operand, numbers: Operand) -> Tensor | None:
    """Combine channels with an operand that has none: where it has full size along them, it cannot follow them.

    A parameter that stays for that reason (a table of positions, a mask) leaves no channels in what comes out.
    """
    assert own.ids is not None
    kept = tracer.whole(own.ids, numbers.covers(own))
    if kept is not None:
        return kept
    reason = numbers.reason
    if reason in tracer.uniform:
        reason = tracer.notable(f"{tracer.where(node)} combines it with numbers that differ from channel to channel")
    tracer.sets.fix(own.ids, reason)
    if numbers.ids is not None:
        tracer.sets.fix(numbers.ids, reason)
    return own.ids if own.is_activation or not numbers.is_activation else None


def _tie(tracer: Tracer, node: fx.Node, first: Operand, second: Operand) -> tuple[Tensor | None, bool]:
    """Tie channels of two operands that lie on common axes.

    One that has further channel axes, on which the other has size 1, was split into groups that the other scales one
    by one (or is a parameter): the groups are tied to one another, and the factors stay. Where the other is spread over
    such groups instead (a mask for each speaker, of one encoding), channel `i` of all groups is tied to its own.
    """
    assert first.ids is not None and second.ids is not None
    common = set(first.axes) & set(second.axes)
    for own, other in ((first, second), (second, first)):
        assert own.ids is not None and other.ids is not None
        before = max(set(own.axes) - common, default=-1) < min(common)  # blocks that one other is spread over
        if len(other.covers(own)) < len(own.axes) and own.is_activation and not (other.is_activation and before):
            tracer.sets.fix(other.ids, tracer.notable(f"{tracer.where(node)} scales groups of channels by it"))
            kept = tracer.whole(own.ids, common)
            if kept is not None and len(own.covers(other)) == len(other.axes):
                return kept, False
            tracer.opaque(node, "combines values whose channels lie on different axes")
            return None, False
    joined = tracer.sets.join(*torch.broadcast_tensors(first.ids, second.ids))
    return torch.broadcast_tensors(first.ids, second.ids)[0], joined


def _cross(tracer: Tracer, node: fx.Node, first: Operand, second: Operand) -> Tensor | None:
    """Combine channels on different axes. Those of a parameter stay (a table of positions), or the fewer.

    A buffer gives way to a parameter: noise `(height, width)` of which each channel takes its own share.
    """
    for own, other in ((first, second), (second, first)):
        if own.is_activation and not other.is_activation and not other.covers(own):
            assert other.ids is not None
            tracer.sets.fix(other.ids, CROSSED)
            return _meet_numbers(tracer, node, own, replace(other, ids=None))
    for own, other in ((first, second), (second, first)):
        assert own.ids is not None and other.ids is not None
        if own.covers(other) and bool(tracer.sets.stays(own.ids, last=True).all()):  # they stay for what comes behind
            tracer.sets.fix(other.ids, CROSSED)
            return own.ids
    if first.covers(second) and second.covers(first):
        tracer.opaque(node, "combines values whose channels lie on different axes")
        return None
    for own, other in ((first, second), (second, first)):
        if own.covers(other):  # along these axes it has as many numbers, none of which follows
            assert other.ids is not None
            tracer.sets.fix(other.ids, CROSSED)
            return own.ids
    for own, other in ((first, second), (second, first)):
        if other.is_buffer and not own.is_buffer and not own.is_activation:
            assert other.ids is not None
            tracer.sets.fix(other.ids, CROSSED)
            return own.ids
    left = [operand for operand in narrower(tracer, first, second) if operand.ids is not None]
    return left[0].ids


def narrower(tracer: Tracer, first: Operand, second: Operand) -> tuple[Operand, Operand]:
    """Let the channels of one of two operands stay, those of which there are fewer; return both."""
    assert first.ids is not None and second.ids is not None
    if first.ids.numel() < second.ids.numel():
        tracer.sets.fix(first.ids, CROSSED)
        return replace(first, ids=None, reason=CROSSED), second
    tracer.sets.fix(second.ids, CROSSED)
    return first, replace(second, ids=None, reason=CROSSED)
