"""Pooling, up-sampling and padding of the axes that hold no channels; padding of the channels too."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from oicsr.rules.ids import varying
from oicsr.rules.registry import Result, Value, argument, aten, follows, gives_many, operator_name, shape_of, source_of
from oicsr.rules.tracer import Tracer

POOLS = """
    max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d max_pool2d_with_indices _adaptive_avg_pool2d
    upsample_nearest2d upsample_bilinear2d upsample_bicubic2d interpolate avg_pool2d_with_indices
"""


@follows(*aten(POOLS))
def pool(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """Works on the spatial axes; channels on axis 1 pass."""
    if any(axis >= 2 for axis in varying(ids)):
        return tracer.opaque(node, "pools over the channels")
    return [Value(ids)] * len(node.meta["val"]) if gives_many(node) else ids


@follows(*aten("pad constant_pad_nd reflection_pad2d replication_pad2d zero_pad2d im2col"))
def pad(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """Pads axes; a channel axis gets constant channels before and behind its own.

    How many is a number in the code (the option A shortcut of ResNets), so the constant channels stay as they are,
    and the others keep their place between them.
    """
    old, new = shape_of(source_of(node)), shape_of(node)
    changed = [axis for axis in varying(ids) if len(old) != len(new) or old[axis] != new[axis]]
    if not changed:
        return ids
    is_constant = operator_name(node) == "aten::constant_pad_nd" or argument(node, 2, "constant") == "constant"
    widths: list[int] = list(argument(node, 1)) if is_constant else [-1]
    if len(old) != len(new) or min(widths) < 0:
        return tracer.opaque(node, "changes the channel axis in a form without a rule")
    for axis in changed:
        before, behind = widths[2 * (ids.ndim - 1 - axis) :][:2]  # the last axis comes first
        constant = tracer.sets.new_fixed(1, f"{tracer.where(node)} adds a constant to it").reshape([1] * ids.ndim)
        shape = list(ids.shape)
        parts = [constant.expand([*shape[:axis], count, *shape[axis + 1 :]]) for count in (before, behind)]
        ids = torch.cat([parts[0], ids, parts[1]], axis)
    return ids
