"""The outcome of a run: its progress so far, and the record made from it."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from baselines.method import Method
from benchmarks.config import PROTOCOL, Cell
from benchmarks.datasets.contract import DataError
from benchmarks.machine.precision import resolve_precision
from benchmarks.machine.provenance import provenance
from benchmarks.records.record import COMPLETE, FAILED, Record, stamped
from benchmarks.records.rows import ChannelRow, EpochRow
from benchmarks.records.strengths import Strength
from benchmarks.running.bench import Bench, splits_of
from oicsr import (
    Coupling,
    PruningPlan,
)


@dataclass
class Progress:
    """What a run has done so far, so that a failure can report how far it got."""

    states: dict[str, dict[str, Any]] = field(default_factory=dict)
    history: list[EpochRow] = field(default_factory=list)
    structure: dict[str, Any] = field(default_factory=dict)
    timing: dict[str, float] = field(default_factory=dict)
    widths: dict[str, list[int]] = field(default_factory=dict)
    channels: list[ChannelRow] = field(default_factory=list)
    removals: list[dict[str, Any]] = field(default_factory=list)
    compute: dict[str, int] = field(default_factory=dict)
    graphs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run: its record and the accompanying files."""

    record: Record
    history: Sequence[EpochRow]
    channels: Sequence[ChannelRow]


def outcome_of(
    bench: Bench,
    cell: Cell,
    method: Method,
    strength: Strength,
    progress: Progress,
    failure: dict[str, Any] | None,
) -> Outcome:
    first_seed = cell.seed == cell.profile.seeds[0]  # the channels of one seed are enough for a figure
    channels = progress.channels if first_seed else []
    record = stamped(_record(bench, cell, method, strength, progress, failure), progress.history, channels)
    return Outcome(record, progress.history, channels)


def widths(couplings: Sequence[Coupling], plan: PruningPlan) -> dict[str, list[int]]:
    """Return coupling name to its number of channels before and after."""
    return {c.name: [c.num_channels, len(plan.kept[c.name])] for c in couplings}


def describe_failure(error: Exception, progress: Progress) -> dict[str, Any]:
    return {
        "reason": str(error) or type(error).__name__,
        "kind": type(error).__name__,
        "last_good_epoch": last_good_epoch(progress),
        "traceback": "".join(traceback.format_exception(error)),
    }


def last_good_epoch(progress: Progress) -> str | None:
    last = progress.history[-1] if progress.history else None
    return f"{last.phase} {last.epoch}" if last else None


def _data_checksum(cell: Cell) -> str | None:
    try:
        return splits_of(cell).checksum
    except DataError:  # the run failed because of it
        return None


def _record(
    bench: Bench,
    cell: Cell,
    method: Method,
    strength: Strength,
    progress: Progress,
    failure: dict[str, Any] | None,
) -> Record:
    epochs: dict[str, int] = {}
    for row in progress.history:
        epochs[row.phase] = epochs.get(row.phase, 0) + 1
    return Record(
        run_id=cell.run_id,
        experiment=cell.experiment.name,
        profile=cell.profile_name,
        method=cell.method,
        title=method.title,
        regularizer=method.regularizer.name,
        importance=method.importance.name,
        selection=method.selection.name,
        strength=strength.value,
        strength_source=strength.source,
        seed=cell.seed,
        macs_kept=cell.macs_kept,
        status=FAILED if failure else COMPLETE,
        config=resolved_config(cell, method, bench.device.type),
        states=progress.states,
        widths=progress.widths,
        structure=progress.structure,
        removals=progress.removals,
        epochs=epochs,
        compute={**progress.compute, "total": sum(progress.compute.values())},
        timing={**progress.timing, "finished_unix": round(time.time())},
        provenance={**provenance(bench.device, _data_checksum(cell)), "training_steps": progress.graphs},
        failure=failure,
        protocol=PROTOCOL,
    )


def resolved_config(cell: Cell, method: Method, device_type: str) -> dict[str, Any]:
    """Return every value that a run on this machine depends on, besides method, strength, seed and target."""
    decay = method.regularizer.weight_decay
    return {
        "model": cell.experiment.model,
        "dataset": cell.experiment.dataset,
        **({"weights": cell.experiment.weights} if cell.experiment.weights else {}),
        **cell.profile.shared,
        "precision": resolve_precision(cell.profile.precision, device_type),
        "regularizer_weight_decay": cell.profile.regularized.weight_decay if decay is None else decay,
    }
