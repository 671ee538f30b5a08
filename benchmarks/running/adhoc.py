"""Sweeps without an experiment file: combinations given on the command line, saved as JSON with their records."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.config import Experiment, Profile
from benchmarks.datasets import check_dataset
from benchmarks.datasets.contract import DataError
from benchmarks.datasets.image_folder import PREFIX, folder_and_size
from benchmarks.experiments import EXPERIMENTS, find_experiment
from benchmarks.machine.atomic_write import write_atomically
from benchmarks.machine.paths import inside
from benchmarks.machine.plain_files import read_plain
from benchmarks.methods.registry import find_method
from benchmarks.models import input_shape
from benchmarks.records.rows import PHASES
from benchmarks.running.bench import load_splits
from benchmarks.running.cells import default_profile
from benchmarks.running.survey import flatten
from benchmarks.suggest import unknown_name

SCHEMA = "oicsr-experiment-1"

# of the suite's own data sets, which may be missing; others are asked for theirs
SHAPES = {"digits": (1, 8, 8), "cifar10": (3, 32, 32), "cifar100": (3, 32, 32)}

SHOWN = 3  # problems that an error lists

USUAL_TEMPLATES = {
    "cifar10": "cifar10-resnet56",
    "cifar100": "cifar100-resnet56",
    "imagenet": "imagenet-resnet50",
}  # those whose settings suit most networks; the smallest ones without BatchNorm need lower rates

AXES = ("methods", "macs_kept", "seeds")

PRIORITY = 90  # after experiments with a file


class ExperimentError(ValueError):
    """The file of an ad-hoc experiment cannot be read."""


def make_experiments(options: argparse.Namespace, device: torch.device) -> list[Experiment]:
    """Return one experiment per network and data set.

    Args:
        options: The options of `benchmarks.commands.sweep`.
        device: Decides the profile if none is named.

    Raises:
        ValueError: A name is unknown, or a network does not accept the images of a data set, or that holds fewer than
            asked for.
    """
    for dataset in options.datasets:
        check_dataset(dataset)
    pairs = [(dataset, model) for dataset in options.datasets for model in options.models]
    experiments = [_experiment(dataset, model, options, device) for dataset, model in pairs]
    named: dict[str, tuple[str, str]] = {}
    for pair, experiment in zip(pairs, experiments, strict=True):
        other = named.setdefault(experiment.name, pair)
        if other != pair:
            both = " and ".join(f"{model} on {dataset}" for dataset, model in (other, pair))
            raise ValueError(f"{both} would both be called {experiment.name!r}: rename a folder, or sweep them apart")
    for (dataset, model), experiment in zip(pairs, experiments, strict=True):
        expected, found = input_shape(model), _shape(dataset, experiment)
        if found is not None and expected[0] != found[0]:
            raise ValueError(f"network {model!r} takes images of {expected}, data set {dataset!r} has {found}")
    return experiments


def _shape(dataset: str, experiment: Experiment) -> tuple[int, int, int] | None:
    """Return channels, height and width of the images of a data set; None where they cannot be read."""
    if dataset.startswith(PREFIX):
        size = folder_and_size(dataset)[1]
        return 3, size, size
    if dataset in SHAPES:  # a plan of these needs no data
        return SHAPES[dataset]
    (profile,) = experiment.profiles.values()
    try:
        return load_splits(dataset, profile.train_images, profile.validation_images, profile.test_images).shape
    except DataError:  # missing: said before the first run; damaged: its runs fail, and say so
        return None


def _experiment(dataset: str, model: str, options: argparse.Namespace, device: torch.device) -> Experiment:
    template = find_experiment(options.template) if options.template else _template(dataset, model)
    name = options.profile or default_profile(template, device)
    profile, label = template.profile(name), dataset
    if dataset.startswith(PREFIX):  # its number of images has nothing to do with the template's
        profile = replace(profile, train_images=None, validation_images=None, test_images=None)
        folder, size = folder_and_size(dataset)
        folder = folder.resolve()  # whoever continues the sweep may do so from elsewhere
        dataset, label = f"{PREFIX}{folder}@{size}", f"{PREFIX}{folder.name}@{size}"
    return Experiment(
        name=f"sweep-{_plain(label)}-{_plain(model)}",
        title=f"{label}, {model}",
        claim="Asked for on the command line; nothing was claimed beforehand.",
        model=model,
        dataset=dataset,
        profiles={name: _profile(profile, options)},
        priority=PRIORITY,
    )


def _plain(text: str) -> str:
    """Return a name in which characters that the name of an experiment cannot have are dashes."""
    return re.sub("[^A-Za-z0-9.-]+", "-", text)


def _template(dataset: str, model: str) -> Experiment:
    """Return the experiment whose settings a sweep takes: that of the same network and data, or else of a ResNet."""
    alike = [experiment for experiment in EXPERIMENTS.values() if experiment.dataset == dataset]
    same = [experiment for experiment in alike if experiment.model == model]
    usual = [experiment for experiment in alike if experiment.name == USUAL_TEMPLATES.get(dataset)]
    return next(iter([*same, *usual, *alike]), find_experiment(USUAL_TEMPLATES["cifar10"]))


def _profile(profile: Profile, options: argparse.Namespace) -> Profile:
    for method in options.methods or ():
        find_method(method)
    changes: dict[str, Any] = {
        "methods": options.methods and tuple(options.methods),
        "macs_kept": options.macs_kept and tuple(options.macs_kept),
        "seeds": options.seeds and tuple(options.seeds),
        "train_images": options.train_images,
        "test_images": options.test_images,
    }
    if options.epochs:
        if len(options.epochs) != 3:
            raise ValueError(f"--epochs takes three numbers (dense, regularized, finetune), not {options.epochs}")
        for phase, epochs in zip(PHASES, options.epochs, strict=True):
            changes[phase] = replace(getattr(profile, phase), epochs=int(epochs))
    return replace(profile, **{name: value for name, value in changes.items() if value is not None})


def known_experiments(results: Path) -> list[str]:
    """Return the names of all experiments: those with a file, then those saved in a results folder."""
    kept = sorted(path.stem for path in _folder(results).glob("*.json"))
    return [*EXPERIMENTS, *(name for name in kept if name not in EXPERIMENTS)]


def find_any(name: str, results: Path) -> Experiment:
    """Return an experiment with a file, or one saved in a results folder.

    Raises:
        ValueError: No experiment has that name, or its file is damaged.
    """
    if name not in EXPERIMENTS and name in known_experiments(results):
        path = _folder(results) / f"{name}.json"
        experiment = load_experiment(path)
        if experiment.name != name:
            raise ExperimentError(f"{path} holds an experiment called {experiment.name!r}; rename the file")
        return experiment
    return find_experiment(name)


def find_chosen(names: Sequence[str], profile: str | None, results: Path) -> list[Experiment]:
    """Return the experiments of some names, or all where none is named.

    Raises:
        ValueError: No experiment has a name; or none is named, and no experiment has the profile.
    """
    found = [find_any(name, results) for name in names or known_experiments(results)]
    profiles = list(dict.fromkeys(label for experiment in found for label in experiment.profiles))
    if profile and not names and profile not in profiles:
        raise ValueError(unknown_name("profile", profile, profiles))
    return found


def _folder(results: Path) -> Path:
    return results / "sweeps"


def save_experiment(experiment: Experiment, results: Path) -> Path:
    """Save an experiment in a results folder; an existing one gains the new profiles, methods, targets and seeds.

    Raises:
        ExperimentError: See `with_saved`; nothing is written.
    """
    path = inside(results, "sweeps", f"{experiment.name}.json")
    whole = with_saved(experiment, results)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"schema": SCHEMA, **asdict(whole)}, indent=1, ensure_ascii=False)
    write_atomically(path, (text + "\n").encode())
    return path


def with_saved(new: Experiment, results: Path) -> Experiment:
    """Return an experiment with the profiles, methods, targets and seeds that it was saved with in a results folder.

    Raises:
        ExperimentError: The saved one has another value elsewhere, or is damaged; the message says what to do.
    """
    path = inside(results, "sweeps", f"{new.name}.json")
    if not path.is_file():
        return new
    kept = load_experiment(path)
    try:
        check_adds_only(kept, new, "the new sweep")
    except ExperimentError as error:
        advice = f"Move {path} and its runs away, or give another folder with --results."
        raise ExperimentError(f"{error}. {advice}") from error
    return _united(kept, new)


def _united(kept: Experiment, new: Experiment) -> Experiment:
    """Return the new experiment, extended by the earlier one, whose other values are the same."""
    profiles = {**kept.profiles, **new.profiles}
    for name in kept.profiles.keys() & new.profiles.keys():
        old, young = kept.profiles[name], new.profiles[name]
        both: dict[str, Any] = {
            axis: tuple(dict.fromkeys([*getattr(old, axis), *getattr(young, axis)])) for axis in AXES
        }
        profiles[name] = replace(young, **both)
    return replace(new, profiles=profiles)


def check_adds_only(kept: Experiment, new: Experiment, where: str) -> None:
    """Refuse an experiment that differs from a known one in more than added profiles, methods, targets and seeds.

    Raises:
        ExperimentError: It does; the message says how.
    """
    for name in ("model", "dataset", "weights", "strengths_of"):
        if getattr(kept, name) != getattr(new, name):
            differs = f"{name} is {getattr(new, name)!r}, not {getattr(kept, name)!r}"
            raise ExperimentError(f"{where} is another experiment than the {kept.name!r} that is known: {differs}")
    for name in kept.profiles.keys() & new.profiles.keys():
        same = {axis: getattr(kept.profiles[name], axis) for axis in AXES}
        differs = _first_difference(kept.profiles[name], replace(new.profiles[name], **same))
        if differs:
            known = f"profile {name!r} has other values than that of the known {kept.name!r}"
            raise ExperimentError(f"{where}: {known}: {differs}")


def _first_difference(old: Profile, new: Profile) -> str:
    """Return the first value in which two profiles differ, in words; empty if they are the same."""
    before, after = flatten(asdict(old)), flatten(asdict(new))
    for name in dict.fromkeys([*after, *before]):
        if before.get(name) != after.get(name):
            return f"{name} is {after.get(name)!r}, not {before.get(name)!r}"
    return ""


def load_experiment(path: Path) -> Experiment:
    """Read a saved experiment; nothing in the file is executed.

    Raises:
        ExperimentError: It cannot be read, or is not an experiment; the message says why.
    """
    try:
        return parse_experiment(read_plain(path), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ExperimentError(f"{path} is not a readable experiment: {error}") from error


def parse_experiment(text: str, where: str) -> Experiment:
    """Read the text of an experiment.

    Raises:
        ExperimentError: It does not follow the schema; the message lists the first wrong values.
    """
    try:
        data = json.loads(text)
        json.dumps(data)  # JSON nested too deeply to be written is refused here, too
    except (ValueError, RecursionError) as error:
        raise ExperimentError(f"{where} is not a readable experiment: {error}") from error
    if not isinstance(data, dict) or data.pop("schema", None) != SCHEMA:
        raise ExperimentError(f"{where} is not an experiment of schema {SCHEMA!r}")
    experiment = _validated(data, where)
    if not experiment.profiles:
        raise ExperimentError(f"{where} has no profiles")
    return experiment


def _validated(data: dict[str, Any], where: str) -> Experiment:
    """Return the experiment that JSON values describe, each value checked against the type of its field."""
    from pydantic import TypeAdapter, ValidationError  # takes half a second, and only saved sweeps need it

    try:
        # as JSON, so that lists become tuples and nothing else is converted
        experiment: Experiment = TypeAdapter(Experiment).validate_json(json.dumps(data), strict=True, extra="forbid")
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc'])) or 'experiment'}: {_problem(e)}" for e in error.errors()]
        more = f" (and {len(problems) - SHOWN} more)" if len(problems) > SHOWN else ""
        raise ExperimentError(f"{where}: {'; '.join(problems[:SHOWN])}{more}") from error
    return experiment


def _problem(error: Mapping[str, Any]) -> str:
    """Return what is wrong with one value, quoting it if it is short enough to help."""
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] in ("missing", "value_error"):
        return message
    return f"{message}, not {str(error['input'])[:40]!r}"
