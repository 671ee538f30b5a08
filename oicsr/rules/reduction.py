"""Reductions, softmaxes and scans: along axes that hold no channels, or one part of a split channel axis."""

from __future__ import annotations

from torch import Tensor, fx

from oicsr.rules.averages import average
from oicsr.rules.calls import (
    argument,
    axes_of,
    gives_many,
    operator_name,
    shape_of,
    shapes_of,
    source_of,
    tensor_inputs,
)
from oicsr.rules.elementwise import broadcast
from oicsr.rules.ids import varying
from oicsr.rules.names import ELEMENTWISE
from oicsr.rules.registry import Result, Value, aten, follows, register_rule
from oicsr.rules.rms import adds_magnitudes, written_out
from oicsr.rules.shape import left_open
from oicsr.rules.shifts import cancels_out
from oicsr.rules.sums import MAXIMA, added_up, sums_up
from oicsr.rules.tracer import Tracer
from oicsr.rules.weights import rows_of_sum

NORMALISED = "is a mean of squares over channels, or another size of them"

REDUCTIONS = """
    mean sum nansum nanmean prod amax amin aminmax argmax argmin var std var_mean std_mean norm linalg_vector_norm
    logsumexp all any count_nonzero median nanmedian mode kthvalue topk sort argsort linalg_norm
"""


@register_rule(*aten(REDUCTIONS))
def reduction(tracer: Tracer, node: fx.Node) -> Result:
    """Of a weight: the lengths of its rows, and the like; of any other value: see `reduce`."""
    rows = rows_of_sum(tracer, node)
    return reduce(tracer, node) if rows is None else Value(rows)


@follows()
def reduce(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """Removes axes that hold no channels, or sorts along them; the channels on other axes stay where they are.

    Of a split channel axis, one part may be reduced: slices of the other part then go as a whole. Sums over channels
    are left to the proof to judge, and so are those over the part whose size the code leaves open
    (`x.view(batch, 4, -1).sum(2)`): channel `i` of all groups goes then.
    """
    declared = [entry.name for entry in node.target._schema.arguments]  # type: ignore[union-attr]
    axes = axes_of(node, ids.ndim) if "dim" in declared else set(range(ids.ndim))
    others = set(varying(ids)) - axes
    is_open = bool(others) and sums_up(node) and not tracer.takes_heads(node) and _is_open(source_of(node), axes)
    if is_open and (summed := added_up(tracer, node, ids)) is not None:
        for axis in others:
            ids = tracer.tie_axis(ids, axis)
        return [summed] * len(node.meta["val"]) if gives_many(node) else summed
    kept = tracer.whole(ids, axes)
    if kept is None and adds_magnitudes(node) and argument(node, "keepdim"):
        return Value(None, NORMALISED)
    if kept is None and sums_up(node) and (summed := added_up(tracer, node, ids)) is not None:
        return [summed] * len(node.meta["val"]) if gives_many(node) else summed
    if kept is None and operator_name(node) in MAXIMA and not gives_many(node) and cancels_out(node):
        return Value(None, "is subtracted from the exponents of a softmax")
    if kept is None:
        is_mean = operator_name(node) == "aten::mean"
        why = written_out(tracer, node, ids) if is_mean else None
        if is_mean and why is None and (averaged := average(tracer, node, ids)) is not None:
            return averaged
        return Value(None, NORMALISED) if why == "" else tracer.opaque(node, why or "reduces over the channels")
    shapes = shapes_of(node)
    if shapes[0] is not None and len(shapes[0]) != ids.ndim:
        kept = kept.reshape([size for axis, size in enumerate(kept.shape) if axis not in axes])
    return [Value(kept)] * len(shapes) if gives_many(node) else kept


def _is_open(value: fx.Node, axes: set[int]) -> bool:
    """Return whether the code leaves the size of one of some axes open where it makes a value's shape."""
    while value.op == "call_function" and operator_name(value).rstrip("_") in ELEMENTWISE:
        alike = [source for source in tensor_inputs(value) if shape_of(source) == shape_of(value)]
        if not alike:
            return False
        value = alike[0]
    return value.op == "call_function" and left_open(value) in axes


@register_rule(*aten("max min"))
def max_or_min(tracer: Tracer, node: fx.Node) -> Result:
    """Of one tensor: a reduction; of two: elementwise."""
    return broadcast(tracer, node) if len(tensor_inputs(node)) > 1 else reduce(tracer, node)


@follows(*aten("softmax log_softmax _softmax _log_softmax softmin"))
def softmax(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """Keeps channels that do not lie on the axis it normalises."""
    kept = tracer.whole(ids, axes_of(node, ids.ndim))
    return tracer.opaque(node, "normalises over the channels") if kept is None else kept


@follows(*aten("cumsum cumprod cummax cummin logcumsumexp diff roll"))
def scan(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """Keeps channels that do not lie on the axis along which it sums up or shifts."""
    kept = tracer.whole(ids, axes_of(node, ids.ndim, "dims" if operator_name(node) == "aten::roll" else "dim"))
    if kept is None:
        return tracer.opaque(node, "runs along the channels")
    return [Value(kept)] * len(node.meta["val"]) if gives_many(node) else kept


TRANSFORMS = """
    fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_fftn fft_ifftn
    fft_rfftn fft_irfftn fft_fftshift fft_ifftshift
"""


@follows(*aten(TRANSFORMS))
def transform(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """Keeps channels that do not lie on the axes that it transforms."""
    declared = [entry.name for entry in node.target._schema.arguments]  # type: ignore[union-attr]
    kept = tracer.whole(ids, axes_of(node, ids.ndim, "dim" if "dim" in declared else "dims"))
    return tracer.opaque(node, "transforms over the channels") if kept is None else kept


@follows("aten::view_as_complex")
def as_complex(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """Takes the last axis, of size 2, for the parts of numbers."""
    kept = tracer.whole(ids, [ids.ndim - 1])
    return tracer.opaque(node, "takes channels for parts of numbers") if kept is None else kept.squeeze(-1)


@follows("aten::view_as_real")
def as_real(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor:
    """Puts the parts of numbers on a new last axis."""
    return ids.unsqueeze(-1)
