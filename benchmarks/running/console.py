"""Progress of a sweep: bars with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from benchmarks.config import Cell
from benchmarks.escape import for_terminal
from benchmarks.records.record import Record
from benchmarks.records.rows import EpochRow
from benchmarks.running.estimate import Estimate
from benchmarks.running.stages import Stage

HEARTBEAT = 30.0  # seconds of silence at most, without a terminal


def count_runs(count: int) -> str:
    """Return a number of runs in words: `1 run`, `2 runs`."""
    return "1 run" if count == 1 else f"{count} runs"


def duration(seconds: float) -> str:
    """Return a time as people say it: `45 s`, `12 min`, `5 h 20 min`, `18 days 19 h`.

    Examples:
        >>> duration(27053.4 * 60)
        '18 days 19 h'
        >>> duration(5 * 3600 + 1199)
        '5 h 20 min'
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"
    hours = round(seconds / 3600)
    return f"{hours // 24} days {hours % 24} h" if hours % 24 else f"{hours // 24} days"


class Heartbeat:
    """Calls a function repeatedly on its own thread until it is stopped."""

    def __init__(self, seconds: float, beat: Callable[[], None]) -> None:
        self._seconds, self._beat = seconds, beat
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Stop; no further beat follows."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._seconds):
            self._beat()


@dataclass
class _Position:
    """Position of a run: its stages, the current one, its last epoch, when that epoch ended, and whether it waits."""

    stages: Sequence[Stage]
    index: int = 0
    epoch: int = 0
    since: float = field(default_factory=lambda: time.monotonic())
    waits: bool = False


class ConsoleObserver:
    """Shows the progress of a sweep. The time left is the estimate, scaled by how epochs so far compared with it.

    Args:
        console: Where to print; without a terminal, plain lines instead of bars.
        runs: Number of runs.
        estimate: Estimated time of all runs.
        parallel: Whether several runs are active at once; then every line names its run.
    """

    def __init__(self, console: Console, runs: int, estimate: Estimate, *, parallel: bool = False) -> None:
        self._console, self._runs, self._estimate, self._parallel = console, runs, estimate, parallel
        self._started = time.perf_counter()
        self._finished = 0
        self._done: dict[tuple[str, int], float] = {}  # estimated seconds of the epochs trained since the start
        self._bars = Progress(
            TextColumn("{task.description}", justify="left"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[info]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._positions: dict[str, _Position] = {}  # of the active runs, by label
        self._spoken = time.monotonic()
        self._heartbeat = Heartbeat(1.0 if console.is_terminal else HEARTBEAT / 4, self.beat)
        self._sweep: TaskID = self._bars.add_task("runs", total=runs, info="")
        self._stage: TaskID = self._bars.add_task("", total=1, info="")

    def __enter__(self) -> Self:
        self._bars.start()
        self._heartbeat.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._heartbeat.stop()
        self._bars.stop()

    def run_started(self, cell: Cell, stages: Sequence[Stage]) -> None:
        """Name the run."""
        self._positions[cell.label] = _Position(stages)
        self._bars.update(self._sweep, description=f"[bold]{cell.label}")

    def epoch_done(self, cell: Cell, stage: Stage, row: EpochRow, *, cached: bool) -> None:
        """Move the bars, and print a line at the end of each stage."""
        self._move(cell, stage, row.epoch)
        if not cached:
            share = self._estimate.seconds.get(stage.key, 0.0) / max(stage.phase.epochs, 1)
            self._done[stage.key, row.epoch] = share
        info = f"loss {row.train_loss:.3f}, validation {100 * row.val_top1:.1f} %"
        step = f" {stage.step + 1}" if stage.name == "regularized" and cell.profile.steps > 1 else ""
        whose = f"{cell.label} " if self._parallel else ""
        self._bars.update(
            self._stage,
            description=f"{whose}{stage.name}{step}",
            completed=row.epoch,
            total=stage.phase.epochs,
            info=info,
        )
        self._bars.update(self._sweep, info=f"about {duration(self.seconds_left())} left")
        if not cached and row.epoch == stage.phase.epochs and not self._console.is_terminal:
            left = duration(self.seconds_left())
            epochs = "1 epoch" if row.epoch == 1 else f"{row.epoch} epochs"
            self._spoken = time.monotonic()
            self._console.print(
                f"  {whose}{stage.name}{step}: {epochs}, {info}; about {left} left",
                highlight=False,
                soft_wrap=True,
            )

    def _move(self, cell: Cell, stage: Stage, epoch: int) -> None:
        """Note that an epoch of a stage is finished; after the last one, move to the next stage."""
        position = self._positions.setdefault(cell.label, _Position([stage]))
        keys = [known.key for known in position.stages]
        position.index = keys.index(stage.key) if stage.key in keys else position.index
        position.epoch, position.since, position.waits = epoch, time.monotonic(), False
        if epoch >= stage.phase.epochs and position.index + 1 < len(position.stages):
            position.index, position.epoch = position.index + 1, 0

    def beat(self) -> None:
        """Move the bar inside the epoch on a terminal; elsewhere, print a line after half a minute of silence."""
        now = time.monotonic()
        if not self._positions:
            return
        # a run that waits for another's stage has no epochs of its own to tell of
        label, position = min(self._positions.items(), key=lambda active: active[1].waits)
        stage = position.stages[position.index]
        inside = min((now - position.since) / max(self._estimate.epochs.get(stage.key, 0.0), 1e-9), 0.99)
        if self._console.is_terminal:
            self._bars.update(self._stage, completed=position.epoch + inside, total=max(stage.phase.epochs, 1))
        elif now - self._spoken >= 0.75 * HEARTBEAT:
            self._spoken = now
            epoch = min(position.epoch + 1, stage.phase.epochs)
            since, left = duration(now - position.since), duration(self.seconds_left())
            line = f"  {label} {stage.name}: epoch {epoch} of {stage.phase.epochs} for {since}; about {left} left"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def waiting(self, cell: Cell, reason: str) -> None:
        """Print whom a run waits for."""
        self._spoken = time.monotonic()
        if cell.label in self._positions:
            self._positions[cell.label].waits = True
        line = f"  {cell.label} waits: {for_terminal(reason)}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def run_finished(self, cell: Cell, record: Record, history: Sequence[EpochRow]) -> None:
        """Print the run's results."""
        self._positions.pop(cell.label, None)
        self._spoken = time.monotonic()
        self._finished += 1
        self._bars.update(self._sweep, completed=self._finished)
        counter = f"[{self._finished}/{self._runs}]".replace("[", r"\[")
        if not record.complete:
            reason = escape(for_terminal(record.failure_reason))
            self._console.print(f"{counter} {cell.label} [red]FAILED[/red]: {reason}", highlight=False, soft_wrap=True)
            return
        states = ", ".join(f"{name} {100 * state['top1']:.2f}" for name, state in record.states.items())
        self._console.print(f"{counter} {cell.label}: {states} %", highlight=False, soft_wrap=True)

    def seconds_left(self) -> float:
        """Return the estimated time until all runs are done."""
        expected = sum(self._done.values())
        pace = (time.perf_counter() - self._started) / expected if expected > 0 else 1.0
        return max(self._estimate.total - expected, 0.0) * pace
