"""Convolutions, plain and transposed: one axis of the weight reads channels, the other starts new ones."""

from __future__ import annotations

from torch import Tensor, fx

from oicsr.rules.ids import on_axis, vector_along
from oicsr.rules.registry import Result, Value, argument, aten, operator_name, register_rule, shape_of, source_of
from oicsr.rules.tracer import Tracer

FEW_GROUPS = 4  # a convolution of so many wide groups keeps them all, and loses channels of each


@register_rule(*aten("conv1d conv2d conv3d convolution"))
def convolve(tracer: Tracer, node: fx.Node) -> Result:
    """Weight `(out, in / groups, *kernel)`: dim 0 starts new channels, dim 1 reads the input's."""
    source, weight, bias = source_of(node), argument(node, 1), argument(node, 2)
    if operator_name(node) == "aten::convolution":
        if argument(node, 6):
            return tracer.opaque(node, "is a transposed convolution in a form without a rule")
        groups = argument(node, 8)
    else:
        groups = argument(node, 6, 1)
    if weight not in tracer.parameters:
        return tracer.computed_weight(node)
    shape = shape_of(weight)
    if groups == 1:
        tracer.read_channels(node, source, weight, axis=1, dim=1)
        out = tracer.start_channels(weight, dim=0)
    elif tracer.thinned.setdefault(tracer.parameters[weight], _has_few_groups(shape, groups)):
        tracer.read_channels(node, source, weight, axis=1, dim=1, groups=groups)
        out = tracer.start_channels(weight, dim=0)
        tracer.tie_pieces(out, 0, len(out) // groups)
    else:
        found = _follow_groups(tracer, node, source, shape[0], groups)
        if found is None:
            return Value(None, tracer.reason(source))
        out = found
        tracer.add_slot(weight, 0, out, "out", counts=True)
    tracer.add_bias(bias, out)
    return Value(on_axis(out, 1, len(shape_of(node))))


@register_rule(*aten("conv_transpose1d conv_transpose2d conv_transpose3d"))
def convolve_transposed(tracer: Tracer, node: fx.Node) -> Result:
    """Weight `(in, out / groups, *kernel)`: the axes of a convolution, exchanged. Ungrouped only."""
    source, weight, bias = source_of(node), argument(node, 1), argument(node, 2)
    if weight not in tracer.parameters or argument(node, 6, 1) != 1:
        return tracer.opaque(node, "is a grouped or computed transposed convolution")
    tracer.read_channels(node, source, weight, axis=1, dim=0)
    out = tracer.start_channels(weight, dim=1)
    tracer.add_bias(bias, out)
    return Value(on_axis(out, 1, len(shape_of(node))))


def _has_few_groups(weight: tuple[int, ...], groups: int) -> bool:
    """Return whether a group is better thinned out than removed: a group of few is most of a layer.

    Channel `i` of a group then goes with channel `i` of every other group, and the inputs without the outputs.
    """
    return groups <= FEW_GROUPS and groups < min(weight[1], weight[0] // groups)


def _follow_groups(tracer: Tracer, node: fx.Node, source: fx.Node, out_channels: int, groups: int) -> Tensor | None:
    """Tie inputs and outputs of each group of a grouped convolution: the group goes as a whole (depthwise: size 1)."""
    ids = tracer.ids(source)
    in_channels = shape_of(source)[1]
    vector = None if ids is None else vector_along(ids, 1, in_channels)
    if vector is None:
        tracer.fix(source, f"{tracer.where(node)} reads channels that do not lie on one axis")
        return None
    by_group = vector.reshape(groups, in_channels // groups)
    tracer.sets.join(by_group[:, 1:], by_group[:, :1].expand_as(by_group[:, 1:]))
    return by_group[:, 0].repeat_interleave(out_channels // groups)
