"""Weights & Biases as a mirror of the records, never their source; offline unless asked otherwise.

One W&B run per experiment, profile, method and seed: the curves of every phase by epoch, and accuracy against MACs
over the targets as a table and a chart. Whatever goes wrong in W&B, training goes on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from benchmarks.config import Cell
from benchmarks.records import STATES, Record
from benchmarks.stages import Stage
from benchmarks.training import EpochRow

Mode = Literal["online", "offline", "disabled"]
PROJECT = "oicsr"
COLUMNS = ("macs_kept", "macs", "params", *(f"{state}_top1" for state in STATES))
CURVES = ("learning_rate", "train_loss", "penalty", "train_top1", "val_loss", "val_top1")


class WandbWarning(UserWarning):
    """Something could not be written to W&B; the records are not concerned."""


class WandbSink:
    """Writes what it is told of into W&B.

    Args:
        mode: `"offline"`: into a folder, for `wandb sync` later. `"online"`: needs `wandb login`.
        folder: Where W&B keeps its files.
    """

    def __init__(self, mode: Mode, folder: Path) -> None:
        self._mode, self._folder = mode, folder
        self._run: Any = None
        self._key: tuple[str, str, str, int] | None = None
        self._logged: set[tuple[str, int, int]] = set()
        self._rows: list[Iterable[Any]] = []
        self._broken = False

    def run_started(self, cell: Cell, stages: Sequence[Stage]) -> None:
        """Open a W&B run, unless that of the same method and seed is open."""
        key = (cell.experiment.name, cell.profile_name, cell.method, cell.seed)
        if key != self._key:
            self.close()
            self._key = key
            self._guarded(lambda: self._open(cell))

    def _open(self, cell: Cell) -> None:
        import wandb

        self._folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=PROJECT,
            group=f"{cell.experiment.name}-{cell.profile_name}",
            name=f"{cell.method}-seed{cell.seed}",
            job_type=cell.method,
            mode=self._mode,
            dir=str(self._folder),
            config={"experiment": cell.experiment.name, "profile": cell.profile_name, "seed": cell.seed},
            settings=wandb.Settings(silent=True, console="off"),
            reinit="finish_previous",
        )

    def epoch_done(self, cell: Cell, stage: Stage, row: EpochRow, *, cached: bool) -> None:
        """Log a point of the curves, once per run (targets share stages)."""
        name = stage.name if stage.name != "finetune" else f"finetune-keep{100 * cell.macs_kept:g}"
        point = (name, row.step, row.epoch)
        if point not in self._logged:
            self._logged.add(point)
            values = {f"{name}/{curve}": getattr(row, curve) for curve in CURVES}
            self._guarded(lambda: self._run and self._run.log({**values, f"{name}/epoch": row.epoch}))

    def run_finished(self, cell: Cell, record: Record, history: Sequence[EpochRow]) -> None:
        """Note the four states of a target, for the table."""
        if record.complete:
            tops = [record.states[state]["top1"] for state in STATES]
            finetuned = record.states["finetuned"]
            self._rows.append([record.macs_kept, finetuned["macs"], finetuned["params"], *tops])
            summary = {f"{state}_top1@{record.macs_kept:g}": record.states[state]["top1"] for state in STATES}
            self._guarded(lambda: self._run and self._run.summary.update({**summary, "strength": record.strength}))

    def close(self) -> None:
        """Log accuracy against MACs, and end the W&B run."""
        if self._run is not None:
            self._guarded(self._finish)
        self._run, self._key, self._rows, self._logged = None, None, [], set()

    def _finish(self) -> None:
        import wandb

        if self._rows:
            table = wandb.Table(columns=list(COLUMNS), data=self._rows)
            charts = {
                f"accuracy_against_macs/{state}": wandb.plot.scatter(
                    table, "macs", f"{state}_top1", title=f"{state}: top-1 against MACs"
                )
                for state in ("pruned", "finetuned")
            }
            self._run.log({"accuracy_against_macs": table, **charts})
        self._run.finish()

    def _guarded(self, action: Callable[[], object]) -> None:
        """Do something with W&B; on failure say so once and leave W&B alone from then on."""
        if self._broken or self._mode == "disabled":
            return
        try:
            action()
        except _wandb_errors() as error:
            self._broken = True
            self._run = None
            message = f"W&B failed ({type(error).__name__}: {error}); training goes on, the records are complete"
            warnings.warn(message, WandbWarning, stacklevel=3)


def _wandb_errors() -> tuple[type[BaseException], ...]:
    """Return what W&B may raise: its own errors, and those of disks, sockets and missing packages."""
    try:
        import wandb
    except ImportError:
        return (ImportError,)
    return (wandb.Error, ImportError, OSError, RuntimeError, ValueError, TypeError, AttributeError)
