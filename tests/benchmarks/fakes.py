"""Records that nobody trained, for what only reads them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks.config import PROTOCOL, Cell, Experiment
from benchmarks.methods.registry import find_method
from benchmarks.records.record import FAILED, STATES_OF, Record, write_record
from benchmarks.records.rows import EpochRow
from benchmarks.records.strengths import choose_strength
from benchmarks.running.adhoc import SCHEMA
from benchmarks.running.outcome import resolved_config
from tests.benchmarks.small import small_cell

NOWHERE = Path("there is no such folder")


def fake_record(cell: Cell | None = None, top1: float = 0.75, **changes: Any) -> Record:
    """Return a complete record of a cell, or a failed one where `failure` is given."""
    cell = cell or small_cell()
    method = find_method(cell.method)
    strength = choose_strength(NOWHERE, cell, method)
    macs = 1_000_000
    state = {"top1": top1, "loss": 0.5, "val_top1": top1, "params": 9000}
    sizes = {"dense": 1.0, "regularized": 1.0}
    shares = {name: sizes.get(name, cell.macs_kept) for name in STATES_OF[changes.get("protocol", PROTOCOL)]}
    states = {
        name: {**state, "macs": round(macs * share), "macs_with_norm_pool": round(1.1 * macs * share)}
        for name, share in shares.items()
    }
    phases = {"dense": cell.profile.dense, "regularized": cell.profile.regularized, "finetune": cell.profile.finetune}
    values: dict[str, Any] = {
        "run_id": cell.run_id,
        "experiment": cell.experiment.name,
        "profile": cell.profile_name,
        "method": cell.method,
        "title": method.title,
        "regularizer": method.regularizer.name,
        "importance": method.importance.name,
        "selection": method.selection.name,
        "strength": strength.value,
        "strength_source": strength.source,
        "seed": cell.seed,
        "macs_kept": cell.macs_kept,
        "status": FAILED if changes.get("failure") else "complete",
        "config": resolved_config(cell, method, "cpu"),
        "states": states,
        "widths": {f"layer{i}": [16, 8] for i in range(10)},
        "structure": {},
        "removals": [{"step": 0, "val_top1_before": top1, "val_top1_after": top1, "macs": macs}],
        "epochs": {name: phase.epochs for name, phase in phases.items()},
        "compute": {"dense": macs, "regularized": macs, "finetune": macs, "total": 3 * macs},
        "timing": {"dense_seconds": 10.0, "finished_unix": 1},
        "provenance": {"device_type": "cpu", "device": "a CPU"},
        "protocol": PROTOCOL,
    }
    return Record(**{**values, **changes})


SMALL_EPOCHS = {"dense": 1, "regularized": 1, "finetune": 1}  # of `small_cell`


def fake_history(epochs: Mapping[str, int] | None = None) -> list[EpochRow]:
    """Return as many rows of each phase as a record counts (default: as that of `small_cell` does)."""
    counts = SMALL_EPOCHS if epochs is None else epochs
    return [
        EpochRow(p, 0, n + 1, 0.1, 1.5, 0.0, 0.5, 1.5, 0.5, 1.0) for p, count in counts.items() for n in range(count)
    ]


def write_fakes(results: Path, cells: Iterator[Cell] | list[Cell]) -> int:
    """Write a record for each cell; return how many."""
    count = 0
    for count, cell in enumerate(cells, start=1):  # noqa: B007
        record = fake_record(cell, 0.5 + 0.01 * cell.seed)
        write_record(results, record, fake_history(record.epochs))
    return count


def experiment_text(experiment: Experiment) -> str:
    return json.dumps({"schema": SCHEMA, **asdict(experiment)})


def write_at_once(monkeypatch: pytest.MonkeyPatch, module: ModuleType, writers: Sequence[Callable[[], Path]]) -> Path:
    """Run two writers of a file, of which each waits for the other to have read it before it writes; return its path.

    Where the one holds the file, so that the other cannot have read it, the wait ends by itself.
    """
    meeting, write = threading.Barrier(len(writers)), vars(module)["write_atomically"]

    def meet(path: Path, content: bytes) -> None:
        with suppress(threading.BrokenBarrierError):
            meeting.wait(1.0)
        write(path, content)

    monkeypatch.setattr(module, "write_atomically", meet)
    with ThreadPoolExecutor(len(writers)) as pool:
        return [done.result() for done in [pool.submit(writer) for writer in writers]][-1]
