"""What layers do with weights that are computed from parameters: `x @ w`, `linear(x, w.t())`, `conv2d(x, w * scale)`.

Where the axes of a weight cannot be told (see `oicsr.rules.axes`), the layer stays as it is.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from oicsr.coupling import Side
from oicsr.rules.axes import OF_WEIGHTS, REDUCTIONS, Axis, Tracing, is_computed, weight_axes
from oicsr.rules.calls import gives_many, operator_name, shape_of
from oicsr.rules.ids import on_axis
from oicsr.rules.notes import PASSED, Passed, Product


def has_weight(tracer: Tracing, weight: Any) -> bool:
    """Return whether the axes of a layer's weight can be followed: it is a parameter, or computed from some."""
    return weight in tracer.parameters or (is_computed(tracer, weight) and weight_axes(tracer, weight) is not None)


def _axis(tracer: Tracing, weight: fx.Node, dim: int) -> Axis | None:
    axes = weight_axes(tracer, weight)
    return None if axes is None else axes[dim]


def can_follow(tracer: Tracing, weight: fx.Node, dim: int) -> bool:
    """Return whether an axis of a weight belongs to axes of parameters."""
    return weight in tracer.parameters or _axis(tracer, weight, dim) is not None


def labels_of(tracer: Tracing, weight: fx.Node, dim: int) -> Tensor | None:
    """Return the labels of an axis of a weight, as far as it has some."""
    if weight in tracer.parameters:
        slot = tracer.slots.get((tracer.parameters[weight], dim))
        return None if slot is None else slot.ids
    axis = _axis(tracer, weight, dim)
    return None if axis is None else axis.labels


def note_layer(
    tracer: Tracing,
    node: fx.Node,
    weight: fx.Node,
    *,
    rows: int | None = None,
    read: int | None = None,
    passed: Tensor | None = None,
) -> None:
    """Remember a layer for what it costs, where the width of its weight alone does not tell.

    Args:
        tracer: The tracer.
        node: The call.
        weight: Its weight; where it is computed, no parameter has its width.
        rows: The axis of the weight along which channels start.
        read: The axis that reads channels.
        passed: The ids of channels that the layer runs over one by one, along another axis.
    """
    if weight in tracer.parameters:
        if passed is not None:
            tracer.passed.append(Passed(node, tracer.parameters[weight], passed.flatten()))
        return
    labels = [None if dim is None else labels_of(tracer, weight, dim) for dim in (rows, read)]
    own = (None if passed is None else passed.flatten(),)
    tracer.note_product(Product(node, "weight", torch.zeros(0, dtype=torch.int64), labels[0], None, labels[1], *own))


def passes_by(tracer: Tracing, node: fx.Node, weight: fx.Node, ids: Tensor, *, whole: bool = False) -> bool:
    """Return whether channels pass through a layer that runs over them one by one, along another axis.

    A value has channels on one axis: where these pass, the layer's own ones stay. Where they were found to stay in any
    case (those of an output), the layer starts its own instead, unless it is to stay `whole`.
    """
    tracer.keep_axis(weight, 1, f"{tracer.where(node)} reads an axis without channels by it")
    if not whole and gives_way(tracer, node, weight, ids):
        return False
    note_layer(tracer, node, weight, passed=ids)
    if weight in tracer.parameters:
        own = tracer.start_channels(weight, dim=0)
        tracer.sets.fix(own, "runs along another axis than that of its input's channels")
    return True


def gives_way(tracer: Tracing, node: fx.Node, weight: fx.Node, ids: Tensor) -> bool:
    """Return whether channels that a layer passes on are known to stay, so that it starts its own instead."""
    key = (weight.name, PASSED)
    if key in tracer.passed_over:
        why = f"{tracer.where(node)} runs over them one by one, along another axis"
        tracer.sets.fix(ids, why, last=True)
        return True
    earlier = tracer.chosen.get(key, ids.flatten()[:0])
    tracer.chosen[key] = torch.cat([earlier, ids.flatten()])
    return False


def start_computed(tracer: Tracing, weight: fx.Node, dim: int) -> Tensor:
    """Return the channels that a layer produces by an axis of a computed weight."""
    axis = _axis(tracer, weight, dim)
    if axis is None:
        why = f"{tracer.where(weight)} gives a weight whose axis {dim} is no axis of a parameter"
        if shape_of(weight)[dim] > 1 and any(found is not None for found in weight_axes(tracer, weight) or ()):
            tracer.unruled.append(tracer.notable(f"{why}: the channels along it stay"))
        return tracer.sets.new_fixed(shape_of(weight)[dim], why)
    for key, _ in axis.sources:
        if key in tracer.slots and tracer.slots[key].side == "in":
            tracer.rebuilt.add(key)
        elif key in tracer.slots and tracer.slots[key].side == "norm":  # it was summed up row by row before
            tracer.put_slot(key, tracer.slots[key].ids, "out", True)
    _own(tracer, axis, "out", True)
    return axis.labels


def rows_of_sum(tracer: Tracing, node: fx.Node) -> Tensor | None:
    """Return the channels of a sum over all axes but one of a weight, or of a product of some.

    So are squared lengths of its rows, and what a matrix makes of a vector.

    None of any other value: element by element, such a weight would be tied along the axes that are summed over.
    """
    if not is_computed(tracer, node) or operator_name(node) not in REDUCTIONS | OF_WEIGHTS or gives_many(node):
        return None
    axes = weight_axes(tracer, node)
    labelled = [position for position, axis in enumerate(axes or ()) if axis is not None]
    if axes is None or len(labelled) != 1 or sum(size > 1 for size in shape_of(node)) > 1:
        return None
    axis = axes[labelled[0]]
    assert axis is not None
    _own(tracer, axis, "norm", False)
    return on_axis(axis.labels, labelled[0], len(axes))


def keep_rebuilt(tracer: Tracing, output: fx.Node) -> None:
    """Name the weights that rebuild, transposed, what they read (a tied decoder), where that is an output."""
    values = [tracer.ids(source) for source in output.all_input_nodes if not gives_many(source)]
    roots = [tracer.sets.find(ids.flatten()) for ids in values if ids is not None]
    for name, dim in sorted(tracer.rebuilt) if roots else ():
        labels = tracer.slots[name, dim].ids
        if bool(torch.isin(tracer.sets.find(labels), torch.cat(roots)).any()):
            tracer.sets.fix(labels, tracer.notable(f"is read by {name!r}, which rebuilds it as an output of the model"))


def follow_computed(tracer: Tracing, node: fx.Node, dim: int, ids: Tensor, side: Side, counts: bool) -> None:
    """Let an axis of a computed weight follow channels, and the parameters behind it.

    Raises:
        ValueError: `node` is no such weight.
    """
    axes = weight_axes(tracer, node)
    if axes is None:
        raise ValueError(f"{node.name} is no parameter or buffer of the model, so that it cannot follow channels")
    axis = axes[dim]
    if axis is None or axis.labels.shape != ids.shape:
        why = f"{tracer.where(node)} gives a weight that cannot follow them (it mixes what it reads, or holds numbers)"
        tracer.sets.fix(ids, tracer.notable(why))
        return
    tracer.sets.join(axis.labels, ids)
    _own(tracer, axis, side, counts)


def keep_computed(tracer: Tracing, weight: fx.Node, dim: int, reason: str) -> None:
    """Let an axis of a computed weight stay as it is."""
    axis = _axis(tracer, weight, dim)
    if axis is not None:
        tracer.sets.fix(axis.labels, reason)


def _own(tracer: Tracing, axis: Axis, side: Side, counts: bool) -> None:
    """Let the parameters behind an axis follow it, the largest first; those that have no other carry no energy.

    Where none carries any (filters that are functions of their cut-off frequencies), the first starts the channels all
    the same: the weights that read them say what they are worth.
    """
    sizes = dict(axis.sources)
    keys = sorted(sizes, key=lambda key: (-math.prod(sizes[key]), is_buffer(tracer, key[0]), key))
    for key in keys:
        labels = tracer.axes[key]
        if key in tracer.slots:
            tracer.sets.join(tracer.slots[key].ids, labels)
        else:
            wide = sum(size > 1 for size in sizes[key]) > 1
            tracer.put_slot(key, labels, side, counts and wide)
    if side == "out" and counts and keys and not any(key in tracer.producers for key in keys):
        tracer.producers.append(keys[0])


def is_buffer(tracer: Tracing, name: str) -> bool:
    """Return whether a tensor of the model is a buffer."""
    owner, _, local = name.rpartition(".")
    module = (tracer.modules or {}).get(owner)
    return module is not None and local in module._buffers


def is_wide(tracer: Tracing, node: fx.Node) -> bool:
    """Return whether a value is a parameter that holds more than one number for each channel."""
    owner, _, name = tracer.parameters[node].rpartition(".")
    module = (tracer.modules or {}).get(owner)
    return module is not None and name in module._parameters and len(shape_of(node)) > 1
