"""Errors for unknown names that say which one was probably meant."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable

LISTED = 60  # names that fit in a message

NEAR = 0.55  # similarity from which a name is suggested: below, unrelated words meet by chance

ALIKE = str.maketrans("oil", "011")  # letters that are typed or read for digits


def unknown_name(kind: str, name: str, known: Iterable[str], instead: str = "") -> str:
    """Return the text of an error about an unknown name: the nearest known one, and all of them if they are few.

    Args:
        kind: What it was to name.
        name: As it was typed.
        known: All names of that kind.
        instead: A sentence on what the name is, where that is known; then none is suggested.
    """
    names = list(known)
    near = None if instead else nearest(name, names)
    hint = f"Did you mean {near!r}?" if near else instead
    listed = f"Known: {', '.join(names)}." if len(names) <= LISTED else f"{len(names)} are known."
    return " ".join(part for part in (f"there is no {kind} {name!r}.", hint, listed) if part)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the name that was probably meant, or None.

    Capitals and look-alikes (O and 0, l and 1) count as the same; of equally near names the one with the longer common
    beginning is chosen.

    Examples:
        >>> nearest("resnet2O", ["resnet32", "resnet20"])
        'resnet20'
    """
    typed = _folded(name)

    def order(other: str) -> tuple[float, int]:
        folded = _folded(other)
        same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(typed, folded, strict=False)))
        return difflib.SequenceMatcher(None, typed, folded).ratio(), same

    best = max(known, key=order, default=None)
    return best if best is not None and order(best)[0] >= NEAR else None


def _folded(name: str) -> str:
    return name.casefold().translate(ALIKE)
