"""The table of rules: one per operator, or per class of modules that is taken as one operator; `registry` fills it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from oicsr.rules.calls import gives_many, operator_name, shapes_of


@dataclass(frozen=True)
class Value:
    """What is known of a value in the graph.

    Attributes:
        ids: The channel of each element: int64, of the value's rank, each axis of the value's size or 1. None where no
            channels are followed.
        reason: Why none are followed; other operators quote it where they cannot go on.
        pair: In the place of `ids`, those of a value with channels on two axes (see `oicsr.rules.pairs`): for each of
            these axes, the channels on it.
        depends_on_input: Whether the value depends on the model's input (set by the tracer).
    """

    ids: Tensor | None
    reason: str = ""
    depends_on_input: bool = True
    pair: tuple[Tensor, Tensor] | None = None


Result = Value | list[Value]
Entry = Callable[..., Result]  # a rule, as `registry.Rule` and `registry.ModuleRule` say in full
RULES: dict[str, Entry] = {}


@dataclass(frozen=True)
class LeafClass:
    """A class of modules with a rule of its own. `outputs`: gives its outputs' shapes where `forward` cannot."""

    rule: Entry
    outputs: Callable[..., Any] | None


LEAF_CLASSES: dict[type[nn.Module], LeafClass] = {}


def find_rule(node: fx.Node) -> Entry | None:
    """Return the rule of a call, or None where its operator has none."""
    name = operator_name(node)
    return RULES.get(name) or RULES.get(name.rstrip("_"))


def find_leaf(module: nn.Module) -> LeafClass | None:
    """Return the rule of a module's class, or of the nearest class that it is derived from."""
    return next((LEAF_CLASSES[cls] for cls in type(module).__mro__ if cls in LEAF_CLASSES), None)


def check_ids(node: fx.Node, result: Result, where: str) -> None:
    """Raise ValueError where ids do not fit what an operator gives; `where` names the rule that gave them."""
    values, shapes = result if isinstance(result, list) else [result], shapes_of(node)
    if isinstance(result, Value) and result.ids is None:
        return  # nothing is followed, however many outputs there are
    if gives_many(node) != isinstance(result, list) or len(values) != len(shapes):
        raise ValueError(f"{where} gave {len(values)} value(s); the operator gives {len(shapes)}")
    for value, shape in zip(values, shapes, strict=True):
        if value.ids is None:
            continue
        given = tuple(value.ids.shape)
        if shape is None or len(given) != len(shape) or any(a not in (1, b) for a, b in zip(given, shape)):  # noqa: B905
            raise ValueError(
                f"{where} gave ids of shape {given} for a value of shape {shape}; "
                "they need the same rank, and on each axis the same size or 1"
            )


def aten(names: str) -> list[str]:
    """Return the full names of ATen operators, given their short names with blanks between."""
    return [f"aten::{name}" for name in names.split()]
