"""Drawing many figures: on all cores, where a process can be copied."""

from __future__ import annotations

import multiprocessing
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor

from benchmarks.machine.cores import available_cores
from benchmarks.reporting.figures.style import Files

Draw = Callable[[], Files | None]

FEW = 16  # figures that one process draws sooner than others have started

_drawings: dict[str, Draw] = {}  # what the copies of this process draw: records are too many to be sent to them


def draw_all(drawings: Mapping[str, Draw]) -> dict[str, Files | None]:
    """Return each figure's files, or None where it has nothing to show, by name.

    Copies of this process draw side by side where that is safe: on Linux, and while no other thread of Python runs. The
    files are the same.
    """
    workers = min(available_cores(), len(drawings))
    safe = sys.platform == "linux" and threading.active_count() == 1
    if workers < 2 or len(drawings) <= FEW or not safe:
        return {name: draw() for name, draw in drawings.items()}
    _drawings.update(drawings)
    try:
        with warnings.catch_warnings():
            # from Python 3.12 on: of a copy while libraries have threads of their own, which no figure needs
            warnings.simplefilter("ignore", DeprecationWarning)
            with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
                return dict(zip(drawings, pool.map(_draw, drawings), strict=True))
    finally:
        _drawings.clear()


def _draw(name: str) -> Files | None:
    return _drawings[name]()
