"""Linear layers."""

from __future__ import annotations

from torch import fx

from oicsr.rules.calls import argument, shape_of, source_of
from oicsr.rules.ids import on_axis, varying
from oicsr.rules.registry import Result, Value, register_rule
from oicsr.rules.tracer import Tracer
from oicsr.rules.weights import has_weight, note_layer, passes_by


@register_rule("aten::linear")
def linear(tracer: Tracer, node: fx.Node) -> Result:
    """Weight `(out, in)`: reads the last axis. Where the channels lie on another axis, they pass through."""
    source, weight = source_of(node), argument(node, 1)
    if not has_weight(tracer, weight):
        return tracer.computed_weight(node, weight)
    ids = tracer.ids(source)
    axis = len(shape_of(node)) - 1
    if ids is not None and varying(ids) and ids.shape[-1] == 1:
        if passes_by(tracer, node, weight, ids):
            return Value(ids)
    else:
        tracer.read_channels(node, source, weight, axis=axis, dim=1)
    out = tracer.start_channels(weight, dim=0)
    note_layer(tracer, node, weight, rows=0, read=1)
    tracer.add_bias(argument(node, 2), out)
    return Value(on_axis(out, axis, axis + 1))
