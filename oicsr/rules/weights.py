"""Weights that are computed from parameters: views, products, sums and other functions of them, axis by axis.

`x @ w`, `linear(x, w.t())`, `conv2d(x, w * scale)`, `linear(x, w + b @ a)`: what a layer reads here is no parameter,
yet each of its axes belongs to axes of parameters, and slices of those can go. Where a computation does not keep the
axes apart, None is given, and the layer stays as it is. Whether zeros stay zeros on the way (they do not in `exp(w)`)
is for the numeric proof to find out.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

from oicsr.coupling import Side
from oicsr.labels import ChannelSets
from oicsr.rules.calls import argument, axes_of, axis_of, gives_many, operator_name, shape_of, shapes_of, source_of
from oicsr.rules.ids import on_axis, varying
from oicsr.rules.names import ADDING, COMBINING, UNARY
from oicsr.rules.notes import Product, Slot
from oicsr.rules.table import Value, aten, find_rule

Key = tuple[str, int]  # a parameter's name and one of its axes
MOVED = frozenset(
    aten(
        "permute transpose t swapaxes movedim moveaxis swapdims mT adjoint flatten view view_as reshape reshape_as "
        "unflatten _unsafe_view squeeze unsqueeze expand broadcast_to expand_as repeat repeat_interleave flip split "
        "split_with_sizes chunk slice narrow select unbind index_select tril triu pad constant_pad_nd softmax roll "
        "view_as_complex view_as_real"
    )
)
SUMS = frozenset(aten("sum norm linalg_vector_norm amax amin prod"))
EXTREMES = frozenset(aten("max min"))  # of one tensor, or of two
EXPANDED = frozenset(aten("expand broadcast_to expand_as repeat"))
MEANS = frozenset(aten("mean var std var_mean std_mean"))
NORMS = frozenset(aten("batch_norm instance_norm layer_norm"))
PRODUCTS = frozenset(aten("matmul mm bmm linalg_matmul"))
JOINED = frozenset(aten("cat concat concatenate"))
ELEMENTWISE = frozenset([*UNARY, *COMBINING, *ADDING])


@dataclass(frozen=True)
class Axis:
    """An axis of a weight.

    Attributes:
        labels: The label of each of its slices.
        sources: The axes of parameters that it is made of, each with the parameter's shape.
    """

    labels: Tensor
    sources: frozenset[tuple[Key, tuple[int, ...]]]


Axes = tuple[Axis | None, ...]  # None: of size 1, or of numbers that belong to no parameter


class Tracing(Protocol):
    """What is needed here of `oicsr.rules.tracer.Tracer`, which needs this module itself."""

    sets: ChannelSets
    parameters: dict[fx.Node, str]
    modules: Mapping[str, nn.Module] | None
    slots: dict[tuple[str, int], Slot]
    computed: set[fx.Node]
    weights: dict[fx.Node, Axes | list[Axes] | None]
    axes: dict[tuple[str, int], Tensor]
    rebuilt: set[tuple[str, int]]

    def ids(self, node: fx.Node) -> Tensor | None:
        """Return the channels of a value's elements."""

    def depends_on_input(self, node: fx.Node) -> bool:
        """Return whether a value depends on the model's input."""

    def where(self, node: fx.Node) -> str:
        """Return an operator and its place in the code."""

    def notable(self, reason: str) -> str:
        """Mark a reason as one to warn of."""

    def note_product(self, product: Product) -> None:
        """Keep a product of weights."""

    def axis_labels(self, key: tuple[str, int], size: int) -> Tensor:
        """Return the labels of an axis of a parameter."""

    def put_slot(self, key: tuple[str, int], ids: Tensor, side: Side, counts: bool) -> None:
        """Let an axis of a parameter follow channels."""


def is_computed(tracer: Tracing, node: Any) -> bool:
    """Return whether a value is computed from parameters alone, none of which it is itself."""
    return isinstance(node, fx.Node) and node in tracer.computed


def weight_axes(tracer: Tracing, node: fx.Node) -> Axes | None:
    """Return the axes of a parameter, or of a weight that is computed from some; None where they cannot be told."""
    if node not in tracer.weights:
        tracer.weights[node] = _find(tracer, node)
    found = tracer.weights[node]
    return found if found is None or isinstance(found, tuple) else None


def _find(tracer: Tracing, node: fx.Node) -> Axes | list[Axes] | None:
    if node in tracer.parameters:
        shape = shape_of(node)
        return tuple(_of_parameter(tracer, node, dim) if size > 1 else None for dim, size in enumerate(shape))
    if tracer.depends_on_input(node) or not isinstance(node.meta.get("val"), Tensor | list | tuple):
        return None
    if not is_computed(tracer, node):
        return tuple(None for _ in shape_of(node))  # numbers
    if node.target is operator.getitem:
        weight_axes(tracer, node.args[0])  # type: ignore[arg-type]
        parts = tracer.weights[node.args[0]]  # type: ignore[index]
        return parts[node.args[1]] if isinstance(parts, list) else None  # type: ignore[index]
    return _of_call(tracer, node)


def _of_parameter(tracer: Tracing, node: fx.Node, dim: int) -> Axis:
    key, shape = (tracer.parameters[node], dim), shape_of(node)
    return Axis(tracer.axis_labels(key, shape[dim]), frozenset([(key, shape)]))


def _of_call(tracer: Tracing, node: fx.Node) -> Axes | list[Axes] | None:
    name = operator_name(node).rstrip("_")
    if name in MOVED:
        return _moved(tracer, node)
    if name in PRODUCTS:
        return _product(tracer, node)
    sources = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]
    if name in SUMS | MEANS | EXTREMES and len(sources) == 1 and not gives_many(node):
        return _reduced(tracer, node, exact=name not in MEANS)
    if name in NORMS:
        return _normalized(tracer, node, name)
    if name in JOINED:
        return _joined(tracer, node)
    if name in ELEMENTWISE | EXTREMES and not gives_many(node):
        return _together(tracer, node, sources)
    return None


def _moved(tracer: Tracing, node: fx.Node) -> Axes | list[Axes] | None:
    """Carry the labels of one axis after the other through the rule of an operator that moves elements."""
    axes, rule = weight_axes(tracer, source_of(node)), find_rule(node)
    following = getattr(rule, "following", None)
    if axes is None or following is None:
        return None
    found: list[list[Axis | None]] = [[None] * len(shape or ()) for shape in shapes_of(node)]
    if operator_name(node) == "aten::view_as_complex":
        axes = (*axes[:-1], None)  # the parts of numbers
    for position, axis in enumerate(axes):
        if axis is None:
            continue
        result = following(tracer, node, on_axis(axis.labels, position, len(axes)))
        for values, part in zip(result if isinstance(result, list) else [result], found, strict=True):
            ids = values.ids if isinstance(values, Value) else values
            if ids is None or len(varying(ids)) > 1:
                tracer.sets.fix(axis.labels, f"is split in {tracer.where(node)}")
                return None
            for new in varying(ids):  # one at most
                if part[new] is None:
                    part[new] = Axis(ids.flatten(), axis.sources)
                else:  # merged with another one, whose slices are blocks of this one's
                    tracer.sets.fix(axis.labels, f"is merged with another axis in {tracer.where(node)}")
    if operator_name(node) in EXPANDED:
        _widen(tracer, node, axes, found[0])
    whole = [tuple(part) for part in found]
    return whole if gives_many(node) else whole[0]


def _widen(tracer: Tracing, node: fx.Node, axes: Axes, found: list[Axis | None]) -> None:
    """Give labels to axes along which one slice was repeated (one kernel of a blur for all channels): any may go."""
    before, after = shape_of(source_of(node)), shape_of(node)
    for back in range(1, len(after) + 1):
        single = back > len(before) or (before[-back] == 1 and axes[-back] is None)
        if single and after[-back] > 1 and found[-back] is None:
            found[-back] = Axis(tracer.sets.new(after[-back]), frozenset())


def _together(tracer: Tracing, node: fx.Node, sources: Sequence[fx.Node]) -> Axes | None:
    """Join the axes of the operands of an elementwise operator, as broadcasting aligns them."""
    shape = shape_of(node)
    operands = [(weight_axes(tracer, source), shape_of(source)) for source in sources]
    if any(axes is None for axes, _ in operands):
        return None
    found: list[Axis | None] = []
    for back in range(len(shape), 0, -1):
        own = [
            axes[-back]
            for axes, size in operands
            if axes is not None and len(size) >= back and size[-back] == shape[-back] > 1
        ]
        found.append(_tied(tracer, node, own))
    return tuple(found)


def _tied(tracer: Tracing, node: fx.Node, axes: Sequence[Axis | None]) -> Axis | None:
    """Tie axes that can only lose the same slices; all stay where one of them holds numbers."""
    labelled = [axis for axis in axes if axis is not None]
    for axis in labelled:
        tracer.sets.join(axis.labels, labelled[0].labels)
        if len(labelled) < len(axes):
            tracer.sets.fix(axis.labels, tracer.notable(f"{tracer.where(node)} combines it with numbers"))
    sources = frozenset(source for axis in labelled for source in axis.sources)
    return Axis(labelled[0].labels, sources) if labelled else None


def _product(tracer: Tracing, node: fx.Node) -> Axes | None:
    """A product of two weights (a low-rank update): rows of the first, columns of the second."""
    first, second = (weight_axes(tracer, argument(node, i)) for i in range(2))
    if first is None or second is None or len(first) != 2 or len(second) != 2:
        return None
    _tied(tracer, node, [first[1], second[0]])
    return first[0], second[1]


def _reduced(tracer: Tracing, node: fx.Node, *, exact: bool) -> Axes | None:
    """Drop axes; those over which a mean is taken stay whole."""
    axes = weight_axes(tracer, source_of(node))
    if axes is None:
        return None
    declared = [entry.name for entry in node.target._schema.arguments]  # type: ignore[union-attr]
    gone = axes_of(node, len(axes)) if "dim" in declared else set(range(len(axes)))
    for position in gone:
        axis = axes[position]
        if axis is not None and not exact:
            tracer.sets.fix(axis.labels, tracer.notable(f"{tracer.where(node)} {STANDARDISED}"))
    if len(shape_of(node)) == len(axes):
        return tuple(None if position in gone else axis for position, axis in enumerate(axes))
    return tuple(axis for position, axis in enumerate(axes) if position not in gone)


STANDARDISED = "standardises a weight over the channels that it reads"


def _normalized(tracer: Tracing, node: fx.Node, name: str) -> Axes | None:
    """Standardise rows over all that they read: rows may go, and what they read stays."""
    axes = weight_axes(tracer, source_of(node))
    if axes is None:
        return None
    kept = set(range(len(axes) - len(argument(node, 1)))) if name == "aten::layer_norm" else {1}
    if name == "aten::instance_norm":
        kept |= {0}
    for position, axis in enumerate(axes):
        if position not in kept and axis is not None:
            tracer.sets.fix(axis.labels, tracer.notable(f"{tracer.where(node)} {STANDARDISED}"))
    found = list(axes)
    if name != "aten::layer_norm":
        vectors = [vector for i in range(1, 5) if isinstance(vector := argument(node, i), fx.Node)]
        others = [weight_axes(tracer, vector) for vector in vectors]
        if any(other is None for other in others):
            return None
        found[1] = _tied(tracer, node, [axes[1], *(other[0] for other in others if other is not None)])
    return tuple(found)


def _joined(tracer: Tracing, node: fx.Node) -> Axes | None:
    """Put weights behind one another on one axis; the others are tied."""
    parts = [weight_axes(tracer, source) for source in argument(node, 0)]
    rank = len(shape_of(node))
    along = axis_of(node, rank)
    whole = [part for part in parts if part is not None]
    if len(whole) < len(parts) or any(part[along] is None for part in whole):
        return None
    found = [_tied(tracer, node, [part[dim] for part in whole]) if dim != along else None for dim in range(rank)]
    behind = [axis for part in whole if (axis := part[along]) is not None]
    sources = frozenset(source for axis in behind for source in axis.sources)
    found[along] = Axis(torch.cat([axis.labels for axis in behind]), sources)
    return tuple(found)


# ----------------------------------------------------------------------------------------------------------------
# what layers do with them
# ----------------------------------------------------------------------------------------------------------------


def has_weight(tracer: Tracing, weight: Any) -> bool:
    """Return whether the axes of a layer's weight can be followed: it is a parameter, or computed from some."""
    return weight in tracer.parameters or (is_computed(tracer, weight) and weight_axes(tracer, weight) is not None)


def _axis(tracer: Tracing, weight: fx.Node, dim: int) -> Axis | None:
    axes = weight_axes(tracer, weight)
    return None if axes is None else axes[dim]


def note_layer(
    tracer: Tracing, node: fx.Node, weight: fx.Node, *, rows: int | None = None, read: int | None = None
) -> None:
    """Remember a layer whose weight is computed, for what it costs; `rows`, `read`: the axes of its weight."""
    if weight in tracer.parameters:
        return
    axes = [None if dim is None else _axis(tracer, weight, dim) for dim in (rows, read)]
    labels = [None if axis is None else axis.labels for axis in axes]
    tracer.note_product(Product(node, "weight", torch.zeros(0, dtype=torch.int64), labels[0], None, labels[1]))


def start_computed(tracer: Tracing, weight: fx.Node, dim: int) -> Tensor:
    """Return the channels that a layer produces by an axis of a computed weight."""
    axis = _axis(tracer, weight, dim)
    if axis is None:
        return tracer.sets.new_fixed(shape_of(weight)[dim], f"has no parameter behind axis {dim} of its weight")
    for key, _ in axis.sources:
        if key in tracer.slots and tracer.slots[key].side == "in":
            tracer.rebuilt.add(key)
        elif key in tracer.slots and tracer.slots[key].side == "norm":  # it was summed up row by row before
            tracer.put_slot(key, tracer.slots[key].ids, "out", True)
    _own(tracer, axis, "out", True)
    return axis.labels


def rows_of_sum(tracer: Tracing, node: fx.Node) -> Tensor | None:
    """Return the channels of a sum over all axes but one of a weight (squared lengths of its rows).

    None of any other value: element by element, such a weight would be tied along the axes that are summed over.
    """
    if not is_computed(tracer, node) or operator_name(node) not in SUMS or gives_many(node):
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
    """Let the parameters behind an axis follow it, the largest first; those that have no other carry no energy."""
    sizes = dict(axis.sources)
    for key in sorted(sizes, key=lambda key: (-math.prod(sizes[key]), is_buffer(tracer, key[0]), key)):
        labels = tracer.axes[key]
        if key in tracer.slots:
            tracer.sets.join(tracer.slots[key].ids, labels)
        else:
            wide = sum(size > 1 for size in sizes[key]) > 1
            tracer.put_slot(key, labels, side, counts and wide)


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
