"""Strength search: the same number of trials for every method, judged on validation images of several networks.

The search compares the loss of the pruned and recalibrated network at the target MACs, or of the fine-tuned one where
the profile says so: a continuous score that distinguishes strengths whose accuracies tie. The networks have seeds that
no comparison uses. Each search starts with the method's grid. While the best strength is at the edge of those tried,
the search continues beyond that edge; once the best one is inside, it tries between the best and the better of its
neighbours. All trials and the choice go into a record (`results/tuning/`) that experiments read their strengths from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.config import Cell
from benchmarks.datasets.contract import DataError
from benchmarks.machine.atomic_write import write_atomically
from benchmarks.machine.leases import only_writer
from benchmarks.machine.provenance import provenance
from benchmarks.methods.registry import find_method
from benchmarks.records.strengths import (
    CRITERIA,
    FIRST_TUNING_SEED,
    SCHEMA,
    Tries,
    TriesOf,
    TuningError,
    compared_seeds,
    grid_of,
    read_tuning,
    seeds_tuned_on,
    tuning_path,
)
from benchmarks.running.bench import Bench, data_checksum, splits_of
from benchmarks.running.outcome import resolved_config
from benchmarks.running.run import validate
from benchmarks.running.stopping import Stopped
from benchmarks.training.loop import DivergedError, Score, check_finite

TUNING_SEEDS = (FIRST_TUNING_SEED, FIRST_TUNING_SEED + 1)
CHANCE_DEVIATIONS = 3.0  # an accuracy within this many standard deviations of guessing is at chance level

Tell = Callable[[Cell, float, Score | None], None]
Ask = Callable[[float], Mapping[str, Any]]


def search(grid: Sequence[float], tries: int, ask: Ask) -> Tries:
    """Try strengths: first the middle of a grid, then around the best one.

    Args:
        grid: Strengths in ascending order, at a constant ratio.
        tries: Total number of strengths to try.
        ask: Returns the scores of a strength: `{"loss": [...], "top1": [...]}`, one value per network, None where
            training diverged.

    Returns:
        What `ask` returned, by strength as text.
    """
    first = list(grid) if len(grid) <= tries else _middle(grid, tries)
    found: Tries = {f"{strength:g}": ask(strength) for strength in first}
    ratio = _ratio(grid)
    while len(found) < tries:
        strength = next_strength(found, ratio)
        found[f"{strength:g}"] = ask(float(f"{strength:g}"))
    return found


def _ratio(grid: Sequence[float]) -> float:
    return grid[1] / grid[0] if len(grid) > 1 else 2.0


def _middle(grid: Sequence[float], count: int) -> list[float]:
    start = (len(grid) - count) // 2
    return list(grid[start : start + count])


def next_strength(tries: Tries, ratio: float) -> float:
    """Return the strength to try next: beyond the edge if the best one is there, else between it and a neighbour."""
    losses = mean_losses(tries)
    strengths = sorted(losses)
    best = strengths.index(min(strengths, key=lambda strength: (losses[strength], strength)))
    if best == 0:
        return strengths[0] / ratio
    if best == len(strengths) - 1:
        return strengths[-1] * ratio
    neighbours = sorted((strengths[best - 1], strengths[best + 1]), key=lambda strength: losses[strength])
    middles = [math.sqrt(strengths[best] * neighbour) for neighbour in neighbours]
    return next((middle for middle in middles if f"{middle:g}" not in tries), strengths[-1] * ratio)


def mean_losses(tries: Tries) -> dict[float, float]:
    """Return the mean loss over the networks by strength; infinite if training diverged on any of them."""
    return {
        float(text): math.inf if _diverged(found["loss"]) else float(np.mean(found["loss"]))
        for text, found in tries.items()
    }


def _diverged(losses: Iterable[float | None]) -> bool:
    return any(loss is None or not math.isfinite(loss) for loss in losses)


def choose(tries: Tries, num_classes: int, images: int) -> tuple[float | None, str]:
    """Choose a strength by the one-standard-error rule.

    Strengths whose loss exceeds the best one's by at most the standard error of that difference (over the same
    networks) tie with it. Among the contiguous tied strengths around the best, the one nearest to their geometric
    middle is chosen. With one network, only equal losses tie. Where some strengths were tried on more networks than
    others, the choice is between those.

    Args:
        tries: The scores of each strength.
        num_classes: Classes of the data set, which set the accuracy of guessing.
        images: Number of validation images behind each accuracy.

    Returns:
        The strength, and `"inside"` or `"edge"` for the position of the best one among those tried; None with
        `"chance"` if the best accuracy is no better than guessing, and with `"diverged"` if every strength diverged.
    """
    losses = mean_losses(on_most_networks(tries))
    strengths = sorted(losses)
    best = min(strengths, key=lambda strength: (losses[strength], strength))
    if math.isinf(losses[best]):
        return None, "diverged"
    top1 = float(np.mean(tries[f"{best:g}"]["top1"]))
    guess = 1 / num_classes
    if top1 <= guess + CHANCE_DEVIATIONS * math.sqrt(guess * (1 - guess) / images):
        return None, "chance"
    position = strengths.index(best)
    row = [best]
    for step in (-1, 1):
        at = position + step
        while 0 <= at < len(strengths) and _ties(tries, best, strengths[at]):
            row.append(strengths[at])
            at += step
    middle = (math.log(min(row)) + math.log(max(row))) / 2
    chosen = min(row, key=lambda strength: (round(abs(math.log(strength) - middle), 9), strength))
    tried = [float(text) for text in tries]
    return chosen, "edge" if best in (min(tried), max(tried)) else "inside"


def on_most_networks(tries: Tries) -> Tries:
    """Return the trials of the strengths that were tried on the most networks."""
    most = max(len(found["loss"]) for found in tries.values())
    return {text: found for text, found in tries.items() if len(found["loss"]) == most}


def best_two(tries: Tries) -> list[float]:
    """Return the two strengths with the lowest mean losses, in ascending order.

    Raises:
        ValueError: Training diverged with all strengths but one, or with all.
    """
    losses = mean_losses(on_most_networks(tries))
    trained = [strength for strength, loss in losses.items() if math.isfinite(loss)]
    if len(trained) < 2:
        raise ValueError(f"of the strengths {', '.join(tries)} fewer than two could be trained")
    return sorted(sorted(trained, key=lambda strength: (losses[strength], strength))[:2])


def _ties(tries: Tries, best: float, other: float) -> bool:
    losses = [tries[f"{strength:g}"]["loss"] for strength in (best, other)]
    if _diverged(losses[0]) or _diverged(losses[1]):
        return False
    difference = np.subtract(losses[1], losses[0])
    error = float(np.std(difference, ddof=1)) / math.sqrt(len(difference)) if len(difference) > 1 else 0.0
    return float(np.mean(difference)) <= error


@dataclass(frozen=True)
class Searched:
    """What the search of one method found, by target as text.

    Attributes:
        tries: The trials.
        failed: Why there are none, where the method cannot be run.
    """

    tries: Mapping[str, Tries]
    failed: Mapping[str, str]


def tune_method(bench: Bench, cells: Sequence[Cell], seeds: Sequence[int], tell: Tell) -> Searched:
    """Search the strengths of one method at all its targets.

    Args:
        bench: Where to train.
        cells: Runs of one method, one per target.
        seeds: Networks that are trained for it.
        tell: Called with cell, strength and validation score (None: training diverged) of each trial.

    Returns:
        What was found; of the finished targets where the control asked to stop, which the caller checks.

    Raises:
        DataError: The data are missing or damaged, for all methods alike.
        OSError: The machine has a problem (a full disk).
    """

    def find(cell: Cell) -> Tries:
        grid = grid_of(cell, find_method(cell.method))
        return search(grid, cell.profile.tries, partial(_ask, bench, cell, seeds, tell))

    return _each_target(bench, cells, find)


def try_again(bench: Bench, cells: Sequence[Cell], seeds: Sequence[int], recorded: TriesOf, tell: Tell) -> Searched:
    """Try the best two strengths of one method at all its targets again, on further networks.

    Args:
        bench: Where to train.
        cells: Runs of one method, one per target.
        seeds: Further networks.
        recorded: The trials so far, by target as text.
        tell: As for `tune_method`.

    Returns:
        All trials of each target, those so far included.

    Raises:
        DataError: The data are missing or damaged, for all methods alike.
        OSError: The machine has a problem (a full disk).
    """

    def find(cell: Cell) -> Tries:
        tries = dict(recorded[f"{cell.macs_kept:g}"])
        for strength in best_two(tries):
            before, now = tries[f"{strength:g}"], _ask(bench, cell, seeds, tell, strength)
            tries[f"{strength:g}"] = {name: [*before[name], *now[name]] for name in now}
        return tries

    return _each_target(bench, cells, find)


def _ask(bench: Bench, cell: Cell, seeds: Sequence[int], tell: Tell, strength: float) -> Mapping[str, Any]:
    scores = [_try(bench, replace(cell, seed=seed), strength, tell) for seed in seeds]
    return {
        "loss": [score and round(score.loss, 6) for score in scores],
        "top1": [score and round(score.top1, 6) for score in scores],
    }


def _each_target(bench: Bench, cells: Sequence[Cell], find: Callable[[Cell], Tries]) -> Searched:
    tries, failed = dict[str, Tries](), dict[str, str]()
    for cell in cells:
        target = f"{cell.macs_kept:g}"
        try:
            tries[target] = find(cell)
        except Stopped:
            break
        except (OSError, DataError):  # trouble of the machine or of all methods: the search resumes another time
            raise
        except Exception as error:  # a method may raise anything, and the others are none the worse for it
            failed[target] = f"{type(error).__name__}: {error}"
            if bench.device.type == "cuda":
                torch.cuda.empty_cache()  # memory that was too little here may suffice for the next target
    return Searched(tries, failed)


def _try(bench: Bench, cell: Cell, strength: float, tell: Tell) -> Score | None:
    try:
        score = check_finite(validate(bench, cell, strength), cell.label)
    except DivergedError:
        score = None
    tell(cell, strength, score)
    return score


def is_tuned(cell: Cell) -> bool:
    """Return whether a run's method has its own strength to choose."""
    method = find_method(cell.method)
    return method.has_strength and method.strength_of is None


def by_method(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    """Return the runs whose methods are tuned, one per target, by method."""
    pairs = {(cell.method, cell.macs_kept): cell for cell in cells if is_tuned(cell)}
    found: dict[str, list[Cell]] = {}
    for (method, _), cell in pairs.items():
        found.setdefault(method, []).append(cell)
    return found


def usual_seeds(folder: Path, experiment: str, profile: str) -> Sequence[int]:
    """Return the seeds to tune with where none are given: those of the methods that were tuned before."""
    return seeds_tuned_on(folder, experiment, profile) or TUNING_SEEDS


def with_tries(cell: Cell, tries: int | None, start: tuple[float, float] | None = None) -> Cell:
    """Return a run whose search takes another number of tries, or starts near a strength of another target.

    Args:
        cell: The run.
        tries: Number of strengths to try; None for the profile's.
        start: A share of the MACs, and the strength that was chosen there. A network that keeps more is expected to ask
            for less, so the first two tries are that strength and the next one of its grid's ratio, towards this
            target. None: the search starts with the method's grid.

    Raises:
        ValueError: There are fewer than three tries: the best one cannot lie inside.
    """
    profile, grids = cell.profile, dict(cell.profile.grids)
    if start is not None:
        method, (share, strength) = find_method(cell.method), start
        ratio = _ratio(grid_of(cell, method))
        other = strength / ratio if cell.macs_kept >= share else strength * ratio
        # the only grid: those of a profile have one length, and this search asks for this method's alone
        grids = {method.regularizer.name: tuple(sorted(float(f"{value:.6g}") for value in (strength, other)))}
    changed = replace(profile, tries=profile.tries if tries is None else tries, grids=grids)
    profiles = {**cell.experiment.profiles, cell.profile_name: changed}
    return replace(cell, experiment=replace(cell.experiment, profiles=profiles))


def check_joins(folder: Path, cell: Cell, seeds: Sequence[int], device_type: str) -> dict[str, Any]:
    """Return the tuning record that new trials of a run's experiment join; an empty one where there is none.

    Choices are compared over the same networks, by the same criterion, and after the same training on the same data.

    Raises:
        TuningError: The record is of other seeds, data, another criterion or another training, or cannot be read; or a
            seed is one of comparisons.
    """
    path = tuning_path(folder, cell.experiment.name, cell.profile_name)
    fresh = _empty_record(cell, seeds, device_type)
    if compared := compared_seeds(seeds):
        raise TuningError(
            f"seed {compared[0]} is one of comparisons, on whose networks no strength may be chosen: "
            f"tune with --seeds of {FIRST_TUNING_SEED} or more, and move {path} away if it was tuned with others."
        )
    if not path.is_file():
        return fresh
    record = read_tuning(path)
    before, now = _conditions(record), _conditions(fresh)
    data = _data(record)
    before["data_sha256"], now["data_sha256"] = data, (data_checksum(cell) if data else None) or data
    names = [name for name in {**now, **before} if before.get(name) != now.get(name)]
    if names:
        found = "; ".join(f"{name} {before.get(name)!r}, not {now.get(name)!r}" for name in names)
        raise TuningError(
            f"{path} has {found}: no new trials can join it. Tune under its conditions, name another folder with "
            "--results, or move the file away to begin again for all methods."
        )
    return record


def _conditions(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what all trials of a tuning record have in common, by name."""
    config = record.get("config")
    shared = {name: record.get(name) for name in ("schema", "criterion", "seeds")}
    return {**shared, **(config if isinstance(config, dict) else {})}


def _data(record: Mapping[str, Any]) -> Any:
    """Return the checksum of the data that a tuning record was made on; None where it does not say."""
    source = record.get("provenance")
    return source.get("data_sha256") if isinstance(source, dict) else None


def keep(bench: Bench, cells: Sequence[Cell], seeds: Sequence[int], found: TriesOf, again: Sequence[int] = ()) -> Path:
    """Write the trials of one method and the choice into the tuning record; return its path.

    Args:
        bench: Where they were made.
        cells: Runs of one method, one per target.
        seeds: Networks of all trials of the record.
        found: The trials by target.
        again: Further networks that the best two strengths were tried on, beside those that the record names.

    Raises:
        TuningError: See `check_joins`.
    """
    first = cells[0]
    path = tuning_path(bench.tuning, first.experiment.name, first.profile_name)
    data = splits_of(first)
    with only_writer(path):
        record = check_joins(bench.tuning, first, seeds, bench.device.type)
        for target, tries in found.items():
            strength, reason = choose(tries, data.num_classes, len(data.validation))
            for name, value in (("scores", tries), ("chosen", strength), ("reason", reason)):
                record[name].setdefault(first.method, {})[target] = value
            _note_again(record, first.method, target, again)
        before, now = record.get("provenance"), provenance(bench.device, data.checksum)
        if before and before != now:  # of the trials that others made, on another device perhaps
            record["earlier_provenance"] = [p for p in record.get("earlier_provenance", []) if p != before] + [before]
        record["provenance"] = now
        write_atomically(path, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())
    return path


def _note_again(record: Mapping[str, Any], method: str, target: str, seeds: Sequence[int]) -> None:
    """Write down which further networks the best two strengths were tried on; a new search begins with none."""
    noted = record["again"].setdefault(method, {})
    if seeds:
        noted.setdefault(target, []).extend(seeds)
    else:
        noted.pop(target, None)
    if not noted:
        del record["again"][method]


def _empty_record(cell: Cell, seeds: Sequence[int], device_type: str) -> dict[str, Any]:
    config = resolved_config(cell, find_method("none"), device_type)
    return {
        "schema": SCHEMA,
        "experiment": cell.experiment.name,
        "profile": cell.profile_name,
        "criterion": CRITERIA[cell.profile.search_state],
        "seeds": list(seeds),
        "config": json.loads(json.dumps(config)),  # as it is read back
        "scores": {},
        "chosen": {},
        "reason": {},
        "again": {},
    }
