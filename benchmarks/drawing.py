"""Drawing many figures: side by side in as many processes as there are cores, with the same bytes as one by one."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor

from benchmarks.cores import available_cores
from benchmarks.figures import Files

Draw = Callable[[], Files | None]

FEW = 2  # figures that are not worth a process
PROCESSES = 8  # at most

_tasks: Mapping[str, Draw] = {}  # what forked processes draw from; they see it without copying


def draw_all(tasks: Mapping[str, Draw]) -> dict[str, Files | None]:
    """Draw figures by name; None where there is nothing to draw.

    The processes are forks of this one, for which they need no second import of everything; where the platform does
    not fork safely (all but Linux), the figures are drawn one after the other.
    """
    processes = min(available_cores(), PROCESSES, len(tasks))
    if sys.platform != "linux" or processes < 2 or len(tasks) <= FEW:
        return {name: draw() for name, draw in tasks.items()}
    global _tasks
    _tasks = tasks
    try:
        with ProcessPoolExecutor(processes, multiprocessing.get_context("fork")) as pool:
            return dict(zip(tasks, pool.map(_draw, tasks), strict=True))
    finally:
        _tasks = {}


def _draw(name: str) -> Files | None:
    return _tasks[name]()
