"""Elementwise operators: each element keeps its channel, and what is combined is tied."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from oicsr.rules.ids import pad_left, varying, vector_along
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
    tensor_inputs,
)
from oicsr.rules.tracer import Tracer

UNARY = """
    relu relu6 gelu silu sigmoid hardsigmoid hardswish hardtanh leaky_relu elu selu celu tanh mish softplus softsign
    dropout feature_dropout alpha_dropout native_dropout bernoulli clamp clamp_min clamp_max neg exp log sqrt rsqrt
    square abs pow erf reciprocal round floor ceil sign log1p expm1 sin cos logit log_sigmoid hardshrink softshrink
    clone contiguous to _to_copy type_as detach alias lift_fresh_copy detach_copy alias_copy rrelu threshold
"""


@follows(*aten(UNARY))
def elementwise(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """Each element keeps its channel."""
    if len(tensor_inputs(node)) > 1 and operator_name(node) == "aten::pow":
        return tracer.opaque(node)
    return ids


@register_rule(*aten("add sub rsub"))
def add(tracer: Tracer, node: fx.Node) -> Result:
    """Ties the channels of both operands; remembers sums of two activations (the residual streams)."""
    result, joined = _broadcast(tracer, node)
    operands = tensor_inputs(node)
    if result.ids is not None and len(operands) == 2 and all(tracer.depends_on_input(n) for n in operands):
        tracer.added.append((node, joined, result.ids))
    return result


@register_rule(*aten("mul div maximum minimum where logical_and floor_divide true_divide"))
def broadcast(tracer: Tracer, node: fx.Node) -> Result:
    """Ties the channels of the operands, as broadcasting aligns them (squeeze-and-excitation, layer scale)."""
    return _broadcast(tracer, node)[0]


@dataclass(frozen=True)
class Operand:
    """An operand of an elementwise operator, padded to the rank of the result. `reason`: why no ids are followed."""

    ids: Tensor | None
    shape: list[int]
    reason: str

    @property
    def axes(self) -> list[int]:
        """The axes along which its channels lie."""
        return [] if self.ids is None else varying(self.ids)


def _broadcast(tracer: Tracer, node: fx.Node) -> tuple[Value, bool]:
    """Combine the operands of an elementwise operator; return the value and whether different channels were joined."""
    rank = len(shape_of(node))
    result, *others = [_operand(tracer, source, rank) for source in tensor_inputs(node)]
    joined = False
    for other in others:
        ids, tied = _combine(tracer, node, result, other)
        shape = [max(a, b) for a, b in zip(result.shape, other.shape, strict=True)]
        result = Operand(ids, shape, result.reason or other.reason)
        joined |= tied
    return Value(result.ids, result.reason), joined


def _operand(tracer: Tracer, source: fx.Node, rank: int) -> Operand:
    ids = tracer.ids(source)
    padded = None if ids is None else ids.reshape(pad_left(ids.shape, rank))
    return Operand(padded, pad_left(shape_of(source), rank), tracer.reason(source))


def _combine(tracer: Tracer, node: fx.Node, first: Operand, second: Operand) -> tuple[Tensor | None, bool]:
    """Return the ids of two operands together, and whether different channels were joined.

    Of one operand with channels along some axes, the other one

    | has along these axes               | so that                                                    |
    |------------------------------------|------------------------------------------------------------|
    | size 1, and no channels elsewhere  | it is repeated over the channels, which pass               |
    | size 1, and channels elsewhere     | every channel meets every other: nothing is followed       |
    | size 1 on some, full size on others| it lies along a part of the channels: nothing is followed  |
    | full size, but no channels there   | its elements cannot follow, so that the channels are fixed |
    | channels, one for one              | they are tied                                              |
    """
    for own, other in ((first, second), (second, first)):
        if own.ids is None or not own.axes:
            continue
        aligned = [axis for axis in own.axes if other.shape[axis] == own.shape[axis]]
        if not aligned and other.axes:
            tracer.opaque(node, "multiplies values whose channels lie on different axes")
            return None, False
        if not aligned:
            return own.ids, False
        if len(aligned) < len(own.axes):
            tracer.opaque(node, "broadcasts along a part of the channels")
            return None, False
        if other.ids is None or any(other.ids.shape[axis] == 1 for axis in own.axes):
            for ids in (own.ids, other.ids):
                if ids is not None:
                    tracer.sets.fix(ids, other.reason)
            return own.ids, False
    if first.ids is None or second.ids is None or (not first.axes and first.shape != second.shape):
        return None, False  # at most one channel, which is never removed
    a, b = torch.broadcast_tensors(first.ids, second.ids)
    return a, tracer.sets.join(a, b)


@register_rule(*aten("_assert_tensor_metadata _assert_scalar _assert_async"))
def assertion(tracer: Tracer, node: fx.Node) -> Result:
    """Looks at type, layout or a number, and gives nothing."""
    return Value(None, f"{tracer.where(node)} gives no tensor")


@follows("aten::prelu")
def prelu(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """The slope, `(channels,)` or `(1,)`, follows axis 1."""
    weight = argument(node, 1)
    vector = vector_along(ids, 1, shape_of(source_of(node))[1])
    if shape_of(weight) != (1,):
        if vector is None:
            return tracer.opaque(node, "has slopes along channels that do not lie on axis 1")
        tracer.add_slot(weight, 0, vector, "norm", counts=False)
    return ids
