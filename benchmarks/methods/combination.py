"""How the name of a method is read: a registered one, or `regularizer+importance[+selection]`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
        ValueError: A name is unknown (says the nearest one, or what it names instead), or the combination has too many
            parts.
    """
    names = text.split("+")
    parts: dict[str, Iterable[str]] = {"regularizer": regularizers, "importance": importances, "selection": selections}
    if len(names) == 1:
        return _look_up("method", text, methods, _part(text, parts))
    if len(names) > 3:
        raise ValueError(f"method {text!r} has {len(names)} parts; it may be regularizer+importance[+selection]")
    instead = {name: _part(name, parts) or _whole(name, methods) for name in names}
    regularizer = _look_up("regularizer", names[0], regularizers, instead[names[0]])
    importance = _look_up("importance", names[1], importances, instead[names[1]])
    usual = selections[DEFAULT_SELECTION]
    selection = _look_up("selection", names[2], selections, instead[names[2]]) if len(names) == 3 else usual
    titles = [regularizer.title, importance.title]
    title = " + ".join(titles if selection is usual else [*titles, selection.title])
    return Method(text, title, regularizer, importance, selection)


def _look_up(kind: str, name: str, entries: Mapping[str, T], instead: str) -> T:
    if name in entries:
        return entries[name]
    raise ValueError(unknown_name(kind, name, sorted(entries), instead))


def _part(name: str, parts: Mapping[str, Iterable[str]]) -> str:
    """Return a sentence on which parts of a combination a name stands for; empty if for none."""
    kinds = [f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}" for kind, names in parts.items() if name in names]
    return f"{name!r} is {' and '.join(kinds)}; a combination is regularizer+importance[+selection]." if kinds else ""


def _whole(name: str, methods: Iterable[str]) -> str:
    """Return a sentence on a method in the place of a part; empty if it is none."""
    return f"{name!r} is a method, not a part of one." if name in methods else ""
