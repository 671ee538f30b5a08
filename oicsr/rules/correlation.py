"""Convolutions whose kernels are activations: correlations with a template, filters that are made for each image.

A kernel `(out, in / groups, *sizes)` that holds channels is a factor like any other. Where a group reads one channel,
each is multiplied with that of its kernel; where it reads several, those of the kernel's second axis are summed up
together with them. The rows of the kernel pass to the output.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from oicsr.rules.calls import argument, shape_of, source_of
from oicsr.rules.ids import on_axis, squeeze_constant_axes, varying
from oicsr.rules.notes import Product
from oicsr.rules.registry import Value
from oicsr.rules.tracer import Tracer


def is_correlation(tracer: Tracer, weight: fx.Node) -> bool:
    """Return whether a kernel is an activation that holds channels."""
    ids = tracer.ids(weight) if tracer.depends_on_input(weight) else None
    return ids is not None and bool(varying(ids))


def correlate(tracer: Tracer, node: fx.Node, axis: int) -> Value:
    """Follow the channels on an axis of the input, and those of the kernels."""
    source, weight, groups = source_of(node), argument(node, 1), int(argument(node, "groups"))
    ids, (out, reads) = tracer.ids(source), shape_of(weight)[:2]
    channels = None if ids is None else tracer.channels(ids, axis, reads * groups)
    if ids is not None and varying(ids) and channels is None:
        return tracer.opaque(node, "reads channels that lie on another axis")
    rows, columns = _of_kernel(tracer, weight, by_row=channels is None or reads == 1)
    if reads > 1:
        inside = None if channels is None else channels.reshape(groups, reads)
        across = None if columns is None else columns.expand(groups, reads)
        summed = _together(tracer, node, inside, across)
        passed, read = rows, None if summed is None else summed[0]
    else:
        inside = None if channels is None else channels.repeat_interleave(out // groups)
        passed, read = _together(tracer, node, inside, rows) if groups > 1 else rows, None
    tracer.note_product(Product(node, "weight", torch.zeros(0, dtype=torch.int64), passed, None, read))
    if passed is None:
        return _unfollowed(tracer, node, alone=out == groups)
    tracer.add_bias(argument(node, 2), passed)
    return Value(on_axis(passed, axis, len(shape_of(node))))


def _unfollowed(tracer: Tracer, node: fx.Node, *, alone: bool) -> Value:
    """Return an output whose channels stay; the user is told, unless each example has one (`alone`)."""
    if alone:
        return Value(None, "is a product of activations")
    reason = tracer.notable(f"{tracer.where(node)} has kernels that are activations, and what they give stays")
    if isinstance(argument(node, 2), fx.Node):
        tracer.fix(argument(node, 2), reason)
    tracer.unruled.append(reason)
    return Value(None, reason)


def _of_kernel(tracer: Tracer, weight: fx.Node, *, by_row: bool) -> tuple[Tensor | None, Tensor | None]:
    """Return the channels of a kernel's rows and columns; where they lie on both axes, those of the other are tied."""
    ids = tracer.ids(weight)
    assert ids is not None
    for place in varying(ids):
        if place > 1 or (place == by_row and len({0, 1} & set(varying(ids))) > 1):
            ids = tracer.tie_axis(ids, place)
    ids = squeeze_constant_axes(tracer.sets.find(ids))
    rows, columns = (ids.flatten() if varying(ids) == [place] else None for place in (0, 1))
    return rows, columns


def _together(tracer: Tracer, node: fx.Node, inside: Tensor | None, kernel: Tensor | None) -> Tensor | None:
    """Tie the channels of an input to those of the kernels; they stay where only one of both is followed."""
    if inside is not None and kernel is not None:
        tracer.sets.join(inside, kernel)
        return inside
    for own, other in ((inside, argument(node, 1)), (kernel, source_of(node))):
        if own is not None:
            tracer.sets.fix(own, tracer.reason(other))
    return None
