"""Errors for unknown names that say which one was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LISTED = 60  # names that fit in a message


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the text of an error about an unknown name: the nearest known one, and all of them if they are few."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    listed = f"Known: {', '.join(names)}." if len(names) <= LISTED else f"{len(names)} are known."
    return f"there is no {kind} {name!r}.{hint} {listed}"
