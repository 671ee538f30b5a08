"""How the name of a method is read: a registered one, or `regularizer+importance[+selection]`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from baselines.method import ImportanceSpec, Method, RegularizerSpec, SelectionSpec
from benchmarks.suggest import unknown_name

DEFAULT_SELECTION = "greedy"

T = TypeVar("T")


def resolve(
    text: str,
    methods: Mapping[str, Method],
    regularizers: Mapping[str, RegularizerSpec],
    importances: Mapping[str, ImportanceSpec],
    selections: Mapping[str, SelectionSpec],
) -> Method:
    """Return the registered method `text`, or the combination `regularizer+importance[+selection]` that it names.

    Args:
        text: A name, or two or three joined by `+`.
        methods: Registered methods.
        regularizers: Registered regularisers.
        importances: Registered importances.
        selections: Registered selections.

    Raises:
        ValueError: A name is unknown (says the nearest one), or the combination has too many parts.
    """
    names = text.split("+")
    if len(names) == 1:
        return _look_up("method", text, methods)
    if len(names) > 3:
        raise ValueError(f"method {text!r} has {len(names)} parts; it may be regularizer+importance[+selection]")
    regularizer = _look_up("regularizer", names[0], regularizers)
    importance = _look_up("importance", names[1], importances)
    usual = selections[DEFAULT_SELECTION]
    selection = _look_up("selection", names[2], selections) if len(names) == 3 else usual
    parts = [regularizer.title, importance.title]
    title = " + ".join(parts if selection is usual else [*parts, selection.title])
    return Method(text, title, regularizer, importance, selection)


def _look_up(kind: str, name: str, entries: Mapping[str, T]) -> T:
    if name in entries:
        return entries[name]
    raise ValueError(unknown_name(kind, name, sorted(entries)))
