"""Which strength a regulariser gets: from the committed tuning record, never from a literal in an experiment."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.config import Cell, Experiment, Profile, canonical
from benchmarks.machine.paths import PUBLISHED_TUNING, inside
from benchmarks.machine.plain_files import read_plain

if TYPE_CHECKING:
    from baselines.method import Method


SCHEMA = "oicsr-tuning-2"
SCHEMAS = ("oicsr-tuning-1", SCHEMA)  # the first one: accuracies before recalibration, as lists by strength

CRITERIA: Mapping[str, str] = {  # by the state that a search compares: how its record says so
    "recalibrated": "validation loss of the pruned and recalibrated network, mean over networks",
    "finetuned": "validation loss of the fine-tuned network, mean over networks",
}

WHEN: Mapping[str, str] = {"recalibrated": "before fine-tuning", "finetuned": "after fine-tuning"}  # that state is

Tries = dict[str, Mapping[str, Any]]
"""By strength: `{"loss": [...], "top1": [...]}`, one value per network; more for the best two, if tried again."""

TriesOf = Mapping[str, Tries]
"""By target."""

FIRST_TUNING_SEED = 1000  # networks of these seeds serve tuning; no comparison uses them

UNTUNED = "middle of the grid, not tuned"  # the source of a strength that no tuning record gives

AS_PUBLISHED = ", as published"  # in the source: the record is not one of the results folder

TUNED = "tuned on validation"  # how the source begins of one that was tuned for this training

OTHER_TRAINING = "tuned under other training"  # and of one whose experiment was changed after it was tuned

DENSE_DEPENDS_ON = ("model", "dataset", "weights", "dense", "batch_size", "train_images")
TRAINING = (*DENSE_DEPENDS_ON, "regularized")  # what a strength is tuned for, by name in a configuration

OF_NEAREST = "that of"  # how the source begins of one that was tuned for the nearest target of another experiment


class TuningError(ValueError):
    """A tuning record cannot be read."""


@dataclass(frozen=True)
class Strength:
    """A strength and where it comes from."""

    value: float
    source: str


def tuning_folder(results: Path) -> Path:
    """Return the folder of the tuning records in a results folder."""
    return results / "tuning"


def tuning_path(folder: Path, experiment: str, profile: str) -> Path:
    """Return the path of an experiment's tuning record."""
    return inside(folder, tuning_file(experiment, profile))


def tuning_file(experiment: str, profile: str) -> str:
    """Return the file name of an experiment's tuning record."""
    return f"{experiment}-{profile}.json"


def read_tuning(path: Path) -> dict[str, Any]:
    """Read a tuning record.

    Raises:
        TuningError: It cannot be read, or is not a tuning record.
    """
    return _parse(_text(path), path)


def _text(path: Path) -> str:
    try:
        return read_plain(path)
    except (OSError, ValueError) as error:
        raise TuningError(f"{path} is no readable tuning record: {error}. Restore it, or tune again.") from error


def _parse(text: str, path: Path) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TuningError(f"{path} is no readable tuning record: {error}. Restore it, or tune again.") from error
    if not isinstance(data, dict) or data.get("schema") not in SCHEMAS or not isinstance(data.get("chosen"), dict):
        raise TuningError(
            f"{path} is no tuning record of schema {' or '.join(map(repr, SCHEMAS))}. Restore it, or tune again."
        )
    if not isinstance(data.get("config") or {}, dict):
        raise TuningError(f"{path}: the config {str(data['config'])[:40]!r} is no table. Restore it, or tune again.")
    if {"experiment", "profile"} <= data.keys():
        named = f"{data['experiment']}-{data['profile']}.json"  # as `tuning_file` says
        if named != path.name:
            raise TuningError(f"{path} holds what belongs in {named[:200]!r}. Restore it, or tune again.")
    for method, chosen in data["chosen"].items():
        if not isinstance(chosen, dict) or not all(value is None or _is_strength(value) for value in chosen.values()):
            raise TuningError(f"{path}: the strengths of {method!r} are no numbers. Restore it, or tune again.")
        for target in chosen:
            _check_target(path, target)
    if not isinstance(seeds := data.get("seeds", []), list) or not all(type(seed) is int for seed in seeds):
        raise TuningError(f"{path}: the seeds {str(seeds)[:40]!r} are no list of integers. Restore it, or tune again.")
    data["scores"] = {
        method: _scores(path, method, targets) for method, targets in _items(path, data.get("scores", {}))
    }
    data["reason"] = {method: _reasons(path, method, given) for method, given in _items(path, data.get("reason", {}))}
    data["again"] = {method: _again(path, method, given) for method, given in _items(path, data.get("again", {}))}
    return data


def _reasons(path: Path, method: str, given: Any) -> dict[str, str]:
    """Return why each strength of a method was chosen, by target."""
    if not isinstance(given, dict) or not all(isinstance(reason, str) for reason in given.values()):
        raise TuningError(f"{path}: the reasons of {method!r} are no texts. Restore it, or tune again.")
    for target in given:
        _check_target(path, target)
    return given


def _again(path: Path, method: str, given: Any) -> dict[str, list[int]]:
    """Return the seeds of the further networks that the best two strengths of a method were tried on, by target."""
    for target, seeds in _items(path, given):
        _check_target(path, target)
        if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds):
            raise TuningError(f"{path}: the further seeds of {method!r} are no integers. Restore it, or tune again.")
    return dict(given)


def _scores(path: Path, method: str, targets: Any) -> dict[str, dict[str, Any]]:
    """Return the tries of a method by target and strength; those of the first schema as the present one has them."""
    found: dict[str, dict[str, Any]] = {}
    for target, tries in _items(path, targets):
        _check_target(path, target)
        found[target] = {
            strength: {"loss": [], "top1": values} if isinstance(values, list) else values
            for strength, values in _items(path, tries)
        }
        for values in found[target].values():
            lists = [values.get(name) for name in ("loss", "top1")] if isinstance(values, dict) else [None]
            if not all(isinstance(each, list) and all(map(_is_score, each)) for each in lists):
                raise TuningError(
                    f"{path}: the scores of {method!r} are no lists of numbers. Restore it, or tune again."
                )
    return found


def _items(path: Path, values: Any) -> list[tuple[str, Any]]:
    if not isinstance(values, dict):
        raise TuningError(f"{path} holds {str(values)[:40]!r} where a table belongs. Restore it, or tune again.")
    return list(values.items())


def _check_target(path: Path, target: str) -> None:
    """Refuse a target that is no share of the MACs."""
    try:
        known = 0 < float(target) <= 1
    except ValueError:
        known = False
    if not known:
        raise TuningError(f"{path}: the target {target[:40]!r} is no share of the MACs. Restore it, or tune again.")


def _is_score(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_strength(value: Any) -> bool:
    try:
        return _is_number(value) and 0 <= float(value) < math.inf
    except OverflowError:  # an integer of hundreds of digits
        return False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def search_state(tuning: Mapping[str, Any]) -> str:
    """Return the state that the search behind a tuning record compared."""
    return "finetuned" if tuning.get("criterion") == CRITERIA["finetuned"] else "recalibrated"


def grid_of(cell: Cell, method: Method) -> tuple[float, ...]:
    """Return the strengths that are tried for a method's regulariser."""
    if not method.has_strength:
        return (0.0,)
    own = method.regularizer
    scaled = tuple(float(f"{cell.profile.grid_scale * strength:.6g}") for strength in own.grid)
    return cell.profile.grids.get(own.name, scaled)


def tuned_under(experiment: Experiment, profile: Profile) -> str:
    """Return the name of the experiment whose tuning record gives the strengths."""
    return profile.strengths_of or experiment.strengths_of or experiment.name


def compared_seeds(seeds: Iterable[int]) -> list[int]:
    """Return those of some seeds whose networks serve comparisons, so that no strength may be chosen on them."""
    return [seed for seed in seeds if seed < FIRST_TUNING_SEED]


def seeds_tuned_on(folder: Path, experiment: str, profile: str) -> list[int]:
    """Return the seeds of an experiment's tuning record, or of the published one; empty where neither has any.

    Raises:
        TuningError: A record cannot be read.
    """
    paths = (tuning_path(place, experiment, profile) for place in (folder, PUBLISHED_TUNING))
    records = (read_tuning(path) for path in paths if path.exists())
    return next((record["seeds"] for record in records if record.get("seeds")), [])


def choose_strength(folder: Path, cell: Cell, method: Method) -> Strength:
    """Return the strength of a run: the one tuned for its method and target, else the middle of the grid.

    A combination such as `oicsr-gl+taylor` that was not tuned takes the strength that was tuned for the method of its
    regulariser's name: another importance for the same weights. Where no strength works at a target, the one of the
    nearest weaker target that has one is taken, and the source says so. Where the training of the experiment is no
    longer that of its tuning record, the source says what differs. Where the strengths are those of another
    experiment, which has other targets, the one of the nearest target is taken, and the source says so.

    Args:
        folder: Of the tuning records; a method that was not tuned there is looked for in the published ones.
        cell: The run.
        method: Its method.

    Raises:
        TuningError: There is a tuning record, but it cannot be read.
    """
    if not method.has_strength:
        return Strength(0.0, "none needed")
    tuned_as = tuned_under(cell.experiment, cell.profile)
    names = method.strength_of or cell.method, method.regularizer.name
    for name, (place, origin) in product(names, ((folder, ""), (PUBLISHED_TUNING, AS_PUBLISHED))):
        path = tuning_path(place, tuned_as, cell.profile_name)
        chosen = tuned_strengths(path).get(name, {})
        target = f"{cell.macs_kept:g}"
        if chosen and tuned_as != cell.experiment.name and target not in chosen:
            target = min(chosen, key=lambda text: abs(math.log(float(text) / cell.macs_kept)))
        if target not in chosen:
            continue
        weaker = sorted((float(text), value) for text, value in chosen.items() if value is not None)
        works = next(((share, value) for share, value in weaker if share >= float(target) - 1e-6), None)
        if works is None:
            break
        other = _other_training(cell, path) if tuned_as == cell.experiment.name else ""
        source = f"{other or TUNED}{_for(name, cell.method)}{origin} ({path.name})"
        if target != f"{cell.macs_kept:g}":
            source = f"{OF_NEAREST} {target}, the nearest target; {source}"
        if chosen[target] is None:
            source = f"no strength works at this target, that of {works[0]:g} is taken; {source}"
        return Strength(float(works[1]), source)
    grid = grid_of(cell, method)
    return Strength(grid[len(grid) // 2], UNTUNED)


def is_tuned_source(source: str) -> bool:
    """Return whether a strength of this source was tuned on validation data, for its target or the nearest one.

    The strength of a weaker target, taken where none works, is not.
    """
    return source.startswith((TUNED, "none needed", OF_NEAREST)) and OTHER_TRAINING not in source


def tuned_strengths(path: Path) -> dict[str, dict[str, float | None]]:
    """Return the strengths of a tuning record by method and target; none where there is no record.

    What was chosen on the networks of comparisons is not tuned: their results would be results of the choice too.
    """
    return _chosen(_text(path), path) if path.exists() else {}


@lru_cache(maxsize=64)  # `status` asks for every run; parsing 160 KB takes 7 ms
def _parsed(text: str, path: Path) -> Mapping[str, Any]:
    return _parse(text, path)


def _chosen(text: str, path: Path) -> dict[str, dict[str, float | None]]:
    record = _parsed(text, path)
    chosen: dict[str, dict[str, float | None]] = record["chosen"]
    further = [seed for targets in record["again"].values() for seeds in targets.values() for seed in seeds]
    return {} if compared_seeds([*record.get("seeds", ()), *further]) else chosen


def _other_training(cell: Cell, path: Path) -> str:
    """Return how the training that a tuning record was made with differs from a run's; empty if in nothing."""
    config = _parsed(_text(path), path).get("config")
    if not config:  # of the first schema
        return ""
    own = cell.experiment
    now = {"model": own.model, "dataset": own.dataset, "weights": own.weights, **cell.profile.shared}
    before, present = _by_name(config), _by_name(now)
    names = [name for name in {**before, **present} if canonical(before.get(name)) != canonical(present.get(name))]
    listed = "; ".join(f"{name} {before.get(name)}, not {present.get(name)}" for name in names)
    return f"{OTHER_TRAINING}: {listed};" if names else ""


def _by_name(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a configuration that a strength is tuned for, those of phases under dotted names."""
    values = {name: config.get(name) for name in TRAINING}
    tables = {name: value for name, value in values.items() if isinstance(value, dict)}
    inner = {f"{name}.{key}": value for name, table in tables.items() for key, value in table.items()}
    return {name: value for name, value in values.items() if name not in tables} | inner


def _for(name: str, method: str) -> str:
    return "" if name == method else f" for {name}"
