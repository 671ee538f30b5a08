"""From experiments to runs: which there are, which are done, and about how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch.nn import functional

from benchmarks.config import Cell, Experiment, check_shares
from benchmarks.datasets.splits import DataError, MissingDataError
from benchmarks.methods import find_method
from benchmarks.provenance import device_name
from benchmarks.records import Record, RecordError, check_beside, read_record, record_path
from benchmarks.runner import Bench, fresh_model, resolved_config, splits_of
from benchmarks.stages import Stage, stages_of, unique_stages
from benchmarks.strengths import choose_strength
from benchmarks.training import autocast

CALIBRATION_IMAGES = 64
FORWARD_SHARE = 1 / 3  # of the time of a training step, for an image that is only evaluated


def cells_of(
    experiment: Experiment,
    profile_name: str,
    *,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    macs_kept: Sequence[float] | None = None,
) -> list[Cell]:
    """Return the runs of an experiment, seed by seed, so that a sweep that is cut short has whole comparisons.

    Raises:
        ValueError: A method is unknown, or a target is not in (0, 1].
    """
    profile = experiment.profile(profile_name)
    for method in methods or profile.methods:
        find_method(method)
    check_shares(macs_kept or ())
    return [
        Cell(experiment, profile_name, method, seed, share)
        for seed in (seeds or profile.seeds)
        for method in (methods or profile.methods)
        for share in ((1.0,) if find_method(method).unpruned else macs_kept or profile.macs_kept)
    ]


@dataclass
class Survey:
    """What of a sweep is there already."""

    todo: list[Cell] = field(default_factory=list)
    complete: list[Record] = field(default_factory=list)
    failed: list[Record] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def survey(bench: Bench, cells: Sequence[Cell], *, retry_failed: bool = False) -> Survey:
    """Look which runs have a record already.

    A damaged record is kept beside as `record.json.damaged`, and its run is done again.

    Raises:
        RecordError: A record was made with another configuration; says what differs.
    """
    found = Survey()
    for cell in cells:
        path = record_path(bench.results, cell)
        if not path.is_file():
            found.todo.append(cell)
            continue
        try:
            record = read_record(path)
            check_beside(path, record)
        except RecordError as error:
            path.replace(path.with_name("record.json.damaged"))
            found.damaged.append(str(error))
            found.todo.append(cell)
            continue
        check_same_configuration(cell, record, str(path), bench)
        if record.complete:
            found.complete.append(record)
        elif retry_failed:
            found.todo.append(cell)
        else:
            found.failed.append(record)
    return found


def check_same_configuration(cell: Cell, record: Record, where: str, bench: Bench) -> None:
    """Make sure that a record was made with the values that its run has now.

    Raises:
        RecordError: It was not; says what differs.
    """
    method = find_method(cell.method)
    expected = flatten({**resolved_config(cell, method), "strength": choose_strength(bench.tuning, cell, method).value})
    found = flatten({**record.config, "strength": record.strength})
    different = [
        f"{name} is {expected.get(name)!r} now and was {found.get(name)!r}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]
    if different:
        raise RecordError(
            f"{where} was made with another configuration: {'; '.join(different)}. Move its folder away, or give "
            "another folder with --results."
        )


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under dotted names; tuples and lists are one thing."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def default_profile(experiment: Experiment, device: torch.device) -> str:
    """Return `paper` on a GPU where the experiment has it, else the experiment's first profile."""
    return "paper" if device.type == "cuda" and "paper" in experiment.profiles else next(iter(experiment.profiles))


def by_priority(cells: Sequence[Cell]) -> list[Cell]:
    """Return runs in the order in which `run --pending` takes them: experiments by priority, seed by seed in each."""
    return sorted(cells, key=lambda cell: cell.experiment.priority)


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
