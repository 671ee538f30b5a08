"""Status of experiments: each run done, partial, failed, damaged, other or missing, and the expected time left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.config import PROTOCOL, Cell
from benchmarks.methods.registry import find_method
from benchmarks.records.record import Record, RecordError, read_record, record_path
from benchmarks.records.strengths import choose_strength
from benchmarks.running.bench import Bench
from benchmarks.running.estimate import epochs_done, estimate, sweep_of
from benchmarks.running.stages import Stage, stages_of
from benchmarks.running.survey import check_same_configuration

DONE, PARTIAL, FAILED, DAMAGED, MISSING = "done", "partial", "failed", "damaged", "missing"
OTHER = "of another configuration"  # its record is intact, but was made with other values: `run` refuses it

MARKS = {DONE: "#", PARTIAL: "+", FAILED: "x", DAMAGED: "!", OTHER: "~", MISSING: "."}


@dataclass(frozen=True)
class CellStatus:
    """Status of one run.

    Attributes:
        cell: The run.
        state: One of `MARKS`.
        progress: Share of its epochs that are trained, in [0, 1].
        detail: Why it failed, what is wrong with its record or differs there, which older protocol that is of, or its
            current stage and epoch.
    """

    cell: Cell
    state: str
    progress: float
    detail: str = ""


@dataclass
class SweepStatus:
    """Status of one experiment in one profile.

    Attributes:
        cells: All its runs.
        seconds: Expected time left with runs in sequence; None if this machine has measured nothing.
    """

    cells: list[CellStatus] = field(default_factory=list)
    seconds: float | None = None

    def count(self, state: str) -> int:
        """Return how many runs are in a state."""
        return sum(cell.state == state for cell in self.cells)


def status_of(bench: Bench, cells: Sequence[Cell]) -> dict[tuple[str, str], SweepStatus]:
    """Return the status of runs, by experiment and profile. Reads records and checkpoints and changes nothing."""
    known: dict[str, dict[str, Any]] = {}
    found: dict[tuple[str, str], SweepStatus] = {}
    pending: list[Cell] = []
    records: list[Record] = []
    for cell in cells:
        sweep = found.setdefault(sweep_of(cell), SweepStatus())
        record, state, wrong = _record_of(bench, cell)
        if record is not None and record.complete and record.protocol == PROTOCOL:
            records.append(record)
            sweep.cells.append(CellStatus(cell, DONE, 1.0))
            continue
        if state == OTHER:  # nothing that `run` would do
            sweep.cells.append(CellStatus(cell, OTHER, 1.0, wrong))
            continue
        stages = _stages(bench, cell)
        for stage in stages:
            if stage.key not in known:
                known[stage.key] = bench.store.progress(stage.key) or {}
        pending.append(cell)
        sweep.cells.append(_unfinished(cell, stages, known, record, wrong))
    expected = estimate(bench, pending, records, calibrate=False).sweeps
    for name, sweep in found.items():
        sweep.seconds = expected[name].seconds if name in expected else 0.0
    return found


def _record_of(bench: Bench, cell: Cell) -> tuple[Record | None, str, str]:
    """Return the record of a run, if it can be used; otherwise what state it is in, and why."""
    path = record_path(bench.results, cell)
    if not path.is_file():
        return None, MISSING, ""
    try:
        record = read_record(path)
    except RecordError as error:
        return None, DAMAGED, str(error)
    try:
        if record.protocol == PROTOCOL:  # another one may well have had other values
            check_same_configuration(cell, record, str(path), bench)
    except RecordError as error:
        return None, OTHER, str(error)
    return record, DONE, ""


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
    if record is not None and record.protocol == PROTOCOL:
        return CellStatus(cell, FAILED, progress, record.failure_reason)
    # a finished dense network is shared by all methods of its seed: it alone makes no run partial
    older = "" if record is None else f"its record is of protocol {record.protocol}, {PROTOCOL} is current"
    if not any(done[1:]) and (not done[0] or known[stages[0].key].get("finished")):
        return CellStatus(cell, MISSING, progress, older)
    position = max(index for index, epochs in enumerate(done) if epochs)
    detail = f"{stages[position].name} {done[position]}/{stages[position].phase.epochs}"
    return CellStatus(cell, PARTIAL, progress, f"{detail}; {older}" if older else detail)
