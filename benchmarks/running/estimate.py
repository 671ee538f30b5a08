"""About how long pending runs will take."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch.nn import functional

from benchmarks.config import Cell
from benchmarks.datasets.contract import DataError, MissingDataError
from benchmarks.machine.provenance import device_name
from benchmarks.methods.registry import find_method
from benchmarks.records.strengths import choose_strength
from benchmarks.running.bench import Bench, fresh_model, splits_of
from benchmarks.running.stages import Stage, stages_of, unique_stages
from benchmarks.training.loop import autocast

CALIBRATION_IMAGES = 64

FORWARD_SHARE = 1 / 3  # of the time of a training step, for an image that is only evaluated


@dataclass(frozen=True)
class Estimate:
    """How long runs will take.

    Attributes:
        seconds: By stage key, for what is left of the stages that are not finished.
        measuring: All evaluations of pruned networks.
        epochs: Seconds of one epoch by stage key.
        epochs_left: Epochs that are not trained yet.
        whole: Seconds of an epoch of the unpruned network by experiment and profile.
    """

    seconds: dict[str, float]
    measuring: float
    epochs: dict[str, float] = field(default_factory=dict)
    epochs_left: int = 0
    whole: Mapping[tuple[str, str], float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """Seconds of everything, one run after the other."""
        return sum(self.seconds.values()) + self.measuring


def pending_stages(bench: Bench, cells: Sequence[Cell]) -> list[tuple[Cell, Stage]]:
    """Return the stages that runs need, each once, with one of the runs that needs it."""
    pairs = []
    for cell in cells:
        method = find_method(cell.method)
        strength = choose_strength(bench.tuning, cell, method)
        pairs += [(cell, stage) for stage in stages_of(cell, method, strength.value, bench.device.type)]
    owner = {stage.key: cell for cell, stage in reversed(pairs)}
    return [(owner[stage.key], stage) for stage in unique_stages(stage for _, stage in pairs)]


def estimate(bench: Bench, cells: Sequence[Cell], whole: Mapping[tuple[str, str], float] | None = None) -> Estimate:
    """Estimate the time of runs: from epochs that this machine trained, else from a few measured training steps.

    Args:
        bench: Whose checkpoints and device are meant.
        cells: The runs.
        whole: Of an earlier estimate: what was measured then is not measured again.

    Raises:
        MissingDataError: A data set is nowhere (one that is damaged makes its runs fail, each by itself).
    """
    pending = pending_stages(bench, cells)
    known = {stage.key: bench.store.progress(stage.key) or {} for _, stage in pending}
    machine = device_name(bench.device)
    here = {key: progress for key, progress in known.items() if progress.get("machine") == machine}
    measured = {**full_epochs(pending, here), **(whole or {})}
    full: dict[tuple[str, str], float] = {}
    seconds, epochs, left = {}, {}, 0
    for cell, stage in pending:
        sweep = sweep_of(cell)
        if sweep not in full:
            full[sweep] = measured.get(sweep) or _calibrated(bench, cell)
        epochs[stage.key] = full[sweep] * stage.share
        missing = 0 if known[stage.key].get("finished") else stage.phase.epochs - epochs_done(known[stage.key])
        left += missing
        seconds[stage.key] = epochs[stage.key] * missing
    # (an experiment whose stages are all another one's has no measurement of its own, and little to evaluate)
    measuring = sum(full.get(sweep_of(cell), 0.0) * FORWARD_SHARE * cell.macs_kept for cell in cells)
    return Estimate(seconds, measuring, epochs, left, full)


def sweep_of(cell: Cell) -> tuple[str, str]:
    """Return experiment and profile of a run: what is estimated, and shown, as one."""
    return cell.experiment.name, cell.profile_name


def epochs_done(progress: Mapping[str, Any]) -> int:
    """Return the epochs of a stage that its checkpoint holds."""
    epoch = progress.get("epoch", 0)
    return epoch if isinstance(epoch, int) else 0


def full_epochs(
    stages: Iterable[tuple[Cell, Stage]], known: Mapping[str, Mapping[str, Any]]
) -> dict[tuple[str, str], float | None]:
    """Return the seconds of an epoch of the unpruned network by experiment and profile, where some was measured."""
    measured: dict[tuple[str, str], list[float]] = {}
    for cell, stage in stages:
        times = known.get(stage.key, {}).get("seconds", ())
        usable = [time for time in times if isinstance(time, int | float) and time > 0] if times else []
        measured.setdefault(sweep_of(cell), []).extend(time / stage.share for time in usable)
    return {sweep: median(times) if times else None for sweep, times in measured.items()}


def _calibrated(bench: Bench, cell: Cell) -> float:
    """Return the seconds of an epoch of the unpruned network, by measuring a few steps; 0 where data is damaged."""
    try:
        data = splits_of(cell)
    except MissingDataError:
        raise
    except DataError:
        return 0.0
    return seconds_per_image(bench, cell) * (len(data.train) + FORWARD_SHARE * len(data.validation))


def seconds_per_image(bench: Bench, cell: Cell) -> float:
    """Measure the seconds that a training step takes per image, on a copy of the network that is thrown away."""
    data = splits_of(cell)
    model = fresh_model(cell, data.num_classes, bench.device).train()
    images, labels = next(data.evaluation_batches("train", CALIBRATION_IMAGES, bench.device))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        with autocast(bench.device, cell.profile.precision):
            loss = functional.cross_entropy(model(images).float(), labels)
        loss.backward()
        if bench.device.type == "cuda":
            torch.cuda.synchronize(bench.device)
        times.append(time.perf_counter() - start)
    return min(times) / len(labels)
