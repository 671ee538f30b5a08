"""The table of rules: one per operator, or per class of modules that is taken as one operator; `registry` fills it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from oicsr.rules.calls import operator_name


@dataclass(frozen=True)
class Value:
    """What is known of a value in the graph.

    Attributes:
        ids: The channel of each element: int64, of the value's rank, each axis of the value's size or 1. None where no
            channels are followed.
        reason: Why none are followed; other operators quote it where they cannot go on.
        depends_on_input: Whether the value depends on the model's input (set by the tracer).
    """

    ids: Tensor | None
    reason: str = ""
    depends_on_input: bool = True


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


def aten(names: str) -> list[str]:
    """Return the full names of ATen operators, given their short names with blanks between."""
    return [f"aten::{name}" for name in names.split()]
