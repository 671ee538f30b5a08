"""Elementwise operators: each element keeps its channel, and what is combined is tied."""

from __future__ import annotations

from torch import Tensor, fx

from oicsr.rules.broadcasting import Operand, combine
from oicsr.rules.calls import argument, axis_of, gives_many, shape_of, source_of, tensor_inputs
from oicsr.rules.ids import varying
from oicsr.rules.names import ADDING, COMBINING, UNARY, UNCHANGED
from oicsr.rules.registry import Result, Value, aten, follows, register_rule
from oicsr.rules.tracer import Tracer


@follows(*UNCHANGED, *UNARY)
def elementwise(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """Each element keeps its channel, whatever the function; a second tensor, if there is one, gives only the type."""
    return [Value(ids)] * len(node.meta["val"]) if gives_many(node) else ids


@register_rule(*ADDING)
def add(tracer: Tracer, node: fx.Node) -> Result:
    """Ties the channels of the operands; remembers sums of activations (the residual streams)."""
    operands = tensor_inputs(node)
    result, joined = _combine(tracer, node)
    if result.ids is not None and sum(tracer.depends_on_input(n) for n in operands) > 1:
        tracer.added.append((node, joined, result.ids))
    return result


@register_rule(*COMBINING)
def broadcast(tracer: Tracer, node: fx.Node) -> Result:
    """Ties the channels of the operands, as broadcasting aligns them (squeeze-and-excitation, layer scale)."""
    if gives_many(node):  # `torch.where(condition)`: places, one list for each axis
        followed = tracer.ids(source_of(node)) is not None
        return tracer.opaque(node, "gives places") if followed else Value(None, tracer.reason(source_of(node)))
    return _combine(tracer, node)[0]


def _combine(tracer: Tracer, node: fx.Node) -> tuple[Value, bool]:
    rank = len(shape_of(node))
    return combine(tracer, node, [Operand.of(tracer, source, rank) for source in tensor_inputs(node)])


@register_rule(*aten("_assert_tensor_metadata _assert_scalar _assert_async"))
def assertion(tracer: Tracer, node: fx.Node) -> Result:
    """Looks at type, layout or a number, and gives nothing."""
    return Value(None, f"{tracer.where(node)} gives no tensor")


CONSTANTS = """
    arange eye linspace logspace randint randperm tril_indices triu_indices hann_window
"""


@register_rule(*aten("zeros ones full empty scalar_tensor new_zeros new_ones new_full new_empty"))
@register_rule(*aten("empty_strided new_empty_strided"))
def uniform(tracer: Tracer, node: fx.Node) -> Result:
    """Makes one number everywhere: first states, paddings. Whether its size follows is for the proof to find out."""
    reason = tracer.notable(f"{tracer.where(node)} gives numbers, whose size cannot follow the channels")
    tracer.uniform.add(reason)
    return Value(None, reason)


@register_rule(*aten("rand randn"))
def noise(tracer: Tracer, node: fx.Node) -> Result:
    """Draws every number alike; one from a generator that the code seeds itself is fixed, so that its channels stay."""
    return constant(tracer, node) if argument(node, "generator") is not None else uniform(tracer, node)


@register_rule(*aten(CONSTANTS))
def constant(tracer: Tracer, node: fx.Node) -> Result:
    """Makes numbers of a size that stands in the code: what is combined with them along the channels stays."""
    reason = tracer.notable(f"{tracer.where(node)} gives numbers, whose size cannot follow the channels")
    return Value(None, reason)


@follows("aten::prelu")
def prelu(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """The slope, `(channels,)` or `(1,)`, follows axis 1."""
    weight = argument(node, 1)
    if shape_of(weight) == (1,) or not varying(ids):
        return ids
    vector = tracer.channels(ids, 1, shape_of(source_of(node))[1])
    if vector is None:
        return tracer.opaque(node, "has slopes along channels that do not lie on axis 1")
    tracer.follow_vector(weight, vector, "norm", counts=False)
    return ids


@follows("aten::bucketize")
def bucketize(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor:
    """Gives the number of the bucket that each element lies in, which need not be zero for zero."""
    bounds = argument(node, 1)
    tracer.fix(bounds, tracer.notable(f"{tracer.where(node)} takes bounds from it"))
    return ids


@follows("aten::glu")
def glu(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor:
    """Gates the first half of an axis by the second: channel `i` of both halves goes at once."""
    axis = axis_of(node, ids.ndim, default=-1)
    if ids.shape[axis] == 1:
        return ids
    half = ids.shape[axis] // 2
    tracer.tie_pieces(ids, axis, half)
    return ids.narrow(axis, 0, half)
