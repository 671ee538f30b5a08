"""Trackers: mirrors of the records in the tools that people look at curves with; never their source.

All of them are observers of a sweep with a `close`. Packages are imported when the first run starts.
"""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from benchmarks.config import Cell
from benchmarks.records.record import Record
from benchmarks.records.rows import EPOCH_COLUMNS, EpochRow
from benchmarks.running.bench import Observer
from benchmarks.running.mlflow_runs import MlflowRuns
from benchmarks.running.run_config import run_config
from benchmarks.running.stages import Stage
from benchmarks.running.wandb_mirror import COLUMNS, CURVES, Mode, WandbSink, overview_row
from benchmarks.suggest import unknown_name

NAMES = ("wandb", "tensorboard", "mlflow", "csv")
EXTRAS = ("tensorboard", "mlflow")  # names of packages, and of the extras that install them


class Tracker(Observer, Protocol):
    """An observer that is closed at the end of a sweep."""

    def close(self) -> None:
        """Flush and close."""
        ...


class TrackerWarning(UserWarning):
    """A tracker could not write; training continues, and the records are complete."""


class Writer(Protocol):
    """Where one tool keeps its files."""

    def open(self, cell: Cell, config: dict[str, Any]) -> None:
        """Start a run; one that started before is started again."""
        ...

    def epoch(self, cell: Cell, row: EpochRow, number: int) -> None:
        """Write a point of the curves; `number` counts the epochs of all phases."""
        ...

    def finish(self, cell: Cell, record: Record) -> None:
        """Write the results and end the run."""
        ...

    def close(self) -> None:
        """End all runs."""
        ...


class Mirror:
    """Sends events to a writer; after a failure it warns once and stops."""

    def __init__(self, writer: Writer, tuning: Path) -> None:
        self._writer, self._tuning = writer, tuning
        self._epochs: dict[str, int] = {}
        self._broken = False

    def run_started(self, cell: Cell, stages: Sequence[Stage]) -> None:
        """Start a run."""
        self._epochs[cell.label] = 0
        self._guarded(lambda: self._writer.open(cell, run_config(cell, self._tuning)))

    def epoch_done(self, cell: Cell, stage: Stage, row: EpochRow, *, cached: bool) -> None:
        """Write a point of the curves."""
        self._epochs[cell.label] = number = self._epochs.get(cell.label, 0) + 1
        self._guarded(lambda: self._writer.epoch(cell, row, number))

    def waiting(self, cell: Cell, reason: str) -> None:
        """Do nothing: curves do not show it."""

    def run_finished(self, cell: Cell, record: Record, history: Sequence[EpochRow]) -> None:
        """Write the results."""
        self._guarded(lambda: self._writer.finish(cell, record))

    def close(self) -> None:
        """End all runs."""
        self._guarded(self._writer.close)

    def _guarded(self, action: Callable[[], object]) -> None:
        if self._broken:
            return
        try:
            action()
        except (ImportError, OSError, RuntimeError, ValueError, TypeError, LookupError) as error:
            self._broken = True
            name = type(self._writer).__name__
            message = (
                f"{name} failed ({type(error).__name__}: {error}); training continues, and the records are complete"
            )
            warnings.warn(message, TrackerWarning, stacklevel=3)


class TensorBoardFiles:
    """Event files for TensorBoard, one folder per run: `tensorboard --logdir FOLDER`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[str, Any] = {}

    def open(self, cell: Cell, config: dict[str, Any]) -> None:
        """Open the run's event file, with its configuration as text."""
        from torch.utils.tensorboard import SummaryWriter

        self._end(cell)
        folder = self._folder / f"{cell.experiment.name}-{cell.profile_name}" / cell.run_id
        writer = self._writers[cell.label] = SummaryWriter(str(folder))
        writer.add_text("config", f"```json\n{json.dumps(config, indent=1)}\n```")

    def epoch(self, cell: Cell, row: EpochRow, number: int) -> None:
        """Write the curves."""
        for curve in CURVES:
            self._writers[cell.label].add_scalar(f"{row.phase}/{curve}", getattr(row, curve), number)

    def finish(self, cell: Cell, record: Record) -> None:
        """Write accuracy against MACs: in these charts the step is millions of MACs."""
        writer = self._writers[cell.label]
        for state, measured in record.states.items():
            writer.add_scalar(f"accuracy_against_million_macs/{state}", measured["top1"], measured["macs"] // 10**6)
        self._end(cell)

    def close(self) -> None:
        """Close all event files."""
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def _end(self, cell: Cell) -> None:
        if (writer := self._writers.pop(cell.label, None)) is not None:
            writer.close()


class CsvFiles:
    """Plain tables: one file of epochs per run while it trains, and `runs.csv` with a row per finished run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, cell: Cell, config: dict[str, Any]) -> None:
        """Start the table of a run, and keep its configuration beside it."""
        path = self._path(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerow(["number", *EPOCH_COLUMNS])

    def epoch(self, cell: Cell, row: EpochRow, number: int) -> None:
        """Append a row."""
        with self._path(cell).open("a", encoding="utf-8", newline="") as file:
            csv.writer(file).writerow([number, *(getattr(row, column) for column in EPOCH_COLUMNS)])

    def finish(self, cell: Cell, record: Record) -> None:
        """Append the results."""
        path = self._folder / "runs.csv"
        columns = ["experiment", "profile", "run_id", "status", "strength", *COLUMNS]
        values = overview_row(record) if record.complete else [record.method, record.seed, record.macs_kept]
        new = not path.is_file()
        with path.open("a", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            if new:
                table.writerow(columns)
            table.writerow([record.experiment, record.profile, record.run_id, record.status, record.strength, *values])

    def close(self) -> None:
        """Nothing: every row is written at once."""

    def _path(self, cell: Cell) -> Path:
        return self._folder / f"{cell.experiment.name}-{cell.profile_name}" / f"{cell.run_id}.csv"


def check_trackers(names: Sequence[str]) -> list[str]:
    """Return the names, each once.

    Raises:
        ValueError: One is unknown, or its package is not installed.
    """
    for name in names:
        if name not in (*NAMES, "none"):
            raise ValueError(unknown_name("tracker", name, (*NAMES, "none")))
        if name in EXTRAS and find_spec(name) is None:
            raise ValueError(f"the tracker {name!r} needs a package that is not installed: pip install '.[{name}]'")
    return [name for name in dict.fromkeys(names) if name != "none"]


def open_trackers(names: Sequence[str], mode: Mode, tuning: Path, results: Path | None = None) -> list[Tracker]:
    """Return the trackers of these names.

    Args:
        names: See `check_trackers`.
        mode: Of Weights & Biases.
        tuning: Where strengths are read.
        results: Folder of the records, for the overview of Weights & Biases.
    """
    make: dict[str, Callable[[], Tracker]] = {
        "wandb": lambda: WandbSink(mode, Path("wandb"), tuning, results),
        "tensorboard": lambda: Mirror(TensorBoardFiles(Path("tensorboard")), tuning),
        "mlflow": lambda: Mirror(MlflowRuns(), tuning),
        "csv": lambda: Mirror(CsvFiles(Path("tracks")), tuning),
    }
    return [make[name]() for name in check_trackers(names)]
