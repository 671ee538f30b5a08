"""What lies beside a record: the epochs (`history.csv`) and the channels (`channels.csv`) of its run."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from benchmarks.records.record import CHANNEL_COLUMNS, Record, RecordError, runs_folder

HISTORY_COLUMNS = {"phase", "step", "epoch", "val_top1"}


def run_file(results: Path, record: Record, name: str) -> Path:
    """Return where a file of a run lies."""
    return runs_folder(results) / record.experiment / record.run_id / name


class Details:
    """Reads the files of runs in a results folder, each once."""

    def __init__(self, results: Path) -> None:
        self.results = results
        self._histories: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self._channels: dict[tuple[str, str], list[dict[str, Any]]] = {}

    def history(self, record: Record) -> list[dict[str, Any]]:
        """Return the epochs of a run; none where the file is missing.

        Raises:
            RecordError: The file cannot be read.
        """
        key = (record.experiment, record.run_id)
        if key not in self._histories:
            rows = _read(run_file(self.results, record, "history.csv"), HISTORY_COLUMNS)
            self._histories[key] = [
                {
                    "phase": row["phase"],
                    "step": int(row["step"]),
                    "epoch": int(row["epoch"]),
                    "val": float(row["val_top1"]),
                }
                for row in rows
            ]
        return self._histories[key]

    def channels(self, record: Record) -> list[dict[str, Any]]:
        """Return the channels of a run; none where it wrote none.

        Raises:
            RecordError: The file cannot be read.
        """
        key = (record.experiment, record.run_id)
        if key not in self._channels:
            rows = _read(run_file(self.results, record, "channels.csv"), set(CHANNEL_COLUMNS))
            self._channels[key] = [
                {
                    "coupling": row["coupling"],
                    "out": float(row["out_energy"]),
                    "in": float(row["in_energy"]),
                    "kept": row["kept"] == "1",
                }
                for row in rows
            ]
        return self._channels[key]

    def finetuning(self, record: Record) -> list[float]:
        """Return validation top-1 before fine-tuning and after each of its epochs; none without a history."""
        values = [row["val"] for row in self.history(record) if row["phase"] == "finetune"]
        return [float(record.states["pruned"]["val_top1"]), *values] if values else []


def _read(path: Path, columns: set[str]) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = columns - set(reader.fieldnames or ())
        if missing:
            raise RecordError(f"{path} lacks the columns {sorted(missing)}")
        return list(reader)
