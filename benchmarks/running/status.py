"""How far experiments are: every run done, partial, failed, damaged or missing, and about how long the rest takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.config import Cell
from benchmarks.methods.registry import find_method
from benchmarks.records.record import Record, RecordError, check_beside, read_record, record_path
from benchmarks.records.strengths import choose_strength
from benchmarks.running.bench import Bench
from benchmarks.running.estimate import epochs_done, full_epochs, sweep_of
from benchmarks.running.stages import Stage, stages_of
from benchmarks.running.survey import check_same_configuration

DONE, PARTIAL, FAILED, DAMAGED, MISSING = "done", "partial", "failed", "damaged", "missing"

MARKS = {DONE: "#", PARTIAL: "+", FAILED: "x", DAMAGED: "!", MISSING: "."}


@dataclass(frozen=True)
class CellStatus:
    """How far one run is.

    Attributes:
        cell: The run.
        state: One of `MARKS`.
        progress: Share of its epochs that are trained, in [0, 1].
        detail: Why it failed, what is wrong with its record, or where in which stage it is.
    """

    cell: Cell
    state: str
    progress: float
    detail: str = ""


@dataclass
class SweepStatus:
    """How far one experiment is in one profile.

    Attributes:
        cells: All its runs.
        seconds: Expected for what is left, one run after the other; None where no epoch was measured yet.
    """

    cells: list[CellStatus] = field(default_factory=list)
    seconds: float | None = None

    def count(self, state: str) -> int:
        """Return how many runs are in a state."""
        return sum(cell.state == state for cell in self.cells)


def status_of(bench: Bench, cells: Sequence[Cell]) -> dict[tuple[str, str], SweepStatus]:
    """Return how far runs are, by experiment and profile. Reads records and checkpoints, and changes nothing."""
    known: dict[str, dict[str, Any]] = {}
    found: dict[tuple[str, str], SweepStatus] = {}
    pending: list[tuple[Cell, Stage]] = []
    records: dict[tuple[str, str], list[Record]] = {}
    for cell in cells:
        sweep = found.setdefault(sweep_of(cell), SweepStatus())
        record, wrong = _record_of(bench, cell)
        if record is not None and record.complete:
            records.setdefault(sweep_of(cell), []).append(record)
            sweep.cells.append(CellStatus(cell, DONE, 1.0))
            continue
        stages = _stages(bench, cell)
        for stage in stages:
            if stage.key not in known:
                known[stage.key] = bench.store.progress(stage.key) or {}
        pending += [(cell, stage) for stage in stages]
        sweep.cells.append(_unfinished(cell, stages, known, record, wrong))
    _estimate(found, pending, known, records)
    return found


def _record_of(bench: Bench, cell: Cell) -> tuple[Record | None, str]:
    path = record_path(bench.results, cell)
    if not path.is_file():
        return None, ""
    try:
        record = read_record(path)
        check_beside(path, record)
        check_same_configuration(cell, record, str(path), bench)
    except RecordError as error:
        return None, str(error)
    return record, ""


def _stages(bench: Bench, cell: Cell) -> list[Stage]:
    method = find_method(cell.method)
    return stages_of(cell, method, choose_strength(bench.tuning, cell, method).value, bench.device.type)


def _unfinished(
    cell: Cell, stages: Sequence[Stage], known: dict[str, dict[str, Any]], record: Record | None, wrong: str
) -> CellStatus:
    done = [epochs_done(known[stage.key]) for stage in stages]
    progress = sum(done) / max(sum(stage.phase.epochs for stage in stages), 1)
    if wrong:
        return CellStatus(cell, DAMAGED, progress, wrong)
    if record is not None:
        return CellStatus(cell, FAILED, progress, str((record.failure or {}).get("reason")))
    # a dense network that is finished belongs to all methods of its seed: by itself it makes no run partial
    if not any(done[1:]) and (not done[0] or known[stages[0].key].get("finished")):
        return CellStatus(cell, MISSING, progress)
    position = max(index for index, epochs in enumerate(done) if epochs)
    detail = f"{stages[position].name} {done[position]}/{stages[position].phase.epochs}"
    return CellStatus(cell, PARTIAL, progress, detail)


def _estimate(
    found: dict[tuple[str, str], SweepStatus],
    pending: Sequence[tuple[Cell, Stage]],
    known: dict[str, dict[str, Any]],
    records: dict[tuple[str, str], list[Record]],
) -> None:
    """Note the expected seconds of every sweep; a stage that runs share counts once."""
    full = full_epochs(pending, known)
    counted: set[str] = set()
    for name, sweep in found.items():
        if sweep.count(DONE) == len(sweep.cells):
            sweep.seconds = 0.0
            continue
        whole = full.get(name) or _from_records(records.get(name, []))
        if whole is None:
            continue
        sweep.seconds = 0.0
        for cell, stage in pending:
            if sweep_of(cell) == name and stage.key not in counted and not known[stage.key].get("finished"):
                counted.add(stage.key)
                sweep.seconds += whole * stage.share * (stage.phase.epochs - epochs_done(known[stage.key]))


def _from_records(records: Sequence[Record]) -> float | None:
    """Return the seconds of an epoch of the unpruned network, from what records say of their dense phase."""
    times = [
        record.timing["dense_seconds"] / record.epochs["dense"]
        for record in records
        if record.epochs.get("dense") and isinstance(record.timing.get("dense_seconds"), int | float)
    ]
    return sorted(times)[len(times) // 2] if times else None
