"""Sums over channels, and what is made of such sums: norms, distances, similarities.

Channels of zeros add nothing, so that they can go, and what comes out holds no channels. Whether zeros stay zeros on
their way there (they do not in `exp(x).sum(1)`), and whether the code divides by the width later, is for the numeric
proof to find out (see `oicsr.rules.doubts`). A maximum is as good as a sum where nothing is below zero.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace

from torch import Tensor, fx

from oicsr.rules.broadcasting import Operand, combine
from oicsr.rules.calls import argument, axes_of, operator_name, shape_of, shapes_of, source_of, tensor_inputs
from oicsr.rules.ids import on_axis, pad_left, squeeze_constant_axes, varying
from oicsr.rules.names import CUTS, DIVISIONS, JOINED, MULTIPLICATIONS, REPEATS, SHAPED_LIKE, SHIFTS, UNCHANGED, VIEWS
from oicsr.rules.registry import Result, Value, aten, follows, register_rule
from oicsr.rules.tracer import Tracer
from oicsr.rules.weights import has_weight

OVER = "reduces over the channels"
SUMS = frozenset(aten("sum nansum norm linalg_vector_norm linalg_norm"))
MAXIMA = frozenset(aten("amax max"))
POSITIVE = frozenset(aten("relu relu6 abs absolute square norm linalg_vector_norm"))  # zero to zero, never below
ABOVE = frozenset(aten("sigmoid hardsigmoid softmax exp softplus"))  # never below zero
SO_THEN = VIEWS.union(  # operators that preserve this
    UNCHANGED,
    CUTS,
    SHIFTS,
    REPEATS,
    JOINED,
    aten(
        "dropout feature_dropout max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
        "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d upsample_nearest1d upsample_nearest2d "
        "upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d sqrt stack add sum mean "
        "maximum minimum pixel_shuffle pixel_unshuffle channel_shuffle"
    ),
)


def sums_up(node: fx.Node) -> bool:
    """Return whether channels of zeros change nothing about what a reduction gives."""
    name = operator_name(node)
    if name in SUMS:
        return True
    picks = name == "aten::max" and any(user.args[1] == 1 and user.users for user in node.users if len(user.args) > 1)
    return name in MAXIMA and not picks and _is_positive(source_of(node))


def _is_positive(node: fx.Node, most: int = 32, *, zero: bool = True) -> bool:
    """Return whether a value is below zero nowhere, and (`zero`) is zero where channels are zero."""
    if node.op != "call_function" or not most:
        return False
    name = operator_name(node).rstrip("_")
    if name in POSITIVE or (name in ABOVE and not zero) or (name == "aten::pow" and argument(node, 1) == 2):
        return True
    if name in SHAPED_LIKE or name == "aten::type_as":
        return _is_positive(source_of(node), most - 1, zero=zero)
    if name in MULTIPLICATIONS | DIVISIONS and isinstance(argument(node, 1), int | float):
        return bool(argument(node, 1) > 0) and _is_positive(source_of(node), most - 1, zero=zero)
    if name in MULTIPLICATIONS:
        factors = node.all_input_nodes
        above = len(factors) == len(node.args) and all(_is_positive(f, most - 1, zero=False) for f in factors)
        return above and (not zero or any(_is_positive(factor, most - 1) for factor in factors))
    if name in ("aten::hardtanh", "aten::clamp", "aten::clamp_min"):
        return bool(argument(node, 1) == 0)
    if name == "aten::add" and len(node.all_input_nodes) < 2:  # of a number, which may be below zero
        return False
    return name in SO_THEN and all(_is_positive(source, most - 1, zero=zero) for source in node.all_input_nodes)


def added_up(tracer: Tracer, node: fx.Node, ids: Tensor) -> Value | None:
    """Return what a sum over channels gives, which holds none, where the proof may judge it.

    Channels that it is combined with, such as rows of a weight whose columns are summed up, stay; the user is told.
    """
    if not tracer.doubts.allow(tracer.sets, node, ids):
        return None
    return Value(None, tracer.notable(f"{tracer.where(node)} {OVER}"))


def add_up(tracer: Tracer, node: fx.Node, ids: Tensor, axes: Set[int]) -> Value:
    """Sum channels up along axes; return what lies on the others, which has its place there still."""
    ids = squeeze_constant_axes(tracer.sets.find(ids))
    kept = tracer.whole(ids, axes)
    if kept is not None:
        return Value(kept)
    return added_up(tracer, node, ids) or tracer.opaque(node, OVER)


def sum_of_elements(
    tracer: Tracer, node: fx.Node, operands: Sequence[Operand], axes: Set[int], *, keep: bool = False
) -> Value:
    """Sum up what an elementwise function of several operands gives.

    Args:
        tracer: The tracer.
        node: The call that does both.
        operands: What it combines.
        axes: The axes that are summed over.
        keep: Whether these stay, with size one.
    """
    value, _ = combine(tracer, node, operands)
    if value.ids is None:
        return value
    summed = add_up(tracer, node, value.ids, axes)
    if summed.ids is None or keep:
        return summed
    return Value(summed.ids.reshape([size for axis, size in enumerate(summed.ids.shape) if axis not in axes]))


def _operands(tracer: Tracer, sources: Sequence[fx.Node]) -> list[Operand]:
    rank = max(len(shape_of(source)) for source in sources)
    return [Operand.of(tracer, source, rank) for source in sources]


@register_rule(*aten("cosine_similarity linalg_vecdot"))
def similarity(tracer: Tracer, node: fx.Node) -> Result:
    """Sums products, and squares, over an axis of two values, whose channels are tied."""
    operands = _operands(tracer, tensor_inputs(node))
    return sum_of_elements(tracer, node, operands, axes_of(node, len(operands[0].shape)))


@register_rule("aten::pairwise_distance")
def distance(tracer: Tracer, node: fx.Node) -> Result:
    """The norm of a difference along the last axis. What is added to it (1e-6) hardly shows in channels of zeros."""
    operands = _operands(tracer, tensor_inputs(node))
    return sum_of_elements(tracer, node, operands, {len(operands[0].shape) - 1}, keep=bool(argument(node, "keepdim")))


@register_rule("aten::cdist")
def distances(tracer: Tracer, node: fx.Node) -> Result:
    """Distances between rows `(..., n, channels)` and `(..., m, channels)`: `(..., n, m)`.

    Where the latter are a weight `(m, channels)`, each of its rows is a new channel, as of a linear layer.
    """
    weight = argument(node, 1)
    if len(shape_of(weight)) == 2 and has_weight(tracer, weight) and tracer.depends_on_input(source_of(node)):
        return _to_rows_of_a_weight(tracer, node, weight)
    first, second = _operands(tracer, [source_of(node), argument(node, 1)])
    rank = len(first.shape)
    return sum_of_elements(tracer, node, [_widened(first, rank - 1), _widened(second, rank - 2)], {rank})


def _to_rows_of_a_weight(tracer: Tracer, node: fx.Node, weight: fx.Node) -> Result:
    ids = tracer.ids(source_of(node))
    if ids is not None and varying(ids) and (ids.shape[-1] == 1 or not tracer.doubts.allow(tracer.sets, node, ids)):
        return tracer.opaque(node, OVER)
    last = len(shape_of(node)) - 1
    tracer.read_channels(node, source_of(node), weight, axis=last, dim=1)
    return Value(on_axis(tracer.start_channels(weight, dim=0), last, last + 1))


def _widened(operand: Operand, axis: int) -> Operand:
    """Return an operand with one more axis."""
    shape = [*operand.shape[:axis], 1, *operand.shape[axis:]]
    return replace(operand, shape=shape, ids=None if operand.ids is None else operand.ids.unsqueeze(axis))


@register_rule(*aten("dist dot vdot"))
def scalar(tracer: Tracer, node: fx.Node) -> Result:
    """A number from all elements of two values."""
    operands = _operands(tracer, tensor_inputs(node))
    return sum_of_elements(tracer, node, operands, set(range(len(operands[0].shape))))


@register_rule(*aten("triplet_margin_loss cosine_embedding_loss"))
def loss_of_rows(tracer: Tracer, node: fx.Node) -> Result:
    """Distances, or similarities, of rows: sums over the last axis; what follows is done with the rows."""
    count = 3 if operator_name(node) == "aten::triplet_margin_loss" else 2  # the last one is a label otherwise
    operands = _operands(tracer, tensor_inputs(node)[:count])
    last = len(operands[0].shape) - 1
    value = sum_of_elements(tracer, node, operands, {last})
    return value if value.ids is None else tracer.opaque(node, OVER)


@register_rule(*aten("mse_loss l1_loss smooth_l1_loss huber_loss"))
def loss_of_elements(tracer: Tracer, node: fx.Node) -> Result:
    """A function of each difference, as it is, added up or averaged; an average over channels depends on the width."""
    operands, reduction = _operands(tracer, tensor_inputs(node)), argument(node, "reduction")
    if reduction == 0:
        return combine(tracer, node, operands)[0]
    if reduction == 1:
        followed = any(operand.axes for operand in operands)
        return tracer.opaque(node, "averages over the channels") if followed else Value(None, operands[0].reason)
    value = sum_of_elements(tracer, node, operands, set(range(len(operands[0].shape))))
    return value if value.ids is None else tracer.opaque(node, OVER)


@follows("aten::pdist")
def distances_of_pairs(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """Distances between all pairs of rows `(n, channels)`."""
    value = add_up(tracer, node, ids, {1})
    return value if value.ids is None else tracer.opaque(node, OVER)


@register_rule("aten::broadcast_tensors")
def broadcast_shapes(tracer: Tracer, node: fx.Node) -> Result:
    """Repeats axes of size 1, which hold no channels, so that all values have one shape."""
    sources, rank = list(argument(node, 0)), max(len(shape or ()) for shape in shapes_of(node))
    every = [tracer.ids(source) for source in sources]
    padded = [None if ids is None else ids.reshape(pad_left(ids.shape, rank)) for ids in every]
    return [Value(ids, tracer.reason(source)) for ids, source in zip(padded, sources, strict=True)]
