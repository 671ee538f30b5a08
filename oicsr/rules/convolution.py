"""Convolutions, plain and transposed: one axis of the weight reads channels, the other starts new ones."""

from __future__ import annotations

from torch import Tensor, fx

from oicsr.rules.calls import argument, module_path, operator_name, shape_of, source_of
from oicsr.rules.correlation import correlate, is_correlation
from oicsr.rules.ids import on_axis, squeeze_constant_axes, varying
from oicsr.rules.registry import Result, Value, aten, register_rule
from oicsr.rules.tracer import Tracer
from oicsr.rules.weights import has_weight, note_layer, passes_by

MIXES = "mixes neighbouring channels, as its kernel runs along the axis on which they lie"
FEW_GROUPS = 4  # a convolution of so many wide groups keeps them all, and loses channels of each


@register_rule(*aten("conv1d conv2d conv3d convolution"))
def convolve(tracer: Tracer, node: fx.Node) -> Result:
    """Weight `(out, in / groups, *kernel)`: dim 0 starts new channels, dim 1 reads the input's.

    Channels that lie on another axis pass through, where the kernel looks at each of them by itself.
    """
    if operator_name(node) == "aten::convolution" and argument(node, "transposed"):
        return convolve_transposed(tracer, node)
    source, weight, groups = source_of(node), argument(node, 1), int(argument(node, "groups"))
    shape = shape_of(weight)
    axis = len(shape_of(node)) - len(shape) + 1  # 1, or 0 without a batch
    if not has_weight(tracer, weight):
        is_other = is_correlation(tracer, weight)
        return correlate(tracer, node, axis) if is_other else tracer.computed_weight(node, weight)
    ids = _of_rows(tracer, node, axis)
    along = varying(ids) if ids is not None and ids.shape[axis] == 1 else []
    if ids is not None and along and all(_is_pointwise(node, other, axis) for other in along):
        if passes_by(tracer, node, weight, ids, whole=groups > 1):
            return Value(ids)
    elif along:
        tracer.fix(source, tracer.notable(f"{tracer.where(node)} {MIXES}"))
    if groups == 1:
        if not along:
            tracer.read_channels(node, source, weight, axis=axis, dim=1)
        out = tracer.start_channels(weight, dim=0)
    elif _is_thinned(tracer, node, shape[1], shape[0] // groups):
        tracer.read_channels(node, source, weight, axis=axis, dim=1, groups=groups)
        out = tracer.start_channels(weight, dim=0)
        tracer.tie_pieces(out, 0, len(out) // groups)
    else:
        by_group = _channels_by_group(tracer, node, source, axis, groups)
        if by_group is None:
            note_layer(tracer, node, weight)
            return Value(None, tracer.reason(source))
        out = by_group[:, 0].repeat_interleave(shape[0] // groups)
        tracer.add_slot(weight, 0, out, "out", counts=True)
    note_layer(tracer, node, weight, rows=0, read=1)
    tracer.add_bias(argument(node, 2), out)
    return Value(on_axis(out, axis, len(shape_of(node))))


def _of_rows(tracer: Tracer, node: fx.Node, axis: int) -> Tensor | None:
    """Return the input's channels, or the heads where these go and lie on the batch axis, the channels of each tied."""
    ids = tracer.ids(source_of(node))
    if ids is None or ids.shape[axis] == 1 or not any(other < axis for other in varying(ids)):
        return ids
    return squeeze_constant_axes(tracer.tie_axis(ids, axis)) if tracer.takes_heads(node) else ids


def _is_pointwise(node: fx.Node, axis: int, channels: int) -> bool:
    """Return whether a convolution, whose channels lie on the axis `channels`, keeps slices of another axis apart."""
    if axis < channels:
        return True  # the batch
    position, strides = axis - channels - 1, list(argument(node, "stride"))
    same = shape_of(node)[axis] == shape_of(source_of(node))[axis] and strides[position % len(strides)] == 1
    return same and shape_of(argument(node, 1))[2 + position] == 1


@register_rule(*aten("conv_transpose1d conv_transpose2d conv_transpose3d"))
def convolve_transposed(tracer: Tracer, node: fx.Node) -> Result:
    """Weight `(in, out / groups, *kernel)`: the axes of a convolution, exchanged."""
    source, weight, groups = source_of(node), argument(node, 1), int(argument(node, "groups"))
    if not has_weight(tracer, weight):
        return tracer.computed_weight(node, weight)
    shape = shape_of(weight)
    axis = len(shape_of(node)) - len(shape) + 1
    if groups == 1:
        tracer.read_channels(node, source, weight, axis=axis, dim=0)
        out = tracer.start_channels(weight, dim=1)
    elif _is_thinned(tracer, node, shape[0] // groups, shape[1]):
        _read_groups(tracer, node, source, weight, axis, groups)
        out = tracer.start_channels(weight, dim=1).repeat(groups)
    else:
        by_group = _channels_by_group(tracer, node, source, axis, groups)
        if by_group is None:
            note_layer(tracer, node, weight)
            return Value(None, tracer.reason(source))
        tracer.add_slot(weight, 0, by_group.flatten(), "out", counts=True)
        out = by_group[:, 0].repeat_interleave(shape[1])
    note_layer(tracer, node, weight, rows=0, read=1)
    tracer.add_bias(argument(node, 2), out)
    return Value(on_axis(out, axis, len(shape_of(node))))


def _is_thinned(tracer: Tracer, node: fx.Node, inputs: int, outputs: int) -> bool:
    """Return whether groups of so many inputs and outputs are better thinned out than removed.

    A group of few is most of a layer, and none goes whose inputs stay (the image's channels). Channel `i` of a group
    then goes with channel `i` of every other group, and the inputs without the outputs. Where code calls a function,
    the number of groups may be fixed there, or follow the width: what fails in the proof is done in the other way.
    """
    source, weight, groups = source_of(node), argument(node, 1), int(argument(node, "groups"))
    few = groups <= FEW_GROUPS and groups < min(inputs, outputs)
    thin = few or (outputs > 1 and _stays(tracer, source))
    other = outputs > 1 and _is_refuted(tracer, node)
    return tracer.thinned.setdefault(tracer.parameters.get(weight, weight.name), thin != other)


def _is_refuted(tracer: Tracer, node: fx.Node) -> bool:
    """Return whether the proof spoke against the groups of a call that is not that of a module of convolution."""
    module, ids = (tracer.modules or {}).get(module_path(node)), tracer.ids(source_of(node))
    if ids is None or hasattr(module, "groups") or tracer.doubts.distrusted is None:
        return False
    return not tracer.doubts.allow(tracer.sets, node, ids)


def _stays(tracer: Tracer, source: fx.Node) -> bool:
    """Return whether none of a layer's inputs can go, as far as that is known where it is called."""
    ids = tracer.ids(source)
    if ids is None:
        return not any(tracer.is_uniform(source, axis) for axis in range(len(shape_of(source))))
    return bool(tracer.sets.stays(ids).all())


def _read_groups(tracer: Tracer, node: fx.Node, source: fx.Node, weight: fx.Node, axis: int, groups: int) -> None:
    """Let the rows of a transposed weight, those of one group after the other, follow the layer's input."""
    ids, size = tracer.ids(source), shape_of(weight)[0]
    if ids is None:
        tracer.keep_axis(weight, 0, tracer.reason(source))
        return
    vector = tracer.channels(ids, axis, size)
    if vector is None:
        tracer.fix(source, tracer.notable(f"{tracer.where(node)} reads channels that lie on another axis"))
        return
    tracer.tie_pieces(vector, 0, size // groups)
    tracer.add_slot(weight, 0, vector, "in", counts=True)


def _channels_by_group(tracer: Tracer, node: fx.Node, source: fx.Node, axis: int, groups: int) -> Tensor | None:
    """Return the input's channels as `(groups, channels of each)`: those of a group tied, as it goes as a whole."""
    ids = tracer.ids(source)
    vector = None if ids is None else tracer.channels(ids, axis, shape_of(source)[axis])
    if vector is None:
        tracer.fix(source, tracer.notable(f"{tracer.where(node)} reads channels that lie on another axis"))
        return None
    by_group = vector.reshape(groups, -1)
    tracer.tie_axis(by_group, 1)
    return by_group


@register_rule("torchvision::deform_conv2d")
def convolve_deformed(tracer: Tracer, node: fx.Node) -> Result:
    """A convolution that reads at offsets, which are no channels; those of several groups of offsets go together."""
    source, weight, offset, mask, bias = (argument(node, i) for i in range(5))
    groups, offset_groups = int(argument(node, "groups")), int(argument(node, "offset_groups"))
    if groups > 1 or not has_weight(tracer, weight):
        return tracer.opaque(node, "has groups, or a weight that is computed")
    for places in (offset, mask):
        tracer.fix(places, tracer.notable(f"{tracer.where(node)} takes places from it"))
    size = shape_of(weight)[1]
    tracer.read_channels(node, source, weight, axis=1, dim=1)
    ids = tracer.ids(source)
    if ids is not None and ids.shape[1] == size:
        tracer.tie_pieces(ids.flatten(), 0, size // offset_groups)
    out = tracer.start_channels(weight, dim=0)
    if bias in tracer.parameters or bias in tracer.computed:  # zeros otherwise
        tracer.add_bias(bias, out)
    return Value(on_axis(out, 1, 4))
