"""Pooling, resampling and padding of the axes that hold no channels; padding of the channels too; pixel shuffles."""

from __future__ import annotations

import re

import torch
from torch import Tensor, fx

from oicsr.rules.broadcasting import Operand, combine
from oicsr.rules.calls import argument, gives_many, operator_name, shape_of, source_of, tensor_inputs
from oicsr.rules.ids import on_axis, varying
from oicsr.rules.names import PRODUCTS, TURNS, UNCHANGED
from oicsr.rules.registry import Result, Value, aten, follows, register_rule
from oicsr.rules.tracer import Tracer

TURNED = UNCHANGED | {*TURNS}
SPATIAL = """
    max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d lp_pool1d lp_pool2d adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
    _adaptive_avg_pool2d _adaptive_avg_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices
    fractional_max_pool2d fractional_max_pool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d
    upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa
"""


@follows(*aten(SPATIAL))
def pool(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """Works on the last one, two or three axes, as its name says; channels on the others pass."""
    (digit,) = re.findall(r"(\d)d", operator_name(node))
    kept = tracer.whole(ids, list(range(ids.ndim - int(digit), ids.ndim)))
    if kept is None:
        return tracer.opaque(node, "pools over the channels")
    return [Value(kept)] * len(node.meta["val"]) if gives_many(node) else kept


@register_rule(*aten("max_unpool2d max_unpool3d"))
def unpool(tracer: Tracer, node: fx.Node) -> Result:
    """Puts each channel's values where its indices say: the channels of both are tied."""
    operands = [Operand.of(tracer, source, len(shape_of(node))) for source in tensor_inputs(node)]
    (digit,) = re.findall(r"(\d)d", operator_name(node))
    spatial = set(range(len(shape_of(node)) - int(digit), len(shape_of(node))))
    if any(spatial & set(operand.axes) for operand in operands):
        return tracer.opaque(node, "pools over the channels")
    return combine(tracer, node, operands)[0]


@follows(*aten("grid_sampler grid_sampler_2d grid_sampler_3d"))
def sample(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """Samples every channel, on axis 1, at the same places; the places are no channels."""
    places = argument(node, 1)
    tracer.fix(places, tracer.notable(f"{tracer.where(node)} takes places from it"))
    kept = tracer.whole(ids, list(range(2, ids.ndim)))
    return tracer.opaque(node, "samples over the channels") if kept is None else kept


@follows("torchvision::roi_align", "torchvision::roi_pool")
def regions(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """Cuts boxes out of maps, every channel (on axis 1) at the same places; the boxes are no channels."""
    tracer.fix(argument(node, 1), tracer.notable(f"{tracer.where(node)} takes places from it"))
    kept = tracer.whole(ids, [0, 2, 3])
    if kept is None:
        return tracer.opaque(node, "samples over the channels")
    return [Value(kept)] * len(node.meta["val"]) if gives_many(node) else kept


PADS = """
    pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
    replication_pad3d zero_pad2d _pad_circular _pad_enum
"""


@follows(*aten(PADS))
def pad(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """Pads axes; a channel axis gets constant channels before and behind its own.

    How many is a number in the code (the option A shortcut of ResNets), so the constant channels stay as they are,
    and the others keep their place between them.
    """
    old, new = shape_of(source_of(node)), shape_of(node)
    changed = [axis for axis in varying(ids) if old[axis] != new[axis]]
    is_constant = operator_name(node) == "aten::constant_pad_nd" or argument(node, "mode") == "constant"
    widths: list[int] = list(argument(node, 1)) if is_constant else [-1]
    per_head = changed and min(widths) >= 0 and not tracer.takes_heads(node) and _is_factor(node)
    kept = None if per_head else tracer.whole(ids, changed)
    if kept is not None:
        return kept
    if min(widths) < 0:
        return tracer.opaque(node, "changes the channel axis in a form without a rule")
    for axis in changed:
        before, behind = widths[2 * (ids.ndim - 1 - axis) :][:2]  # the last axis comes first
        constant = tracer.sets.new_fixed(1, f"{tracer.where(node)} adds a constant to it").reshape([1] * ids.ndim)
        shape = list(ids.shape)
        parts = [constant.expand([*shape[:axis], count, *shape[axis + 1 :]]) for count in (before, behind)]
        ids = torch.cat([parts[0], ids, parts[1]], axis)
    return ids


def _is_factor(node: fx.Node) -> bool:
    """Return whether a value is a factor of a product: ones behind the values of a linear attention give its divisor.

    There, channels of each head may go, though heads and channels lie on axes of their own.
    """
    waiting = list(node.users)
    while waiting:
        user = waiting.pop()
        if user.op == "call_function" and operator_name(user) in PRODUCTS:
            return True
        waiting += user.users if user.op == "call_function" and operator_name(user) in TURNED else ()
    return False


@follows("aten::pixel_shuffle")
def pixel_shuffle(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """`(channels * r * r, h, w)` to `(channels, h * r, w * r)`: the `r * r` maps of a pixel block go at once."""
    factor = int(argument(node, 1)) ** 2
    vector = _third_last(tracer, node, ids)
    if vector is None:
        return tracer.opaque(node, "shuffles channels that do not lie on the third axis from the end")
    by_block = vector.reshape(-1, factor)  # (channels, r * r)
    return on_axis(tracer.tie_axis(by_block, 1).flatten(), ids.ndim - 3, ids.ndim)


@follows("aten::pixel_unshuffle")
def pixel_unshuffle(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """`(channels, h * r, w * r)` to `(channels * r * r, h, w)`: a channel becomes a block of `r * r`."""
    vector = _third_last(tracer, node, ids)
    if vector is None:
        return tracer.opaque(node, "shuffles channels that do not lie on the third axis from the end")
    return on_axis(vector.repeat_interleave(int(argument(node, 1)) ** 2), ids.ndim - 3, ids.ndim)


def _third_last(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | None:
    return tracer.channels(ids, ids.ndim - 3, shape_of(source_of(node))[-3])


@follows(*aten("channel_shuffle native_channel_shuffle"))
def channel_shuffle(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """`(groups, c)` to `(c, groups)` on axis 1: channel `i` of all groups goes at once."""
    if not varying(ids):
        return ids
    vector = tracer.channels(ids, 1, shape_of(node)[1])
    if vector is None:
        return tracer.opaque(node, "shuffles channels that do not lie on axis 1")
    by_group = vector.reshape(int(argument(node, 1)), -1)
    tracer.tie_axis(by_group, 0)
    return on_axis(by_group.t().flatten(), 1, ids.ndim)


@follows("aten::im2col")
def unfold_patches(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """`(batch, channels, h, w)` to `(batch, channels * kh * kw, places)`: a channel becomes a block of `kh * kw`."""
    kernel: list[int] = list(argument(node, 1))
    vector = tracer.channels(ids, -3, shape_of(source_of(node))[-3])
    if vector is None:
        return tracer.opaque(node, "unfolds channels that do not lie on the third axis from the end")
    return on_axis(vector.repeat_interleave(kernel[0] * kernel[1]), ids.ndim - 3, ids.ndim - 1)


@follows("aten::col2im")
def fold_patches(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """`(batch, channels * kh * kw, places)` to `(batch, channels, h, w)`: a block of `kh * kw` goes at once."""
    kernel: list[int] = list(argument(node, 2))
    vector = tracer.channels(ids, -2, shape_of(source_of(node))[-2])
    if vector is None:
        return tracer.opaque(node, "folds channels that do not lie on the second axis from the end")
    blocks = vector.reshape(-1, kernel[0] * kernel[1])
    return on_axis(tracer.tie_axis(blocks, 1).flatten(), ids.ndim - 2, ids.ndim + 1)
