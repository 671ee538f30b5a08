"""Weights & Biases as a mirror of the records, never their source; offline unless asked otherwise.

One W&B run per record, with an id derived from experiment and run: a resumed run or a later `publish` writes the same
W&B run, and writing it again replaces it. If W&B fails, training continues.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from benchmarks.config import Cell, digest
from benchmarks.records.record import STATES, Record
from benchmarks.records.rows import EpochRow
from benchmarks.running.stages import Stage

Mode = Literal["online", "offline", "disabled"]

PROJECT = "oicsr"

COLUMNS = ("method", "seed", "macs_kept", "macs", "params", *(f"{state}_top1" for state in STATES))

CURVES = ("learning_rate", "train_loss", "penalty", "train_top1", "val_loss", "val_top1")

INIT_SECONDS = 30  # how long W&B may take to answer before it is given up


class WandbWarning(UserWarning):
    """Something could not be written to W&B; the records are not affected."""


@dataclass(frozen=True)
class Place:
    """Where W&B runs go.

    Attributes:
        mode: `"offline"`: into a folder, for `wandb sync` later. `"online"`: needs `wandb login`.
        folder: Where W&B keeps its files.
        project: The project of all runs.
        entity: User or team; None: the one logged in.
    """

    mode: Mode
    folder: Path
    project: str = PROJECT
    entity: str | None = None


def wandb_id(experiment: str, run_id: str) -> str:
    """Return the id of the W&B run of a record."""
    return digest(["W&B run", experiment, run_id])


def open_run(place: Place, experiment: str, profile: str, name: str, kind: str, config: dict[str, Any]) -> Any:
    """Open a W&B run; under a W&B agent, use the agent's."""
    import wandb

    place.folder.mkdir(parents=True, exist_ok=True)
    return wandb.init(
        project=place.project,
        entity=place.entity,
        id=None if os.environ.get("WANDB_SWEEP_ID") else wandb_id(experiment, name),
        group=f"{experiment}-{profile}",
        name=name,
        job_type=kind,
        mode=place.mode,
        dir=str(place.folder),
        config=config,
        settings=wandb.Settings(silent=True, console="off", disable_git=True, init_timeout=INIT_SECONDS),
        reinit="create_new",  # several runs may be open at a time, one per process that trains
    )


def log_epoch(run: Any, row: EpochRow, number: int) -> None:
    """Log a point of the curves; `number` counts the epochs of all phases."""
    run.log({"epoch": number, **{f"{row.phase}/{curve}": getattr(row, curve) for curve in CURVES}})


def log_result(run: Any, record: Record) -> None:
    """Write the results to the summary, where W&B's charts and tables find them."""
    values: dict[str, Any] = {"status": record.status, "strength": record.strength}
    for state, measured in record.states.items():
        values |= {f"{state}/{name}": measured[name] for name in ("top1", "val_top1", "macs", "params")}
    if record.failure:
        values["failure"] = record.failure.get("reason")
    run.summary.update(values)


def run_config(cell: Cell) -> dict[str, Any]:
    """Return what W&B shows as a run's configuration."""
    return {
        "experiment": cell.experiment.name,
        "profile": cell.profile_name,
        "method": cell.method,
        "seed": cell.seed,
        "macs_kept": cell.macs_kept,
        "model": cell.experiment.model,
        "dataset": cell.experiment.dataset,
    }


def overview_row(record: Record) -> list[Any]:
    """Return the row of a complete record in the table of accuracy against MACs."""
    finetuned = record.states["finetuned"]
    tops = [record.states.get(state, {}).get("top1") for state in STATES]
    return [record.method, record.seed, record.macs_kept, finetuned["macs"], finetuned["params"], *tops]


def log_overview(run: Any, rows: Iterable[list[Any]]) -> None:
    """Log accuracy against MACs as a table, and a chart before and after fine-tuning."""
    import wandb

    table = wandb.Table(columns=list(COLUMNS), data=list(rows))
    charts = {
        f"accuracy_against_macs/{state}": wandb.plot.scatter(
            table, "macs", f"{state}_top1", title=f"{state}: top-1 against MACs"
        )
        for state in ("pruned", "finetuned")
    }
    run.log({"accuracy_against_macs": table, **charts})


class WandbSink:
    """Mirrors events into W&B; after a failure it warns once and stops mirroring."""

    def __init__(self, mode: Mode, folder: Path) -> None:
        self._place = Place(mode, folder)
        self._runs: dict[str, Any] = {}
        self._epochs: dict[str, int] = {}
        self._rows: dict[tuple[str, str], list[list[Any]]] = {}
        self._broken = mode == "disabled"

    def run_started(self, cell: Cell, stages: Sequence[Stage]) -> None:
        """Open the W&B run."""
        self._guarded(lambda: self._open(cell))

    def _open(self, cell: Cell) -> None:
        if cell.label not in self._runs:  # a run whose worker died starts twice
            arguments = cell.experiment.name, cell.profile_name, cell.run_id, cell.method, run_config(cell)
            self._runs[cell.label] = open_run(self._place, *arguments)
        self._epochs[cell.label] = 0

    def epoch_done(self, cell: Cell, stage: Stage, row: EpochRow, *, cached: bool) -> None:
        """Log a point of the curves."""
        self._epochs[cell.label] = number = self._epochs.get(cell.label, 0) + 1
        self._guarded(lambda: log_epoch(self._runs[cell.label], row, number))

    def waiting(self, cell: Cell, reason: str) -> None:
        """Nothing: nobody who looks at curves asks for it."""

    def run_finished(self, cell: Cell, record: Record, history: Sequence[EpochRow]) -> None:
        """Write the results and end the W&B run."""
        if record.complete:
            self._rows.setdefault((cell.experiment.name, cell.profile_name), []).append(overview_row(record))
        self._guarded(lambda: self._finish(cell.label, record))

    def _finish(self, label: str, record: Record) -> None:
        run = self._runs.pop(label)
        log_result(run, record)
        run.finish(exit_code=0 if record.complete else 1)

    def close(self) -> None:
        """Log accuracy against MACs of the finished runs, and end all W&B runs (also those of stopped runs)."""
        for run in self._runs.values():
            self._guarded(run.finish)
        if not os.environ.get("WANDB_SWEEP_ID"):
            for (experiment, profile), rows in self._rows.items():
                self._guarded(partial(self._overview, experiment, profile, rows))
        self._runs, self._rows = {}, {}

    def _overview(self, experiment: str, profile: str, rows: list[list[Any]]) -> None:
        run = open_run(self._place, experiment, profile, f"{profile}-overview", "overview", {"experiment": experiment})
        log_overview(run, rows)
        run.finish()

    def _guarded(self, action: Callable[[], object]) -> None:
        if self._broken:
            return
        try:
            action()
        except wandb_errors() as error:
            self._broken = True
            message = f"W&B failed ({type(error).__name__}: {error}); training continues, and the records are complete"
            warnings.warn(message, WandbWarning, stacklevel=3)


def wandb_errors() -> tuple[type[BaseException], ...]:
    """Return what W&B may raise: its own errors, and those of disks, sockets and missing packages."""
    plain = (ImportError, OSError, RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError)
    try:
        import wandb
    except ImportError:
        return plain
    return (wandb.Error, *plain)
