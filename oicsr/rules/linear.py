"""Linear layers, embeddings, and products of matrices."""

from __future__ import annotations

from torch import fx

from oicsr.rules.calls import argument, shape_of, source_of
from oicsr.rules.ids import on_axis, varying
from oicsr.rules.registry import Result, Value, aten, register_rule
from oicsr.rules.tracer import Tracer


@register_rule("aten::linear")
def linear(tracer: Tracer, node: fx.Node) -> Result:
    """Weight `(out, in)`: reads the last axis. Where the channels lie on another axis, they pass through."""
    source, weight = source_of(node), argument(node, 1)
    if weight not in tracer.parameters:
        return tracer.computed_weight(node, weight)
    ids = tracer.ids(source)
    if ids is not None and varying(ids) and ids.shape[-1] == 1:
        return Value(ids)
    axis = len(shape_of(node)) - 1
    tracer.read_channels(node, source, weight, axis=axis, dim=1)
    out = tracer.start_channels(weight, dim=0)
    tracer.add_bias(argument(node, 2), out)
    return Value(on_axis(out, axis, axis + 1))


@register_rule(*aten("matmul bmm"))
def multiply_matrices(tracer: Tracer, node: fx.Node) -> Result:
    """Rows of the first factor that are channels stay channels, where the second holds none (global context)."""
    first, second = source_of(node), argument(node, 1)
    ids, others = tracer.ids(first), tracer.ids(second)
    if ids is None and others is None:
        return Value(None, tracer.reason(first))
    same_rank = len(shape_of(first)) == len(shape_of(second)) == len(shape_of(node))
    if ids is None or ids.shape[-1] > 1 or not same_rank or (others is not None and varying(others)):
        return tracer.opaque(node, "multiplies matrices in a form without a rule")
    return Value(ids)
