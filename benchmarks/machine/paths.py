"""Where the project is (the one place that counts folders upwards), and paths that stay in their folder."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[1]
ROOT = BENCHMARKS.parent
METHOD_CARDS = ROOT / "docs" / "methods.md"
PUBLISHED = ROOT / "results" / "published"  # numbers quoted from papers
PUBLISHED_TUNING = ROOT / "results" / "tuning"
REPORT_ASSETS = BENCHMARKS / "reporting" / "assets"


class OutsideError(ValueError):
    """A path leads out of the folder that it was meant for."""


def inside(folder: Path, *parts: str | Path) -> Path:
    """Return a path in a folder.

    Args:
        folder: May be anywhere, and a link.
        parts: Of the path below it.

    Raises:
        OutsideError: The path leads out of the folder, by `..`, as an absolute path, or through a link.
    """
    path = folder.joinpath(*parts)
    check_inside(folder, path)
    return path


def check_inside(folder: Path, path: Path) -> None:
    """Make sure that a path leads into a folder.

    Raises:
        OutsideError: It does not.
    """
    if not path.resolve().is_relative_to(folder.resolve()):
        raise OutsideError(f"{path} leads out of {folder}, to {path.resolve()}: it is neither read nor written")


def unused(path: Path, taken: Callable[[Path], bool] = os.path.lexists) -> Path:
    """Return a path, or where that is taken, the first of `NAME-2`, `NAME-3`, ... that is not."""
    others = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(each for each in itertools.chain([path], others) if not taken(each))
