"""Where runs are done: in this process, in several processes of this machine, or on a Ray cluster.

An engine does tasks and tells what happens; `drive` decides which task is next, holds the runs' leases, writes their
records and tries again where a worker died. Every run is done by the same function, `perform`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from benchmarks.config import Cell
from benchmarks.records.record import Record
from benchmarks.records.rows import EpochRow
from benchmarks.records.strengths import Strength
from benchmarks.running.bench import Bench
from benchmarks.running.outcome import Outcome
from benchmarks.running.run import execute
from benchmarks.running.stages import Stage
from benchmarks.running.stopping import Control, Stopped


@dataclass(frozen=True)
class Task:
    """A run to do, with the strength that was looked up where it was asked for."""

    cell: Cell
    strength: Strength


@dataclass(frozen=True)
class Started:
    """A run began."""

    cell: Cell
    stages: Sequence[Stage]


@dataclass(frozen=True)
class EpochDone:
    """An epoch is over."""

    cell: Cell
    stage: Stage
    row: EpochRow
    cached: bool


@dataclass(frozen=True)
class Waiting:
    """A run waits for another process."""

    cell: Cell
    reason: str


@dataclass(frozen=True)
class Ended:
    """A run is over (`left`), or stopped at a checkpoint (`stopped`), or the machine is in trouble (`trouble`)."""

    cell: Cell
    left: Outcome | None = None
    stopped: str | None = None
    trouble: str | None = None


@dataclass(frozen=True)
class Died:
    """The process of a run was killed; `final`: the engine itself tried again, in vain."""

    cell: Cell
    reason: str
    final: bool = False


Event = Started | EpochDone | Waiting | Ended | Died

Tell = Callable[[Event], None]


class Engine(Protocol):
    """Does tasks.

    Attributes:
        slots: How many at once.
    """

    slots: int

    def start(self, task: Task) -> None:
        """Begin a task; there are fewer than `slots` at work."""
        ...

    def wait(self, tell: Tell) -> None:
        """Wait a while, or until something happened, and tell of it."""
        ...

    def stop(self) -> None:
        """Ask every task to end after its next checkpoint."""
        ...

    def close(self) -> None:
        """End everything at once."""
        ...


class Forward:
    """An observer that turns what it is told into events."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    def run_started(self, cell: Cell, stages: Sequence[Stage]) -> None:
        """Tell of the start."""
        self._tell(Started(cell, list(stages)))

    def epoch_done(self, cell: Cell, stage: Stage, row: EpochRow, *, cached: bool) -> None:
        """Tell of the epoch."""
        self._tell(EpochDone(cell, stage, row, cached))

    def waiting(self, cell: Cell, reason: str) -> None:
        """Tell for whom."""
        self._tell(Waiting(cell, reason))

    def run_finished(self, cell: Cell, record: Record, history: Sequence[EpochRow]) -> None:
        """Nothing: `Ended` tells it."""


def perform(bench: Bench, task: Task, control: Control, tell: Tell) -> None:
    """Do a task to its end, whatever the end is, and tell of it."""
    here = replace(bench, observers=[Forward(tell)], control=control)
    try:
        left = execute(here, task.cell, task.strength)
    except Stopped as stopped:
        tell(Ended(task.cell, stopped=str(stopped)))
    except OSError as error:
        tell(Ended(task.cell, trouble=f"{type(error).__name__}: {error}"))
    else:
        tell(Ended(task.cell, left))
