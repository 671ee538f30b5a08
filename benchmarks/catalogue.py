"""The names and titles of all methods, without the seconds that PyTorch takes to import.

The methods themselves (`benchmarks.methods`) bring their code, and with it PyTorch; tables and figures of records need
their words only. These are kept in a file beside Python's byte code, which is made when it is first asked for, and
anew whenever a source of the registry has changed: there is nothing to commit, and nothing to update by hand.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.util import cache_from_source
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from benchmarks.files import write_atomically
from benchmarks.suggest import unknown_name

if TYPE_CHECKING:
    from baselines.method import ImportanceSpec, Method, RegularizerSpec, SelectionSpec

PACKAGE = Path(__file__).parent
DEFAULT_SELECTION = "greedy"


class Titled(Protocol):
    """A part of a method."""

    @property
    def title(self) -> str:
        """The name in tables and plots."""
        ...


@dataclass(frozen=True)
class Part:
    """A regulariser, an importance or a selection."""

    name: str
    title: str


@dataclass(frozen=True)
class Entry:
    """What is said of a method."""

    name: str
    title: str
    regularizer: Part
    importance: Part
    selection: Part


@dataclass(frozen=True)
class Catalogue:
    """All that is registered, by name."""

    methods: Mapping[str, Entry]
    regularizers: Mapping[str, Part]
    importances: Mapping[str, Part]
    selections: Mapping[str, Part]


T = TypeVar("T")
Regularizer = TypeVar("Regularizer", bound=Titled)
Importance = TypeVar("Importance", bound=Titled)
Selection = TypeVar("Selection", bound=Titled)


def find_entry(text: str) -> Entry:
    """Return what is said of the method that `text` names, registered or a combination.

    Raises:
        ValueError: A name is unknown, or the combination has too many parts.
    """
    registry = sys.modules.get("benchmarks.methods")
    if registry is not None:  # what is imported already needs no second search
        return _entry(registry.find_method(text))
    found = _kept()
    return resolve(text, found.methods, found.regularizers, found.importances, found.selections, Entry)


def resolve(
    text: str,
    methods: Mapping[str, T],
    regularizers: Mapping[str, Regularizer],
    importances: Mapping[str, Importance],
    selections: Mapping[str, Selection],
    make: Callable[[str, str, Regularizer, Importance, Selection], T],
) -> T:
    """Return the registered method `text`, or the combination `regularizer+importance[+selection]` that it names.

    Args:
        text: A name, or two or three joined by `+`.
        methods: Registered methods.
        regularizers: Registered regularisers.
        importances: Registered importances.
        selections: Registered selections.
        make: Makes a combination from its name, its title and its three parts.

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
    return make(text, title, regularizer, importance, selection)


def _look_up(kind: str, name: str, entries: Mapping[str, T]) -> T:
    if name in entries:
        return entries[name]
    raise ValueError(unknown_name(kind, name, sorted(entries)))


def catalogue() -> Catalogue:
    """Return names and titles of all that is registered."""
    return _of_registry() if "benchmarks.methods" in sys.modules else _kept()


def _of_registry() -> Catalogue:
    """Return the catalogue from the registry itself, which is imported for it."""
    from benchmarks import methods

    entries = {name: _entry(method) for name, method in methods.METHODS.items()}
    parts = (methods.REGULARIZERS, methods.IMPORTANCES, methods.SELECTIONS)
    return Catalogue(entries, *({name: _part(spec) for name, spec in specs.items()} for specs in parts))


def _entry(method: Method) -> Entry:
    parts = (_part(method.regularizer), _part(method.importance), _part(method.selection))
    return Entry(method.name, method.title, *parts)


def _part(spec: RegularizerSpec | ImportanceSpec | SelectionSpec) -> Part:
    return Part(spec.name, spec.title)


@cache
def _kept() -> Catalogue:
    """Return the catalogue that was kept of the sources as they are; make and keep it where there is none."""
    path = _path()
    try:
        return _from_plain(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError):  # none yet, or damaged
        found = _of_registry()
    if not sys.dont_write_bytecode:
        try:
            for outdated in path.parent.glob("catalogue-*.json"):
                outdated.unlink(missing_ok=True)
            write_atomically(path, json.dumps(asdict(found)).encode(), durable=False)
        except OSError:  # an installation that may not be written to: it takes longer, as for byte code
            pass
    return found


def _path() -> Path:
    """Return where the catalogue of the sources as they are is kept."""
    sources = [*sorted((PACKAGE.parent / "baselines").glob("*.py")), PACKAGE / "methods.py", Path(__file__)]
    digest = hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in sources)).hexdigest()[:16]
    return Path(cache_from_source(__file__)).with_name(f"catalogue-{digest}.json")


def _from_plain(data: dict[str, dict[str, dict[str, Any]]]) -> Catalogue:
    def entry(values: dict[str, Any]) -> Entry:
        parts = {key: Part(**values[key]) for key in ("regularizer", "importance", "selection")}
        return Entry(str(values["name"]), str(values["title"]), **parts)

    methods = {name: entry(values) for name, values in data["methods"].items()}
    kinds = ("regularizers", "importances", "selections")
    return Catalogue(methods, *({name: Part(**values) for name, values in data[kind].items()} for kind in kinds))
