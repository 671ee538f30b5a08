"""What a person sees while runs go on: bars with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from benchmarks.config import Cell
from benchmarks.records.record import Record
from benchmarks.records.rows import EpochRow
from benchmarks.running.estimate import Estimate
from benchmarks.running.stages import Stage


def duration(seconds: float) -> str:
    """Return a time as a person says it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


class ConsoleObserver:
    """Shows the progress of a sweep. The time left is the estimate, scaled by how the epochs so far compared to it.

    Args:
        console: Where to print; off a terminal there are plain lines and no bars.
        runs: How many there are.
        estimate: Of all of them.
        parallel: Whether several are at work at a time: then every line says whose it is.
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
        self._sweep: TaskID = self._bars.add_task("runs", total=runs, info="")
        self._stage: TaskID = self._bars.add_task("", total=1, info="")

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bars.stop()

    def run_started(self, cell: Cell, stages: Sequence[Stage]) -> None:
        """Name the run."""
        self._bars.update(self._sweep, description=f"[bold]{cell.label}")

    def epoch_done(self, cell: Cell, stage: Stage, row: EpochRow, *, cached: bool) -> None:
        """Move the bars, and print a line at the end of each stage."""
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
            self._console.print(
                f"  {whose}{stage.name}{step}: {row.epoch} epochs, {info}; about {left} left",
                highlight=False,
                soft_wrap=True,
            )

    def run_finished(self, cell: Cell, record: Record, history: Sequence[EpochRow]) -> None:
        """Print what came out."""
        self._finished += 1
        self._bars.update(self._sweep, completed=self._finished)
        counter = f"[{self._finished}/{self._runs}]".replace("[", r"\[")
        if not record.complete:
            reason = (record.failure or {}).get("reason", "")
            self._console.print(f"{counter} {cell.label} [red]FAILED[/red]: {reason}", highlight=False, soft_wrap=True)
            return
        states = ", ".join(f"{name} {100 * state['top1']:.2f}" for name, state in record.states.items())
        self._console.print(f"{counter} {cell.label}: {states} %", highlight=False, soft_wrap=True)

    def seconds_left(self) -> float:
        """Return the estimated time until all runs are done."""
        expected = sum(self._done.values())
        pace = (time.perf_counter() - self._started) / expected if expected > 0 else 1.0
        return max(self._estimate.total - expected, 0.0) * pace
