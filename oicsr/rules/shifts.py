"""Shifts that cancel out: a softmax that is written out is the same whatever is subtracted from its exponents.

`e = (x - x.max()).exp()` and then `e / e.sum(0)` does not depend on the maximum, so that channels that it runs over
may go. That is found by following a number `m` through the graph: a value is `v + k * m`, a shifted one, or
`v * exp(k * m)`, a scaled one. What comes to `k = 0` holds `m` no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from oicsr.rules.calls import argument, operator_name, shape_of, source_of
from oicsr.rules.names import CUTS, REPEATS, SHIFTS, UNCHANGED, VIEWS
from oicsr.rules.table import aten

MOVES = VIEWS | UNCHANGED | CUTS | SHIFTS | {*REPEATS, *aten("index index_select gather")}
CHECK = "aten::_assert_tensor_metadata"
COPY = frozenset(aten("clone"))
LINEAR = frozenset(aten("sum mean cumsum dropout matmul mm bmm einsum _sparse_mm linalg_matmul"))
ADDED_INTO = frozenset(aten("index_add scatter_add scatter_reduce index_put"))
ZEROS = frozenset(aten("zeros new_zeros zeros_like"))
TINY = 1e-6  # what is added to a divisor to keep it from zero


@dataclass(frozen=True)
class Held:
    """How a value depends on the number: `v + power * m` where it is shifted, `v * exp(power * m)` otherwise."""

    power: float
    shifted: bool


def cancels_out(node: fx.Node) -> bool:
    """Return whether nothing that a model returns depends on the one number that a call gives."""
    if any(size != 1 for size in shape_of(node)):
        return False
    held: dict[fx.Node, Held] = {node: Held(1.0, True)}
    current = node.next
    while current.op != "root":
        sources = [source for source in current.all_input_nodes if source in held]
        if sources:
            if current.op != "call_function":
                return False
            found = _of_call(current, held)
            if found is None:
                return False
            written = [current]
            if operator_name(current).endswith("_"):
                written.append(source_of(current))
                if _has_other_views(written[1]):
                    return False
            for value in written:
                held.pop(value, None)
                if found.power:
                    held[value] = found
        current = current.next
    return True


def _has_other_views(node: fx.Node) -> bool:
    """Return whether a value that is written into is a view of one that is read elsewhere."""
    while node.op == "call_function" and operator_name(node) in MOVES - COPY:
        node = source_of(node)
        readers = [user for user in node.users if user.op != "call_function" or operator_name(user) != CHECK]
        if len(readers) > 1:
            return True
    return False


def _of_call(node: fx.Node, held: dict[fx.Node, Held]) -> Held | None:
    """Return how the result of a call depends on the number; None where that is not known."""
    name = operator_name(node).rstrip("_")
    own = [held[source] for source in node.all_input_nodes if source in held]
    first = own[0]
    if name in MOVES:
        return first if len(own) == 1 else None
    if name in ("aten::exp", "aten::log", "aten::neg"):
        if name == "aten::neg":
            return Held(-first.power, True) if first.shifted else first
        return Held(first.power, not first.shifted) if first.shifted == (name == "aten::exp") else None
    if name in ("aten::add", "aten::sub"):
        return _sum(node, held, -1.0 if name == "aten::sub" else 1.0)
    if any(value.shifted for value in own):
        return None
    if name in ("aten::mul", "aten::div"):
        powers = [held[part].power if part in held else 0.0 for part in node.args[:2]]  # type: ignore[index]
        return Held(powers[0] + powers[1] if name == "aten::mul" else powers[0] - powers[1], False)
    if name in ("aten::clamp", "aten::clamp_min"):
        return first if _is_tiny(argument(node, 1)) and argument(node, "max") is None else None
    if name in ADDED_INTO:
        return _added_into(node, held)
    factors = [*node.args, *(node.args[1] if name == "aten::einsum" else ())]  # type: ignore[misc]
    return first if name in LINEAR and sum(isinstance(f, fx.Node) and f in held for f in factors) == 1 else None


def _sum(node: fx.Node, held: dict[fx.Node, Held], sign: float) -> Held | None:
    parts = [argument(node, 0), argument(node, 1)]
    own = [held.get(part, Held(0.0, True)) if isinstance(part, fx.Node) else Held(0.0, True) for part in parts]
    if argument(node, "alpha", 1) != 1:
        return None
    if all(value.shifted for value in own):
        return Held(own[0].power + sign * own[1].power, True)
    if own[0] == own[1]:
        return own[0]
    return own[0] if not own[0].shifted and _is_tiny(parts[1]) else None


def _is_tiny(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= TINY


def _added_into(node: fx.Node, held: dict[fx.Node, Held]) -> Held | None:
    """Return what is added into zeros, or into a value that depends on the number alike."""
    target, *others = node.all_input_nodes
    own = {held[source] for source in node.all_input_nodes if source in held}
    start = target
    while start.op == "call_function" and operator_name(start) in MOVES and start not in held:
        start = source_of(start)
    into_zeros = start.op == "call_function" and operator_name(start) in ZEROS
    reduces = argument(node, "reduce") if operator_name(node).startswith("aten::scatter_reduce") else "sum"
    alike = len(own) == 1 and (target in held or into_zeros) and reduces in ("sum", "mean", "amax", "amin")
    return next(iter(own)) if alike and sum(source in held for source in others) == 1 else None
