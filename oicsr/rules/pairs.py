"""Values with channels on two axes: keys by values in linear attention, queries by keys in cross-covariance attention.

A product that sums over tokens alone passes the channels of both factors on, each on an axis of its own. Ids name one
channel per element, so such a value has a pair of them. For each of the two, the other's axis is like any axis without
channels. So an operator that leaves axes apart is asked twice, products take pairs as they are, layers read one of the
axes so that channels on the other stay, and for all other operators the fewer of the channels stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, fx

from oicsr.contractions import is_plain
from oicsr.rules.axes import Tracing
from oicsr.rules.calls import argument, operator_name, shape_of, tensor_inputs
from oicsr.rules.ids import squeeze_constant_axes, varying
from oicsr.rules.names import ELEMENTWISE, PRODUCTS, VIEWS
from oicsr.rules.table import Entry, Result, Value, aten
from oicsr.rules.weights import has_weight

Axes = tuple[int, ...]
APART = (ELEMENTWISE - {"aten::copy"}) | VIEWS | {*aten("softmax log_softmax _softmax cumsum")}  # leave axes apart


class TracingPairs(Tracing, Protocol):
    """What is needed here of `oicsr.rules.tracer.Tracer`, which needs this module itself."""

    values: dict[fx.Node, Result]

    def reason(self, node: fx.Node) -> str:
        """Return why no channels of a value are followed."""


def pair_of(tracer: TracingPairs, node: fx.Node) -> tuple[Tensor, ...]:
    """Return the ids of a value with channels on two axes, those for each axis; nothing for any other value."""
    value = tracer.values.get(node)
    if not isinstance(value, Value) or value.pair is None:
        return ()
    first, second = (squeeze_constant_axes(tracer.sets.find(ids)) for ids in value.pair)
    if varying(first) and varying(second):
        return first, second
    tracer.values[node] = replace(value, ids=first if varying(first) else second, pair=None)  # one was tied since
    return ()


def ask(tracer: TracingPairs, node: fx.Node, rule: Entry, call: object) -> Result:
    """Ask a rule what a call does to the channels of what it reads, which may be pairs."""
    paired = [source for source in node.all_input_nodes if pair_of(tracer, source)]
    if paired and not _is_product(tracer, node):
        sides = _sides(tracer, paired) if operator_name(node).rstrip("_") in APART or _is_permutation(node) else None
        if sides is not None:
            results = [_asked(tracer, node, sides, axes, rule, call) for axes in sides]
            return _joined(tracer, results, tracer.reason(paired[0]))
        for source in paired:
            tracer.values[source] = single(tracer, tracer.values[source], _axis_read(node, source))
    return rule(tracer, call)


def held(result: Result, reason: str) -> list[tuple[Tensor | None, str]]:
    """Return all ids of a value, each with the reason why they stay: `reason`, or that of a pair for its being one."""
    parts = result if isinstance(result, list) else [result]
    pairs = [(ids, part.reason) for part in parts for ids in part.pair or ()]
    return [*((part.ids, reason) for part in parts), *pairs]


def single(tracer: TracingPairs, result: Result, axis: int | None = None) -> Result:
    """Return a value without its pair: the channels on an axis are followed, or else the more; the others stay."""
    if not isinstance(result, Value) or result.pair is None:
        return result
    count = [(_axes(ids) == (axis,), len(tracer.sets.find(ids).unique())) for ids in result.pair]
    fewer, more = result.pair if count[0] <= count[1] else result.pair[::-1]
    tracer.sets.fix(fewer, result.reason)
    return replace(result, ids=more, pair=None)


def _is_product(tracer: TracingPairs, node: fx.Node) -> bool:
    """Return whether a call is a product of two activations in a form whose rule takes pairs."""
    if operator_name(node) not in PRODUCTS or any(n.meta["val"].layout != torch.strided for n in tensor_inputs(node)):
        return False
    factors = node.args[:2]
    if operator_name(node) == "aten::einsum":
        factors = tuple(node.args[1]) if is_plain(node.args[0]) else ()  # type: ignore[arg-type]
    return len(factors) == 2 and not any(isinstance(n, fx.Node) and has_weight(tracer, n) for n in factors)


def _axis_read(node: fx.Node, source: fx.Node) -> int | None:
    """Return the axis that a layer reads, counted from the right; None of any other call."""
    name = operator_name(node)
    if name == "aten::linear" or (name in PRODUCTS and node.args[0] is source):
        return -1
    if name.startswith("aten::conv"):
        return 1 - len(shape_of(argument(node, 1)))
    return -2 if name in PRODUCTS - set(aten("einsum")) else None


def _is_permutation(node: fx.Node) -> bool:
    if operator_name(node) != "aten::einsum" or not is_plain(node.args[0]):
        return False
    before, _, after = str(node.args[0]).replace(" ", "").partition("->")
    return sorted(before) == sorted(after)


def _sides(tracer: TracingPairs, paired: Sequence[fx.Node]) -> dict[Axes, dict[fx.Node, Tensor]] | None:
    """Return the ids to ask with, first those of one axis of all pairs, then those of the other; None where axes vary.

    Axes are counted from the right, as broadcasting does.
    """
    sides: dict[Axes, dict[fx.Node, Tensor]] = {}
    for source in paired:
        for ids in pair_of(tracer, source):
            sides.setdefault(_axes(ids), {})[source] = ids
    complete = all(len(side) == len(paired) for side in sides.values())
    return sides if complete and len(sides) == 2 else None


def _axes(ids: Tensor) -> Axes:
    """Return the axes along which channels lie, counted from the right."""
    return tuple(axis - ids.ndim for axis in varying(ids))


def _asked(
    tracer: TracingPairs, node: fx.Node, sides: dict[Axes, dict[fx.Node, Tensor]], axes: Axes, rule: Entry, call: object
) -> Result:
    """Ask a rule while the values with pairs have the ids for one of the axes.

    What an elementwise operator combines with them may have channels on the other axis: a gate or a decay for each of
    these. Such a value has none meanwhile, as they are followed when the rule is asked about that axis.
    """
    apart = {axis for other in sides if other != axes for axis in other}
    own, combined = sides[axes], operator_name(node).rstrip("_") in ELEMENTWISE
    lone = {n: tracer.ids(n) for n in node.all_input_nodes if combined and n not in own}
    hidden = [n for n, ids in lone.items() if ids is not None and varying(ids) and apart.issuperset(_axes(ids))]
    reason = tracer.notable(f"{tracer.where(node)} combines it with channels on another axis")
    meanwhile = {n: Value(ids) for n, ids in own.items()} | {n: Value(None, reason) for n in hidden}
    before, parameters = {n: tracer.values[n] for n in meanwhile}, tracer.parameters
    tracer.values |= meanwhile
    tracer.parameters = {n: name for n, name in parameters.items() if n not in hidden}
    try:
        return rule(tracer, call)
    finally:
        tracer.values |= before
        tracer.parameters = parameters


def _joined(tracer: TracingPairs, results: Sequence[Result], reason: str) -> Result:
    """Return what a rule gave for either axis as one value."""
    values = [result for result in results if isinstance(result, Value)]
    left = [value for value in values if value.ids is not None and varying(value.ids)]
    if len(values) < 2 or len(left) < 2:
        return left[0] if left else results[0]
    first, second = (squeeze_constant_axes(tracer.sets.find(value.ids)) for value in left)  # type: ignore[arg-type]
    pair = Value(None, reason, pair=(first, second))
    lone = [ids for ids in (first, second) if len(varying(ids)) == 1]
    return pair if len(lone) == 2 and varying(first) != varying(second) else single(tracer, pair)
