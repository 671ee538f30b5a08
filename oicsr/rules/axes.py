"""Axes of weights that are computed from parameters: views, products, sums and other functions of them, axis by axis.

`w.t()`, `w * scale`, `w + b @ a`, `torch.stack([w, v]).sum(0)`: what a layer reads here is no parameter, yet each of
its axes belongs to axes of parameters, and slices of those can go. An axis that a computation does not keep apart from
others stays as it is. Whether zeros stay zeros on the way (not in `exp(w)`) is for the numeric proof to find out.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

from oicsr.contractions import is_plain, plain_letters
from oicsr.coupling import Side
from oicsr.rules.calls import (
    argument,
    axes_of,
    axis_of,
    gives_many,
    is_integer,
    operator_name,
    shape_of,
    shapes_of,
    source_of,
)
from oicsr.rules.copies import copies_by_group, copies_joined
from oicsr.rules.ids import on_axis, varying
from oicsr.rules.labels import ChannelSets
from oicsr.rules.names import CUTS, ELEMENTWISE, JOINED, PRODUCTS, REPEATS, SHIFTS, SPREADING, VIEWS
from oicsr.rules.notes import Passed, Product, Slot
from oicsr.rules.table import Value, aten, find_rule

Key = tuple[str, int]  # a parameter's name and one of its axes
REARRANGED = VIEWS.union(
    CUTS,
    SHIFTS,
    REPEATS,
    aten(
        "rot90 index_select tril triu pad constant_pad_nd view_as_complex view_as_real upsample_nearest1d "
        "upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d "
        "upsample_bicubic2d"
    ),
)
REDUCTIONS = frozenset(aten("sum norm linalg_vector_norm amax amin prod"))
EXTREMES = frozenset(aten("max min"))  # of one tensor, or of two
MEANS = frozenset(aten("mean var std var_mean std_mean"))
NORMS = frozenset(aten("batch_norm instance_norm layer_norm"))
SOFTMAXES = frozenset(aten("softmax log_softmax softmin"))
OF_WEIGHTS = PRODUCTS | {"aten::dot", "aten::tensordot"}  # products that may be weights themselves
LETTERS = "abcdefghijklmnopqrstuvwxyz"


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
    producers: list[tuple[str, int]]
    computed: set[fx.Node]
    weights: dict[fx.Node, Axes | list[Axes] | None]
    axes: dict[tuple[str, int], Tensor]
    rebuilt: set[tuple[str, int]]
    passed: list[Passed]
    chosen: dict[tuple[str, int], Tensor]
    passed_over: frozenset[tuple[str, int]]
    unruled: list[str]

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

    def start_channels(self, weight: fx.Node, *, dim: int) -> Tensor:
        """Return the channels that a layer produces."""

    def keep_axis(self, weight: fx.Node, dim: int, reason: str) -> None:
        """Let an axis of a weight stay whole."""

    def put_slot(self, key: tuple[str, int], ids: Tensor, side: Side, counts: bool) -> None:
        """Let an axis of a parameter follow channels."""


def is_computed(tracer: Tracing, node: Any) -> bool:
    """Return whether a value is computed from parameters alone, none of which it is itself."""
    return isinstance(node, fx.Node) and node in tracer.computed


def is_pick(tracer: Tracing, node: fx.Node) -> bool:
    """Return whether a call picks matrices, or weights of more axes, from a stack by whole numbers along axis 0."""
    name = operator_name(node)
    if name not in ("aten::index", "aten::index_select", "aten::select") or len(shape_of(source_of(node))) < 3:
        return False
    if source_of(node) not in tracer.parameters and not is_computed(tracer, source_of(node)):
        return False
    if name != "aten::index":
        return bool(argument(node, 1) == 0) and isinstance(argument(node, 2), fx.Node)
    first, *others = argument(node, 1)
    return first is not None and not any(others) and is_integer(first)


def is_vector(tracer: Tracing, node: fx.Node) -> bool:
    """Return whether a value is a vector that is computed from parameters, and follows an axis of some."""
    axes = weight_axes(tracer, node) if node in tracer.computed else None
    return axes is not None and len(axes) == 1 and axes[0] is not None


def weight_axes(tracer: Tracing, node: fx.Node) -> Axes | None:
    """Return the axes of a parameter, or of a weight that is computed from some; None where they cannot be told."""
    if node not in tracer.weights:
        tracer.weights[node] = _find(tracer, node)
        tracer.weights[node] = _with_writes(tracer, node, tracer.weights[node])
    found = tracer.weights[node]
    return found if found is None or isinstance(found, tuple) else None


def _with_writes(tracer: Tracing, node: fx.Node, found: Axes | list[Axes] | None) -> Axes | list[Axes] | None:
    """Return axes with what is written in place into the weight, or a view of it: `w = v.clone(); w[:, :, 1] += u`."""
    if not isinstance(found, tuple):
        return found
    written: list[Axis] = []
    for user in node.users:
        name = operator_name(user)
        if is_computed(tracer, user) and source_of(user) is node and (name in REARRANGED or name.endswith("_")):
            written += [axis for axis in weight_axes(tracer, user) or () if axis is not None]

    def joined(axis: Axis) -> Axis:
        """Return an axis with the sources of what is written along its channels."""
        own = tracer.sets.find(axis.labels)
        alike = [w.sources for w in written if bool(torch.isin(tracer.sets.find(w.labels), own).any())]
        return Axis(axis.labels, axis.sources.union(*alike))

    return tuple(None if axis is None else joined(axis) for axis in found) if written else found


def _find(tracer: Tracing, node: fx.Node) -> Axes | list[Axes] | None:
    if node in tracer.parameters:
        shape = shape_of(node)
        return tuple(_of_parameter(tracer, node, dim) if size > 1 else None for dim, size in enumerate(shape))
    if not isinstance(node.meta.get("val"), Tensor | list | tuple):
        return None
    if not is_computed(tracer, node):
        if tracer.depends_on_input(node):
            return None
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
    if is_pick(tracer, node):
        return _picked(tracer, node)
    if name in REARRANGED:
        return _moved(tracer, node)
    if name in OF_WEIGHTS:
        return _product(tracer, node)
    sources = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]
    if name in MEANS and gives_many(node):  # a variance and a mean
        axes = _reduced(tracer, node, exact=False)
        return None if axes is None else [axes] * len(shapes_of(node))
    if name in REDUCTIONS | MEANS | EXTREMES and len(sources) == 1 and not gives_many(node):
        return _reduced(tracer, node, exact=name not in MEANS)
    if name in SOFTMAXES:
        return _softmax(tracer, node)
    if name in NORMS:
        return _normalized(tracer, node, name)
    if name in JOINED:
        return _joined(tracer, node)
    if name == "aten::stack":
        return _stacked(tracer, node)
    if name in ELEMENTWISE | EXTREMES | {"aten::copy"} and not gives_many(node):
        return _together(tracer, node, sources)
    return None


class _Along:
    """A tracer that follows one axis of a weight: where a rule gives up, that axis alone stays."""

    def __init__(self, tracer: Tracing, axis: Axis) -> None:
        vars(self).update(_tracer=tracer, _labels=axis.labels)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tracer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._tracer, name, value)

    def opaque(self, node: fx.Node, why: str) -> Value:
        """Fix the axis, as what reads it cannot be followed along it."""
        reason = self._tracer.notable(f"{self._tracer.where(node)} {why}")
        self._tracer.sets.fix(self._labels, reason)
        return Value(None, reason)


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
        copies = copies_by_group(node, position)
        if copies:
            found[0][position - len(axes)] = _for_each_group(tracer, node, axis, copies)
            continue
        result = following(_Along(tracer, axis), node, on_axis(axis.labels, position, len(axes)))
        for values, part in zip(result if isinstance(result, list) else [result], found, strict=True):
            ids = values.ids if isinstance(values, Value) else values
            if ids is None or len(varying(ids)) > 1:
                tracer.sets.fix(axis.labels, tracer.notable(f"is split in {tracer.where(node)}"))
                continue
            for new in varying(ids):  # one at most
                if part[new] is None:
                    part[new] = Axis(ids.flatten(), axis.sources)
                else:  # merged with another one, whose slices are blocks of this one's
                    tracer.sets.fix(axis.labels, f"is merged with another axis in {tracer.where(node)}")
    if operator_name(node) in SPREADING:
        _widen(tracer, node, axes, found[0])
    whole = [tuple(part) for part in found]
    return whole if gives_many(node) else whole[0]


def _for_each_group(tracer: Tracing, node: fx.Node, axis: Axis, copies: int) -> Axis:
    """Return the axis of copies of a weight, one for each group: the copies may go, not what they are copies of."""
    tracer.sets.fix(axis.labels, f"is repeated for each group in {tracer.where(node)}")
    return Axis(tracer.sets.new(copies).repeat_interleave(len(axis.labels)), frozenset())


def _picked(tracer: Tracing, node: fx.Node) -> Axes | None:
    """Pick from a stack of weights: how many there are stays, the other axes are theirs."""
    axes = weight_axes(tracer, source_of(node))
    if axes is None:
        return None
    if axes[0] is not None:
        tracer.sets.fix(axes[0].labels, f"{tracer.where(node)} picks from it")
    return (*[None] * (len(shape_of(node)) - len(axes) + 1), *axes[1:])


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
    """A product of weights (a low-rank update, a mixture of kernels): axes that several have are tied."""
    form = factors_and_letters(node)
    if form is None:
        return None
    sources, letters, out = form
    whole = [weight_axes(tracer, source) for source in sources]
    found: dict[str, Axis | None] = {}
    for letter in dict.fromkeys("".join(letters)):
        own: list[Axis | None] = []
        for source, axes, part in zip(sources, whole, letters, strict=True):
            if axes is None:
                return None
            own += [axes[part.index(letter)]] if letter in part and shape_of(source)[part.index(letter)] > 1 else []
        found[letter] = _tied(tracer, node, own)
    return tuple(found[letter] for letter in out)


def factors_and_letters(node: fx.Node) -> tuple[list[fx.Node], list[str], str] | None:
    """Return the factors of a product, a letter for each axis of each, and those of the result; None for odd forms."""
    name = operator_name(node)
    if name == "aten::einsum":
        sources, equation = list(argument(node, 1)), argument(node, 0)
        return (sources, *plain_letters(equation)) if is_plain(equation) else None
    sources = [argument(node, 0), argument(node, 1)]
    first, second = (len(shape_of(source)) for source in sources)
    if name == "aten::tensordot":
        summed = [[int(dim) % rank for dim in argument(node, i)] for i, rank in ((2, first), (3, second))]
        letters = [LETTERS[:first], LETTERS[first : first + second]]
        for one, other in zip(*summed, strict=True):
            letters[1] = letters[1].replace(letters[1][other], letters[0][one])
        return sources, letters, "".join(c for c in letters[0] + letters[1] if (c in letters[0]) != (c in letters[1]))
    lead = LETTERS[: max(first, second, 2) - 2]
    letters = [lead[len(lead) - max(rank - 2, 0) :] + end for rank, end in ((first, "xz"), (second, "zy"))]
    letters = [part[-rank:] if rank > 1 else "z" for part, rank in zip(letters, (first, second), strict=True)]
    return sources, letters, lead + "x" * (first > 1) + "y" * (second > 1)


def _softmax(tracer: Tracing, node: fx.Node) -> Axes | None:
    """Weights that sum to one along an axis: that axis stays as it is."""
    axes = weight_axes(tracer, source_of(node))
    axis = None if not axes else axes[axis_of(node, len(axes))]
    if axis is not None:
        tracer.sets.fix(axis.labels, tracer.notable(f"{tracer.where(node)} normalises a weight over it"))
    return axes


def _stacked(tracer: Tracing, node: fx.Node) -> Axes | None:
    """Stack weights along a new axis, which stays as it is but for copies; the other axes are tied."""
    parts = [weight_axes(tracer, source) for source in argument(node, 0)]
    whole = [part for part in parts if part is not None]
    if len(whole) < len(parts):
        return None
    shape = shape_of(argument(node, 0)[0])
    found = [_tied(tracer, node, [part[dim] for part in whole]) if size > 1 else None for dim, size in enumerate(shape)]
    copies = copies_joined(node)
    found.insert(axis_of(node, len(shape) + 1), Axis(tracer.sets.new(copies), frozenset()) if copies else None)
    return tuple(found)


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
    if len(shapes_of(node)[0] or ()) == len(axes):
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
    """Concatenate weights along an axis, which is kept whole if part of it is constants; the other axes are tied."""
    parts = [weight_axes(tracer, source) for source in argument(node, 0)]
    rank = len(shape_of(node))
    along = axis_of(node, rank)
    whole = [part for part in parts if part is not None]
    if len(whole) < len(parts):
        return None
    sizes = [shape_of(source) for source in argument(node, 0)]
    others = {dim for dim in range(rank) if dim != along and sizes[0][dim] > 1}
    found = [_tied(tracer, node, [part[dim] for part in whole]) if dim in others else None for dim in range(rank)]
    behind, copies = [axis for part in whole if (axis := part[along]) is not None], copies_joined(node)
    if copies and sizes[0][along] == 1:  # as `expand` makes them
        return (*found[:along], Axis(tracer.sets.new(copies), frozenset()), *found[along + 1 :])
    if behind and copies_by_group(node, along):
        return (*found[:along], _for_each_group(tracer, node, behind[0], copies), *found[along + 1 :])
    if len(behind) < len(whole):
        for axis in behind:
            tracer.sets.fix(axis.labels, f"{tracer.where(node)} puts numbers behind it")
        return (*found[:along], None, *found[along + 1 :])
    sources = frozenset(source for axis in behind for source in axis.sources)
    found[along] = Axis(torch.cat([axis.labels for axis in behind]), sources)
    return tuple(found)
