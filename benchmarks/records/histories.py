"""What is beside a record: the epochs (`history.csv`) and the channels (`channels.csv`) of its run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.records.record import HISTORY_CHECKSUM, Beside, Record, read_beside, runs_folder


class Details:
    """Reads and verifies the files of runs in a results folder, each once."""

    def __init__(self, results: Path) -> None:
        self.results = results
        self._read: dict[tuple[str, str], Beside] = {}

    def _beside(self, record: Record) -> Beside:
        key = (record.experiment, record.run_id)
        if key not in self._read:
            path = runs_folder(self.results) / record.experiment / record.run_id / "record.json"
            known = HISTORY_CHECKSUM in record.provenance  # nothing can be verified beside a record that names none
            self._read[key] = read_beside(path, record) if known else Beside([], [])
        return self._read[key]

    def history(self, record: Record) -> list[dict[str, Any]]:
        """Return the epochs of a run.

        Raises:
            RecordError: The file cannot be read, or was changed.
        """
        rows = self._beside(record).history
        return [{"phase": r.phase, "step": r.step, "epoch": r.epoch, "val": r.val_top1} for r in rows]

    def channels(self, record: Record) -> list[dict[str, Any]]:
        """Return the channels of a run; none where it wrote none.

        Raises:
            RecordError: The file cannot be read, or was changed.
        """
        rows = self._beside(record).channels
        return [{"coupling": r.coupling, "out": r.out, "in": r.inward, "kept": r.kept} for r in rows]

    def finetuning(self, record: Record) -> list[float]:
        """Return validation top-1 before fine-tuning and after each of its epochs; none without a history."""
        values = [row["val"] for row in self.history(record) if row["phase"] == "finetune"]
        start = record.states.get("recalibrated", record.states["pruned"])  # what fine-tuning starts from
        return [float(start["val_top1"]), *values] if values else []
