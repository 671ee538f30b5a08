"""Products of an activation and a weight outside of layers: `x @ w`, `w @ x`, `einsum`, `addmm`, bilinear forms."""

from __future__ import annotations

from typing import Any

from torch import fx

from oicsr.rules.calls import argument, shape_of, source_of
from oicsr.rules.ids import on_axis, varying
from oicsr.rules.registry import Result, Value, register_rule
from oicsr.rules.tracer import Tracer
from oicsr.rules.weights import can_follow, gives_way, has_weight, note_layer

Labelled = tuple[fx.Node, str]  # a factor, and a letter for each of its axes


def is_weight(tracer: Tracer, node: Any) -> bool:
    """Return whether a node is a parameter or buffer, or computed from some axis by axis."""
    return isinstance(node, fx.Node) and has_weight(tracer, node)


def multiply_by_weight(tracer: Tracer, node: fx.Node, first: fx.Node, second: fx.Node) -> Result:
    """A product of matrices one of which is a weight, `(in, out)` behind the activation, `(out, in)` in front of it.

    Where channels lie on another axis, they pass.
    """
    if is_weight(tracer, first) and is_weight(tracer, second):
        return tracer.opaque(node, "multiplies two weights in a form without a rule")
    behind = is_weight(tracer, second)
    source, weight = (first, second) if behind else (second, first)
    rank, size = len(shape_of(source)), len(shape_of(weight))
    if not has_weight(tracer, weight):
        return tracer.computed_weight(node, weight)
    if min(rank, size) < 2:
        return _with_vector(tracer, node, source, weight, behind=behind)
    leading = "abcdefgh"[: max(rank, size) - 2]  # a stack of matrices, where the weight has more of them
    own, others = leading[len(leading) - rank + 2 :], leading[len(leading) - size + 2 :]
    if behind:
        return sum_with_weight(tracer, node, (source, own + "xz"), (weight, others + "zy"), leading + "xy")
    return sum_with_weight(tracer, node, (source, own + "zy"), (weight, others + "xz"), leading + "xy")


def _with_vector(tracer: Tracer, node: fx.Node, source: fx.Node, weight: fx.Node, *, behind: bool) -> Result:
    """A sum of all channels, each by its number in the weight."""
    rank, size = len(shape_of(source)), len(shape_of(weight))
    if behind and size == 1:
        return sum_over(tracer, node, source, weight, rank - 1)
    note_layer(tracer, node, weight, read=0)
    if rank == 1 and size == 2:
        tracer.read_channels(node, source, weight, axis=0, dim=0 if behind else 1)
        return Value(tracer.start_channels(weight, dim=1 if behind else 0))
    return tracer.opaque(node, "multiplies matrices in a form without a rule")


def sum_over(tracer: Tracer, node: fx.Node, source: fx.Node, weight: fx.Node, axis: int) -> Result:
    """Sum over an axis, each slice by its number in a vector; channels on other axes pass."""
    ids = tracer.ids(source)
    if ids is not None and varying(ids) and ids.shape[axis] == 1:
        note_layer(tracer, node, weight, passed=ids)
        return Value(ids.squeeze(axis))
    note_layer(tracer, node, weight, read=0)
    tracer.read_channels(node, source, weight, axis=axis, dim=0)
    return Value(None, "is a sum over channels")


def sum_with_weight(tracer: Tracer, node: fx.Node, first: Labelled, second: Labelled, out: str) -> Result:
    """An einsum of an activation and a weight.

    The weight reads channels along the letters that are summed over, follows those along letters that stay, and starts
    new ones along a letter that it adds and that can follow them. Of several it is the last (or the first, where heads
    go), or another one where the channels on that were found to stay (the number of experts).
    """
    (source, own), (weight, others) = first, second
    if not has_weight(tracer, weight):
        return tracer.computed_weight(node, weight)
    ids = tracer.ids(source)
    summed = [letter for letter in others if letter in own and letter not in out]
    lost = [k for k, letter in enumerate(own) if letter not in out and letter not in others]
    new = [letter for letter in others if letter not in own]
    if any(letter not in out for letter in new) or (
        ids is not None and (lost or len(own) != ids.ndim) and tracer.whole(ids, lost) is None
    ):
        return tracer.opaque(node, "sums over channels in a form without a rule")
    along = [] if ids is None else [own[axis] for axis in varying(ids)]
    kept = [letter for letter in along if letter in out]
    if ids is not None and kept and not (new and kept[0] not in others and gives_way(tracer, node, weight, ids)):
        return _pass(tracer, node, first, second, out, kept)
    for letter in summed:
        if along and letter not in along:
            tracer.keep_axis(weight, others.index(letter), "is summed over with the channels")
        else:
            tracer.read_channels(node, source, weight, axis=own.index(letter), dim=others.index(letter))
    read = others.index(summed[0]) if summed else None
    wide = [letter for letter in new if shape_of(node)[out.index(letter)] > 1]
    if not wide:
        note_layer(tracer, node, weight, read=read)
        return Value(None, "is a sum over channels")
    dim = min((others.index(letter) for letter in wide), key=lambda dim: _turn(tracer, node, weight, dim))
    rows = tracer.start_channels(weight, dim=dim)
    if len(wide) > 1:
        tracer.chosen[weight.name, dim] = rows
    note_layer(tracer, node, weight, rows=dim, read=read)
    return Value(on_axis(rows, out.index(others[dim]), len(out)))


def _turn(tracer: Tracer, node: fx.Node, weight: fx.Node, dim: int) -> tuple[bool, bool, int]:
    """Return when an axis of a weight has its turn: the channels of heads, or where heads go, heads come first."""
    stays = not can_follow(tracer, weight, dim), (weight.name, dim) in tracer.passed_over
    return *stays, dim if tracer.takes_heads(node) else -dim


def _pass(tracer: Tracer, node: fx.Node, first: Labelled, second: Labelled, out: str, kept: list[str]) -> Result:
    """Pass channels on along a letter that stays; what the weight holds for each of them follows."""
    (source, own), (weight, others) = first, second
    ids = tracer.ids(source)
    assert ids is not None
    for letter in set(own) - {kept[0]}:
        if ids.shape[own.index(letter)] > 1:
            ids = tracer.tie_axis(ids, own.index(letter))
    vector = ids.flatten()
    if kept[0] in others:
        tracer.add_slot(weight, others.index(kept[0]), vector, "norm", counts=False)
        note_layer(tracer, node, weight, rows=others.index(kept[0]))
    else:
        note_layer(tracer, node, weight, passed=vector)
    return Value(on_axis(vector, out.index(kept[0]), len(out)))


def add_to_bias(tracer: Tracer, bias: Any, product: Result) -> bool:
    """Let a vector follow the channels that a product has on its last axis, as in `bias + x @ w`; return whether so."""
    if not (isinstance(product, Value) and product.ids is not None and is_weight(tracer, bias)):
        return False
    if len(shape_of(bias)) != 1 or varying(product.ids) != [product.ids.ndim - 1]:
        return False
    tracer.add_bias(bias, product.ids.flatten())
    return True


@register_rule("aten::bilinear")
def bilinear(tracer: Tracer, node: fx.Node) -> Result:
    """Weight `(out, first, second)`: reads the last axis of two activations."""
    first, second, weight = source_of(node), argument(node, 1), argument(node, 2)
    if not has_weight(tracer, weight):
        return tracer.computed_weight(node, weight)
    for dim, source in ((1, first), (2, second)):
        tracer.read_channels(node, source, weight, axis=len(shape_of(source)) - 1, dim=dim)
    out = tracer.start_channels(weight, dim=0)
    tracer.add_bias(argument(node, 3), out)
    rank = len(shape_of(node))
    return Value(on_axis(out, rank - 1, rank))
