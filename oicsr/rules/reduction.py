"""Reductions over axes that hold no channels."""

from __future__ import annotations

from torch import Tensor, fx

from oicsr.rules.ids import varying
from oicsr.rules.registry import Result, argument, aten, follows, operator_name, shape_of
from oicsr.rules.tracer import Tracer


@follows(*aten("mean sum amax amin var std norm linalg_vector_norm"))
def reduce(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """Removes axes that hold no channels."""
    dims = argument(node, 2 if "norm" in operator_name(node) else 1)
    if dims is None or isinstance(dims, bool):
        return tracer.opaque(node, "reduces over the channels")
    axes = {int(dim) % ids.ndim for dim in (dims if isinstance(dims, list | tuple) else [dims])}
    if any(axis in axes for axis in varying(ids)):
        return tracer.opaque(node, "reduces over the channels")
    if len(shape_of(node)) == ids.ndim:  # keepdim
        return ids
    return ids.reshape([size for axis, size in enumerate(ids.shape) if axis not in axes])


@follows(*aten("softmax log_softmax _softmax"))
def softmax(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """Keeps channels that do not lie on the axis it normalises."""
    if ids.shape[argument(node, 1)] > 1:
        return tracer.opaque(node, "normalises over the channels")
    return ids
