"""Products of activations: matrix products, `einsum` and scaled dot-product attention.

A product of two activations sums over axes that both have. Channels on such an axis (those of queries and keys) go
together. Channels on an axis of one factor (those of values) pass to the result; where both factors pass some on, as
keys and values do in linear attention, the result has a pair of them (`oicsr.rules.pairs`). Where an activation was
split into heads, its channels lie on two axes, heads and channels of a head, of which only one can lose slices: which
one is chosen by module (`Tracer.granularity`, `Tracer.modes`), and the other one is tied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from oicsr.contractions import is_plain, plain_letters
from oicsr.rules.axes import factors_and_letters
from oicsr.rules.broadcasting import Operand, combine, narrower
from oicsr.rules.calls import argument, operator_name, shape_of, source_of
from oicsr.rules.ids import on_axis, squeeze_constant_axes, varying
from oicsr.rules.names import SUMMED_PRODUCTS
from oicsr.rules.notes import Product
from oicsr.rules.pairs import single
from oicsr.rules.registry import Result, Value, aten, register_rule
from oicsr.rules.sums import sum_of_elements
from oicsr.rules.tracer import Tracer
from oicsr.rules.weighted import add_to_bias, is_weight, multiply_by_weight, sum_with_weight
from oicsr.rules.weights import rows_of_sum

APART = "multiplies values whose channels lie on different axes"
ATTENTIONS = {"aten::scaled_dot_product_attention", "python::flex_attention"}  # whole ones, in one call


@dataclass(frozen=True)
class Factor:
    """A factor of a product: its channels, and a letter for each of its axes."""

    operand: Operand
    letters: str

    def sides(self) -> tuple[Tensor, ...]:
        """Return the ids, those of each of two axes where they are a pair."""
        ids = self.operand.ids
        return self.operand.pair if ids is None else (ids,)

    def axes(self) -> str:
        """Return the letters of the axes along which channels lie."""
        return "".join(self.letters[axis] for ids in self.sides() for axis in varying(ids))

    def along(self, letter: str) -> Tensor | None:
        """Return the channel of each slice along an axis; None where none lie there."""
        own = [ids for ids in self.sides() if ids.shape[self.letters.index(letter)] > 1]
        return own[0].flatten() if own else None

    def tied(self, tracer: Tracer, letters: str) -> Factor:
        """Return the factor with the channels along some axes tied; a pair has its axes apart already."""
        ids = self.operand.ids
        if ids is None:
            return self
        for axis, letter in enumerate(self.letters):
            if letter in letters and ids.shape[axis] > 1:
                ids = tracer.tie_axis(ids, axis)
        return Factor(replace(self.operand, ids=squeeze_constant_axes(ids)), self.letters)


def contract(
    tracer: Tracer, node: fx.Node, first: Factor, second: Factor, result: str, *, follow: str = ""
) -> Operand | None:
    """Follow channels through a product of two activations; None where they cannot be followed: they are fixed then.

    Args:
        tracer: The tracer.
        node: The call.
        first: One factor.
        second: The other.
        result: The letters of the result's axes.
        follow: What this product is noted as: `"scores"` or `"values"`; nothing is noted where it is empty.
    """
    sizes = dict(zip(first.letters + second.letters, [*first.operand.shape, *second.operand.shape], strict=True))
    for letter, size in zip(first.letters, first.operand.shape, strict=True):
        sizes[letter] = max(sizes[letter], size)
    both = set(first.letters) & set(second.letters)
    batch = "".join(sorted(both & set(result)))
    summed = "".join(sorted(both - set(result)))
    shape = [sizes[letter] for letter in result]
    before = first, second
    first, second = _of_one_axis(tracer, node, first, second, batch)
    if not summed:
        first, second = _apart(tracer, first, second)
    first, second = (_across(tracer, node, factor, summed) for factor in (first, second))
    for letter in [*summed, *(letter for letter in batch if letter in first.axes() and letter in second.axes())]:
        _join(tracer, node, first, second, letter)
    passed = _passed(first, second, result)
    if follow:
        product = _product(node, before, first, second, summed, batch, follow)
        tracer.note_product(_with_two_sets(product, first, second, passed, batch, summed))
    lost = [f for f in (first, second) if set(f.axes()) - set(result) - set(summed) or len(f.axes()) > len(f.sides())]
    if lost or len(passed) > 2:
        return None
    own = tuple(on_axis(vector, result.index(letter), len(result)) for letter, vector in passed.items())
    if len(own) == 2:
        return Operand(None, shape, tracer.notable(f"{tracer.where(node)} {APART}"), pair=own)
    reason = first.operand.reason or second.operand.reason or "is a product of activations"
    return Operand(own[0], shape) if own else Operand(None, shape, reason)


def _of_one_axis(tracer: Tracer, node: fx.Node, first: Factor, second: Factor, batch: str) -> tuple[Factor, Factor]:
    """Return the factors with heads tied, or with the channels of heads; a pair has its axes apart already."""
    axes = set("".join(factor.axes() for factor in (first, second) if not factor.operand.pair))
    if not axes & set(batch) or not axes - set(batch):
        return first, second
    tied = "".join(axes - set(batch)) if tracer.takes_heads(node) else batch
    return first.tied(tracer, tied), second.tied(tracer, tied)


def _passed(first: Factor, second: Factor, result: str) -> dict[str, Tensor]:
    """Return the channels that a product passes on, by the letters of their axes in the result."""
    found: dict[str, Tensor] = {}
    for factor in (first, second):
        for letter in factor.axes():
            vector = factor.along(letter)
            if letter in result and vector is not None:
                found.setdefault(letter, vector)
    return found


def _apart(tracer: Tracer, first: Factor, second: Factor) -> tuple[Factor, Factor]:
    """Return the factors of an outer product: where both have channels, on different axes, the fewer of them stay."""
    if first.operand.pair or second.operand.pair:
        return first, second
    if not first.axes() or not second.axes() or set(first.axes()) & set(second.axes()):
        return first, second
    kept = narrower(tracer, first.operand, second.operand)
    return Factor(kept[0], first.letters), Factor(kept[1], second.letters)


def _across(tracer: Tracer, node: fx.Node, factor: Factor, summed: str) -> Factor:
    """Return a factor whose channels lie on the axis that is summed over alone.

    Where they lie on rows as well (the features of a network whose vectors are compared), channel `i` of all rows goes.
    Where heads go, those that lie on rows do (queries by a table of positions that all heads share).
    """
    ids = factor.operand.ids
    if ids is None or len(factor.axes()) < 2 or not set(factor.axes()) & set(summed):
        return factor
    own = squeeze_constant_axes(tracer.sets.find(ids))
    known = Factor(replace(factor.operand, ids=own), factor.letters)  # the other factor has tied some
    over, rows = set(known.axes()) & set(summed), set(known.axes()) - set(summed)
    return known.tied(tracer, "".join(over if rows and tracer.takes_heads(node) else rows)) if over else known


def _product(
    node: fx.Node, before: tuple[Factor, Factor], first: Factor, second: Factor, summed: str, batch: str, kind: str
) -> Product:
    """Return the note of a product: what its factors held, and the channels that it sums over or passes on."""
    labels = [ids.flatten() for f in before for ids in f.sides()]
    batch = batch if summed else ""  # where nothing is summed up, no axis is one of heads
    own = [(letter, f) for f in (first, second) for letter in f.axes() if letter not in batch]
    if kind == "values":  # what one factor alone has on an axis that is summed over stays
        own = [(letter, f) for letter, f in own if letter not in summed] or own
    if kind == "scores" and not any(letter in summed for letter, _ in own):  # of one factor alone
        batch += "".join(letter for letter, _ in own)
        own = []
    vectors = [f.along(letter) for letter, f in own]
    heads = [f.along(letter) for f in (first, second) for letter in f.axes() if letter in batch]
    return Product(
        node,
        kind,
        torch.cat(labels).unique() if labels else torch.zeros(0, dtype=torch.int64),
        vectors[0] if vectors else None,
        heads[0] if heads else None,
    )


def _with_two_sets(
    product: Product, first: Factor, second: Factor, passed: dict[str, Tensor], batch: str, summed: str
) -> Product:
    """Return the note of a product with both sets of channels, where it passes a pair on or takes one."""
    own = [vector for letter, vector in passed.items() if letter not in batch]
    over = [vector for f in (first, second) for letter in summed if (vector := f.along(letter)) is not None]
    if len(own) == 2:
        return replace(product, kind="pair", channels=own[0], passed=own[1], read=over[0] if over else None)
    if over and own and (first.operand.pair or second.operand.pair):
        return replace(product, channels=over[0], passed=own[0])
    return product


def _join(tracer: Tracer, node: fx.Node, first: Factor, second: Factor, letter: str) -> None:
    """Tie the channels of two factors along an axis that both have; what meets numbers stays."""
    own, other = first.along(letter), second.along(letter)
    if own is not None and other is not None:
        if own.shape == other.shape:
            tracer.sets.join(own, other)
        else:
            tracer.sets.fix(torch.cat([own, other]), tracer.notable(f"{tracer.where(node)} joins other channels"))
        return
    for vector, factor in ((own, second), (other, first)):
        if vector is not None and factor.operand.shape[factor.letters.index(letter)] > 1:
            reason = factor.operand.reason or "is multiplied with values whose channels are not followed"
            tracer.sets.fix(vector, reason)


# ----------------------------------------------------------------------------------------------------------------
# the operators
# ----------------------------------------------------------------------------------------------------------------


@register_rule(*aten("matmul mm bmm mv linalg_matmul _sparse_mm"))
def multiply_matrices(tracer: Tracer, node: fx.Node) -> Result:
    """A product of activations, or of rows that are channels with values that have none (global context)."""
    first, second = source_of(node), argument(node, 1)
    if first.meta["val"].layout != torch.strided and not is_weight(tracer, second):
        return _along_edges(tracer, node, second)
    if is_weight(tracer, first) and is_weight(tracer, second):
        return _of_weights(tracer, node)
    if is_weight(tracer, first) or is_weight(tracer, second):
        return multiply_by_weight(tracer, node, first, second)
    count = len(shape_of(node))
    if len(shape_of(second)) == 1:
        leading = "abcdefgh"[: len(shape_of(first)) - 1]
        return _multiply(tracer, node, (first, leading + "z"), (second, "z"), leading)
    if len(shape_of(first)) == 1:
        leading = "abcdefgh"[: count - 1]
        return _multiply(tracer, node, (first, "z"), (second, leading + "zy"), leading + "y")
    leading = "abcdefgh"[: count - 2]
    letters = [leading[len(leading) - len(shape_of(f)) + 2 :] for f in (first, second)]
    return _multiply(tracer, node, (first, letters[0] + "xz"), (second, letters[1] + "zy"), leading + "xy")


def _along_edges(tracer: Tracer, node: fx.Node, source: fx.Node) -> Result:
    """Sums of rows by a sparse matrix (the edges of a graph): channels on the last axis pass, MACs do not count."""
    ids = tracer.ids(source)
    if ids is None or (ids.ndim == 2 and ids.shape[0] == 1):
        return Value(ids, tracer.reason(source))
    return tracer.opaque(node, "sums up channels")


@register_rule(*SUMMED_PRODUCTS)
def add_product(tracer: Tracer, node: fx.Node) -> Result:
    """`beta * bias + alpha * x @ y`: tied to what it is added to, as by an addition. `addbmm` sums over axis 0 too."""
    bias, first, second = (argument(node, position) for position in range(3))
    batch = "a" if len(shape_of(first)) == 3 else ""
    sums_up = operator_name(node) == "aten::addbmm"
    if is_weight(tracer, first) or is_weight(tracer, second):
        if sums_up:
            return tracer.opaque(node, "adds products of weights in a form without a rule")
        product = multiply_by_weight(tracer, node, first, second)
        if add_to_bias(tracer, bias, product):
            return product
    else:
        out = "xy" if sums_up else batch + "xy"
        product = single(tracer, _multiply(tracer, node, (first, batch + "xz"), (second, batch + "zy"), out))
    if not isinstance(product, Value) or argument(node, "beta") == 0:
        return product
    summed = Operand(product.ids, list(shape_of(node)), product.reason)
    result, joined = combine(tracer, node, [summed, Operand.of(tracer, bias, len(shape_of(node)))])
    if result.ids is not None and tracer.depends_on_input(bias):
        tracer.added.append((node, joined, result.ids))
    return result


def _give_up(tracer: Tracer, node: fx.Node, why: str) -> Value:
    followed = [n for n in node.all_input_nodes if tracer.ids(n) is not None]
    return tracer.opaque(node, why) if followed else Value(None, tracer.reason(node.all_input_nodes[0]))


def _multiply(
    tracer: Tracer, node: fx.Node, first: tuple[fx.Node, str], second: tuple[fx.Node, str], out: str
) -> Result:
    factors = [
        Factor(Operand.of(tracer, source, len(shape_of(source))), letters) for source, letters in (first, second)
    ]
    if all(not factor.axes() for factor in factors):
        tracer.note_product(Product(node, "plain", torch.zeros(0, dtype=torch.int64), None, None))
        operands = [factor.operand for factor in factors]
        reason = next((operand.reason for operand in operands if operand.ids is None), "is a product of activations")
        return Value(None, reason)
    summed = (set(first[1]) & set(second[1])) - set(out)
    kind = "scores" if any(all(letter in factor.axes() for factor in factors) for letter in summed) else "values"
    found = contract(tracer, node, factors[0], factors[1], out, follow=kind)
    if found is None:
        return tracer.opaque(node, APART)
    return Value(found.ids, found.reason, pair=(found.pair[0], found.pair[1]) if found.pair else None)


@register_rule("aten::einsum")
def einsum(tracer: Tracer, node: fx.Node) -> Result:
    """A product of two activations, or a permutation of one; in any other form, its channels stay."""
    equation, sources = argument(node, 0), list(argument(node, 1))
    letters, out = plain_letters(equation)
    plain = is_plain(equation)
    if plain and len(sources) == 1 and set(letters[0]) == set(out):
        ids = tracer.ids(sources[0])
        moved = [letters[0].index(letter) for letter in out]
        return Value(None, tracer.reason(sources[0])) if ids is None else Value(ids.permute(moved))
    weights = [is_weight(tracer, source) for source in sources]
    if plain and len(sources) == 2 and sum(weights) == 1:
        activation, weight = (1, 0) if weights[0] else (0, 1)
        return sum_with_weight(
            tracer, node, (sources[activation], letters[activation]), (sources[weight], letters[weight]), out
        )
    if all(weights):
        return _of_weights(tracer, node)
    if not plain or len(sources) != 2 or any(weights):
        return _give_up(tracer, node, "is in a form without a rule")
    return _multiply(tracer, node, (sources[0], letters[0]), (sources[1], letters[1]), out)


def _of_weights(tracer: Tracer, node: fx.Node) -> Value:
    """A product of weights that an activation meets element by element: factors, multiplied and summed up.

    Where several axes are left, they are followed as if the code had spread the factors over one another.
    """
    rows = rows_of_sum(tracer, node)
    if rows is not None:
        return Value(rows)
    form = factors_and_letters(node)
    if form is None:
        return _give_up(tracer, node, "multiplies weights in a form without a rule")
    sources, letters, out = form
    order = out + "".join(dict.fromkeys(letter for part in letters for letter in part if letter not in out))
    operands = [
        _aligned(Operand.of(tracer, source, len(part)), part, order)
        for source, part in zip(sources, letters, strict=True)
    ]
    return sum_of_elements(tracer, node, operands, set(range(len(out), len(order))))


def _aligned(operand: Operand, letters: str, order: str) -> Operand:
    """Return an operand with each axis at the place of its letter in an order, and the others of size one."""

    def spread(sizes: Sequence[int]) -> list[int]:
        """Put the size of each letter at its place."""
        return [sizes[letters.index(letter)] if letter in letters else 1 for letter in order]

    moved = sorted(range(len(letters)), key=lambda axis: order.index(letters[axis]))
    ids = None if operand.ids is None else operand.ids.permute(moved).reshape(spread(operand.ids.shape))
    return replace(operand, ids=ids, shape=spread(operand.shape))


@register_rule("aten::scaled_dot_product_attention")
def attention(tracer: Tracer, node: fx.Node) -> Result:
    """Queries and keys `(..., tokens, width)` give scores, which mix the tokens of the values.

    A channel of the queries goes with that of the keys; channels of the values pass; heads go as a whole. With
    `enable_gqa` the heads of keys and values stand for as many of the queries each.
    """
    mask = argument(node, "attn_mask")

    def modify(scores: Operand) -> Operand:
        """Add the mask."""
        if not isinstance(mask, fx.Node):
            return scores
        bias, _ = combine(tracer, node, [scores, Operand.of(tracer, mask, len(scores.shape))])
        return Operand(bias.ids, scores.shape, bias.reason)

    return attend(tracer, node, modify, grouped=bool(argument(node, "enable_gqa", False)))


def attend(tracer: Tracer, node: fx.Node, modify: Callable[[Operand], Operand], *, grouped: bool) -> Value:
    """Follow channels through an attention in one call, whose first arguments are queries, keys and values.

    Args:
        tracer: The tracer.
        node: The call.
        modify: What is done to the scores before they mix the values.
        grouped: Whether a head of keys and values may stand for several of the queries.
    """
    query, key, value = (Operand.of(tracer, argument(node, i), len(shape_of(argument(node, i)))) for i in range(3))
    if not len(query.shape) == len(key.shape) == len(value.shape):
        return _give_up(tracer, node, "attends to values of another rank")
    if grouped:
        key, value = _repeated(key, query.shape[-3]), _repeated(value, query.shape[-3])
    leading = "abcdefgh"[: len(query.shape) - 2]
    first, second = Factor(query, leading + "xz"), Factor(key, leading + "yz")
    scores = contract(tracer, node, first, second, leading + "xy", follow="scores")
    scores = None if scores is None or scores.pair else modify(scores)
    if scores is not None and scores.ids is not None:  # a table may have been tied to the heads since
        scores = replace(scores, ids=squeeze_constant_axes(tracer.sets.find(scores.ids)))
    kept = None if scores is None else scores.ids
    if scores is None or (kept is not None and kept.shape[-1] > 1):
        return tracer.opaque(node, APART)
    found = contract(
        tracer, node, Factor(scores, leading + "xy"), Factor(value, leading + "yz"), leading + "xz", follow="values"
    )
    if found is None or found.pair:
        return tracer.opaque(node, APART)
    return Value(found.ids, found.reason)


def _repeated(operand: Operand, heads: int) -> Operand:
    """Return keys or values with each head as often as queries share it."""
    axis = len(operand.shape) - 3
    times = heads // operand.shape[axis]
    shape = [*operand.shape[:axis], heads, *operand.shape[axis + 1 :]]
    if operand.ids is None or operand.ids.shape[axis] == 1:
        return replace(operand, shape=shape)
    return replace(operand, ids=operand.ids.repeat_interleave(times, axis), shape=shape)
