"""Normalisation layers: scale, shift and statistics follow the channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx

from oicsr.rules.ids import varying, vector_along
from oicsr.rules.registry import Result, argument, aten, follows, shape_of, source_of
from oicsr.rules.tracer import Tracer


@follows(*aten("batch_norm instance_norm _native_batch_norm_legit_no_training _native_batch_norm_legit"))
def batch_norm(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """Scale, shift and running statistics, each `(channels,)`, follow axis 1.

    Of a weight (standardisation), the statistics of each filter run over all channels that it reads: a column of zeros
    is none after it, so that nothing exact exists.
    """
    source = source_of(node)
    if not tracer.depends_on_input(source):
        return tracer.opaque(node, "standardises a weight over the channels that it reads")
    vector = vector_along(ids, 1, shape_of(source)[1])
    if vector is None:
        return tracer.opaque(node, "normalises channels that do not lie on axis 1")
    _follow_norm(tracer, [argument(node, i) for i in range(1, 5)], vector)
    return ids


def _follow_norm(tracer: Tracer, parameters: Sequence[Any], vector: Tensor) -> None:
    """Let `(scale, shift, ...)` of a normalisation follow the channels; only the scale carries energy."""
    for position, parameter in enumerate(parameters):
        if isinstance(parameter, fx.Node):
            tracer.add_slot(parameter, 0, vector, "norm", counts=position == 0)


@follows("aten::group_norm")
def group_norm(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """A normalisation group goes as a whole, so that the statistics of the others do not change."""
    vector = vector_along(ids, 1, shape_of(source_of(node))[1])
    if vector is None:
        return tracer.opaque(node, "normalises channels that do not lie on axis 1")
    by_group = vector.reshape(argument(node, 1), -1)
    tracer.sets.join(by_group[:, 1:], by_group[:, :1].expand_as(by_group[:, 1:]))
    _follow_norm(tracer, [argument(node, 2), argument(node, 3)], vector)
    return ids


@follows("aten::layer_norm")
def layer_norm(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """Scale and shift follow the last axis.

    The statistics run over all channels, so removing a channel of zeros changes those of the others: the shapes are
    right, the outputs are not preserved. Nothing exact exists for this operator.
    """
    if not varying(ids):
        return ids
    normalized, weight = argument(node, 1), argument(node, 2)
    vector = vector_along(ids, ids.ndim - 1, shape_of(source_of(node))[-1])
    if vector is None and all(axis < ids.ndim - len(normalized) for axis in varying(ids)):
        return ids  # the normalised axes hold no channels
    if vector is None or len(normalized) != 1 or not isinstance(weight, fx.Node):
        return tracer.opaque(node, "normalises over channels in a form without a rule")
    _follow_norm(tracer, [weight, argument(node, 3)], vector)
    return ids
