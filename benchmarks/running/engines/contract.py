"""Where runs are done: in this process, in several processes of this machine, or on a Ray cluster.

An engine does tasks and reports events. `drive` chooses the next task, holds the runs' leases, writes their records and
retries if a worker died. Every run is done by the same function, `perform`.
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
    """A run to do, with the strength that the driver looked up."""

    cell: Cell
    strength: Strength


@dataclass(frozen=True)
class Started:
    """A run started."""

    cell: Cell
    stages: Sequence[Stage]


@dataclass(frozen=True)
class EpochDone:
    """An epoch is finished."""

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
    """A run is finished (`outcome`), stopped at a checkpoint (`stopped`), or the machine has a problem (`trouble`)."""

    cell: Cell
    outcome: Outcome | None = None
    stopped: str | None = None
    trouble: str | None = None


@dataclass(frozen=True)
class Died:
    """The process of a run was killed; `final`: the engine's own retries failed."""

    cell: Cell
    reason: str
    final: bool = False


Event = Started | EpochDone | Waiting | Ended | Died

Tell = Callable[[Event], None]


class Engine(Protocol):
    """Does tasks.

    Attributes:
        slots: Number of concurrent tasks.
    """

    slots: int

    def start(self, task: Task) -> None:
        """Start a task; fewer than `slots` are running."""
        ...

    def wait(self, tell: Tell) -> None:
        """Wait a while, or until something happens, and report it."""
        ...

    def stop(self) -> None:
        """Ask every task to stop after its next checkpoint."""
        ...

    def close(self) -> None:
        """Stop everything at once."""
        ...


class EventForwarder:
    """An observer that turns notifications into events."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    def run_started(self, cell: Cell, stages: Sequence[Stage]) -> None:
        """Report the start."""
        self._tell(Started(cell, list(stages)))

    def epoch_done(self, cell: Cell, stage: Stage, row: EpochRow, *, cached: bool) -> None:
        """Report the epoch."""
        self._tell(EpochDone(cell, stage, row, cached))

    def waiting(self, cell: Cell, reason: str) -> None:
        """Report the wait."""
        self._tell(Waiting(cell, reason))

    def run_finished(self, cell: Cell, record: Record, history: Sequence[EpochRow]) -> None:
        """Do nothing: `Ended` reports it."""


def perform(bench: Bench, task: Task, control: Control, tell: Tell) -> None:
    """Do a task and report how it ended."""
    here = replace(bench, observers=[EventForwarder(tell)], control=control)
    try:
        outcome = execute(here, task.cell, task.strength)
    except Stopped as stopped:
        tell(Ended(task.cell, stopped=str(stopped)))
    except OSError as error:
        tell(Ended(task.cell, trouble=f"{type(error).__name__}: {error}"))
    else:
        tell(Ended(task.cell, outcome))
