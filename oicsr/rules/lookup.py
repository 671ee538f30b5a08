"""Tables of vectors that integers pick from: embeddings."""

from __future__ import annotations

from torch import fx

from oicsr.rules.calls import argument, gives_many, shape_of, shapes_of, tensor_inputs
from oicsr.rules.ids import on_axis
from oicsr.rules.registry import Result, Value, aten, register_rule
from oicsr.rules.tracer import Tracer
from oicsr.rules.weights import has_weight


@register_rule(*aten("embedding embedding_bag _embedding_bag"))
def embedding(tracer: Tracer, node: fx.Node) -> Result:
    """Weight `(rows, width)`: its columns are new channels, on the last axis; what says which row is none."""
    weight, *places = tensor_inputs(node)
    if weight is not argument(node, 0) or not has_weight(tracer, weight):
        return tracer.opaque(node, "picks rows of a table that is computed")
    for source in places:
        tracer.fix(source, tracer.notable(f"{tracer.where(node)} takes places from it"))
    out = tracer.start_channels(weight, dim=1)
    if not gives_many(node):
        rank = len(shape_of(node))
        return Value(on_axis(out, rank - 1, rank))
    first, *others = shapes_of(node)
    rank = len(first or ())
    return [Value(on_axis(out, rank - 1, rank)), *[Value(None, "is a list of places") for _ in others]]
