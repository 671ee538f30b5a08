"""About how long pending runs will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch.nn import functional

from benchmarks.config import Cell
from benchmarks.datasets.contract import DataError, MissingDataError
from benchmarks.machine.precision import resolve_precision
from benchmarks.machine.provenance import device_name
from benchmarks.methods.registry import find_method
from benchmarks.records.record import Record
from benchmarks.records.strengths import choose_strength
from benchmarks.running.bench import Bench, fresh_model, splits_of
from benchmarks.running.stages import Stage, stages_of, unique_stages
from benchmarks.training.step import autocast

CALIBRATION_IMAGES = 64

FORWARD_SHARE = 1 / 3  # of the time of a training step, for an image that is only evaluated

Sweep = tuple[str, str]


@dataclass
class SweepEstimate:
    """Remaining work of one experiment in one profile; a stage that several sweeps share counts for the first.

    Attributes:
        seconds: Runs in sequence; None if the time of an epoch is unknown.
        epochs: Epochs still to train.
    """

    seconds: float | None = 0.0
    epochs: int = 0


@dataclass(frozen=True)
class Estimate:
    """How long runs will take.

    Attributes:
        seconds: By stage key, for the rest of each unfinished stage.
        epochs: Seconds of one epoch by stage key.
        sweeps: By experiment and profile.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    epochs: dict[str, float] = field(default_factory=dict)
    sweeps: dict[Sweep, SweepEstimate] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """Total seconds with runs in sequence, as far as known."""
        return sum(sweep.seconds or 0.0 for sweep in self.sweeps.values())

    @property
    def epochs_left(self) -> int:
        """Epochs still to train."""
        return sum(sweep.epochs for sweep in self.sweeps.values())


def _silent(line: str) -> None:
    """Say nothing."""


def estimate(
    bench: Bench,
    cells: Sequence[Cell],
    records: Iterable[Record] = (),
    *,
    calibrate: bool = True,
    tell: Callable[[str], None] = _silent,
) -> Estimate:
    """Estimate the time of runs from epochs that this machine trained (checkpoints, else records) or from steps.

    Args:
        bench: Gives checkpoints and device.
        cells: The runs that have no record yet.
        records: Records of finished runs; those of this device show how long an epoch takes.
        calibrate: Measure a few training steps if no epoch was measured; otherwise that time stays unknown.
        tell: Called with what is being measured, which takes a while for large networks.

    Raises:
        MissingDataError: A data set is missing (a damaged one only fails its own runs).
    """
    pending = _pending_stages(bench, cells)
    known = {stage.key: bench.store.progress(stage.key) or {} for _, stage in pending}
    measured = {**_from_records(records, bench), **_from_checkpoints(pending, known, bench)}
    for cell, _ in pending:
        if calibrate and sweep_of(cell) not in measured:
            tell(f"measuring a few training steps of {cell.experiment.name} ({cell.profile_name})")
            measured[sweep_of(cell)] = _calibrated(bench, cell)
    result = Estimate(sweeps={sweep_of(cell): SweepEstimate() for cell in cells})
    for cell, stage in pending:
        sweep, full = result.sweeps[sweep_of(cell)], measured.get(sweep_of(cell))
        left = 0 if known[stage.key].get("finished") else stage.phase.epochs - epochs_done(known[stage.key])
        sweep.epochs += left
        if full is None or sweep.seconds is None:
            sweep.seconds = None
            continue
        result.epochs[stage.key] = full * stage.share
        result.seconds[stage.key] = full * stage.share * left
        sweep.seconds += result.seconds[stage.key]
    _add_evaluations(result, cells, measured)
    return result


def _add_evaluations(result: Estimate, cells: Sequence[Cell], measured: Mapping[Sweep, float]) -> None:
    """Add the evaluation of each pruned network."""
    for cell in cells:
        sweep = result.sweeps[sweep_of(cell)]
        if sweep.seconds is not None:  # a sweep that shares all its stages was not measured; little is left to evaluate
            sweep.seconds += measured.get(sweep_of(cell), 0.0) * FORWARD_SHARE * cell.macs_kept


def _pending_stages(bench: Bench, cells: Sequence[Cell]) -> list[tuple[Cell, Stage]]:
    """Return the stages that runs need, each once, with the first run that needs it."""
    pairs = []
    for cell in cells:
        method = find_method(cell.method)
        strength = choose_strength(bench.tuning, cell, method)
        pairs += [(cell, stage) for stage in stages_of(cell, method, strength.value, bench.device.type)]
    owner = {stage.key: cell for cell, stage in reversed(pairs)}
    return [(owner[stage.key], stage) for stage in unique_stages(stage for _, stage in pairs)]


def sweep_of(cell: Cell) -> Sweep:
    """Return experiment and profile of a run, the unit of estimates and display."""
    return cell.experiment.name, cell.profile_name


def epochs_done(progress: Mapping[str, Any]) -> int:
    """Return the epochs of a stage that its checkpoint holds."""
    epoch = progress.get("epoch", 0)
    return epoch if isinstance(epoch, int) else 0


def _from_checkpoints(
    stages: Iterable[tuple[Cell, Stage]], known: Mapping[str, Mapping[str, Any]], bench: Bench
) -> dict[Sweep, float]:
    """Return the seconds per epoch of the unpruned network, if this machine trained any."""
    machine = device_name(bench.device)
    measured: dict[Sweep, list[float]] = {}
    for cell, stage in stages:
        progress = known[stage.key]
        times = (progress.get("seconds") or ()) if progress.get("machine") == machine else ()
        usable = [time for time in times if isinstance(time, int | float) and time > 0]
        measured.setdefault(sweep_of(cell), []).extend(time / stage.share for time in usable)
    return {sweep: median(times) for sweep, times in measured.items() if times}


def _from_records(records: Iterable[Record], bench: Bench) -> dict[Sweep, float]:
    """Return the seconds per epoch of the unpruned network, from the dense phase of this device's records."""
    machine = device_name(bench.device)
    measured: dict[Sweep, list[float]] = {}
    for record in records:
        seconds, epochs = record.timing.get("dense_seconds"), record.epochs.get("dense")
        if record.provenance.get("device") == machine and seconds and epochs:
            measured.setdefault((record.experiment, record.profile), []).append(seconds / epochs)
    return {sweep: median(times) for sweep, times in measured.items()}


def _calibrated(bench: Bench, cell: Cell) -> float:
    """Return the seconds per epoch of the unpruned network, from a few measured steps; 0 if the data is damaged."""
    try:
        data = splits_of(cell)
    except MissingDataError:
        raise
    except DataError:
        return 0.0
    return _seconds_per_image(bench, cell) * (len(data.train) + FORWARD_SHARE * len(data.validation))


def _seconds_per_image(bench: Bench, cell: Cell) -> float:
    """Measure the seconds that a training step takes per image, on a throwaway copy of the network."""
    data = splits_of(cell)
    model = fresh_model(cell, data.num_classes, bench.device).train()
    images, labels = next(data.evaluation_batches("train", CALIBRATION_IMAGES, bench.device))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        with autocast(bench.device, resolve_precision(cell.profile.precision, bench.device.type)):
            loss = functional.cross_entropy(model(images).float(), labels)
        loss.backward()
        if bench.device.type == "cuda":
            torch.cuda.synchronize(bench.device)
        times.append(time.perf_counter() - start)
    return min(times) / len(labels)
