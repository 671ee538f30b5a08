"""From experiments to runs: which there are, which are done, and about how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional

from benchmarks.config import Cell, Experiment
from benchmarks.methods import find_method
from benchmarks.records import Record, RecordError, read_record, record_path
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
    for share in macs_kept or ():
        if not 0 < share <= 1:
            raise ValueError(f"macs_kept is {share!r}; it is the share of MACs that remains and must be in (0, 1]")
    return [
        Cell(experiment, profile_name, method, seed, share)
        for seed in (seeds or profile.seeds)
        for method in (methods or profile.methods)
        for share in (macs_kept or profile.macs_kept)
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
        except RecordError as error:
            path.rename(path.with_name("record.json.damaged"))
            found.damaged.append(str(error))
            found.todo.append(cell)
            continue
        _check_same_configuration(cell, record, str(path), bench)
        if record.complete:
            found.complete.append(record)
        elif retry_failed:
            found.todo.append(cell)
        else:
            found.failed.append(record)
    return found


def _check_same_configuration(cell: Cell, record: Record, where: str, bench: Bench) -> None:
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


@dataclass(frozen=True)
class Estimate:
    """How long runs will take.

    Attributes:
        seconds: By stage key, for the stages that are not finished.
        measuring: All evaluations of pruned networks.
    """

    seconds: dict[str, float]
    measuring: float

    @property
    def total(self) -> float:
        """Seconds of everything."""
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


def estimate(bench: Bench, cells: Sequence[Cell]) -> Estimate:
    """Estimate the time of runs from a few measured training steps of each network on this device."""
    pace: dict[tuple[str, str], float] = {}
    seconds: dict[str, float] = {}
    for cell, stage in pending_stages(bench, cells):
        name = (cell.experiment.name, cell.profile_name)
        if name not in pace:
            pace[name] = seconds_per_image(bench, cell)
        data, state = splits_of(cell), bench.store.load(stage.key)
        done = state["epoch"] if state else 0
        evaluated = FORWARD_SHARE * (len(data.validation) * (stage.phase.epochs - done) + len(data.test))
        finished = state is not None and "scores" in state
        images = 0.0 if finished else len(data.train) * (stage.phase.epochs - done) + evaluated
        seconds[stage.key] = pace[name] * images * stage.share
    measuring = sum(
        pace[cell.experiment.name, cell.profile_name] * FORWARD_SHARE * cell.macs_kept * len(splits_of(cell).test)
        for cell in cells
    )
    return Estimate(seconds, measuring)


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
