"""Experiments without a file: crossings that were asked for on the command line, kept as JSON beside their records."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch

from benchmarks.config import Experiment, Phase, Profile
from benchmarks.datasets import DATASETS
from benchmarks.experiments import EXPERIMENTS, find_experiment
from benchmarks.machine.atomic_write import write_atomically
from benchmarks.methods.registry import METHODS, find_method
from benchmarks.models import input_shape
from benchmarks.running.cells import default_profile
from benchmarks.suggest import unknown_name

SCHEMA = "oicsr-experiment-1"

SHAPES = {"digits": (1, 8, 8), "cifar10": (3, 32, 32), "cifar100": (3, 32, 32)}

PRIORITY = 90  # after those that have a file

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class ExperimentError(ValueError):
    """A file of an experiment cannot be read, or a crossing is none."""


def make_experiments(options: argparse.Namespace, device: torch.device) -> list[Experiment]:
    """Return one experiment per network and data set.

    Args:
        options: What was asked for, as `benchmarks.commands.sweep` names it.
        device: Decides on the profile where none is named.

    Raises:
        ValueError: A name is unknown, or a network does not take the images of a data set.
    """
    for dataset in options.datasets:
        if dataset not in DATASETS:
            raise ValueError(unknown_name("data set", dataset, DATASETS))
    pairs = [(dataset, model) for dataset in options.datasets for model in options.models]
    for dataset, model in pairs:
        expected, found = input_shape(model), SHAPES.get(dataset)
        if found is not None and expected[0] != found[0]:
            raise ValueError(f"network {model!r} takes images of {expected}, data set {dataset!r} has {found}")
    return [_experiment(dataset, model, options, device) for dataset, model in pairs]


def _experiment(dataset: str, model: str, options: argparse.Namespace, device: torch.device) -> Experiment:
    template = find_experiment(options.template) if options.template else _template(dataset)
    name = options.profile or default_profile(template, device)
    return Experiment(
        name=f"sweep-{dataset}-{re.sub('[^A-Za-z0-9.-]+', '-', model)}",
        title=f"{dataset}, {model}",
        claim="Asked for on the command line; nothing was claimed beforehand.",
        model=model,
        dataset=dataset,
        profiles={name: _profile(template.profile(name), options)},
        priority=PRIORITY,
    )


def _template(dataset: str) -> Experiment:
    for experiment in EXPERIMENTS.values():
        if experiment.dataset == dataset:
            return experiment
    return find_experiment("cifar10-resnet56")


def _profile(profile: Profile, options: argparse.Namespace) -> Profile:
    methods = list(METHODS) if options.methods == ["all"] else options.methods
    for method in methods or ():
        find_method(method)
    changes: dict[str, Any] = {
        "methods": methods and tuple(methods),
        "macs_kept": options.macs_kept and tuple(options.macs_kept),
        "seeds": options.seeds and tuple(options.seeds),
        "train_images": options.train_images,
        "test_images": options.test_images,
    }
    if options.epochs:
        if len(options.epochs) != 3:
            raise ValueError(f"--epochs takes three numbers (dense, regularized, finetune), not {options.epochs}")
        for phase, epochs in zip(("dense", "regularized", "finetune"), options.epochs, strict=True):
            changes[phase] = replace(getattr(profile, phase), epochs=int(epochs))
    return replace(profile, **{name: value for name, value in changes.items() if value is not None})


def known_experiments(results: Path) -> list[str]:
    """Return the names of all experiments: those that have a file, then those kept in a results folder."""
    kept = sorted(path.stem for path in _folder(results).glob("*.json"))
    return [*EXPERIMENTS, *(name for name in kept if name not in EXPERIMENTS)]


def find_any(name: str, results: Path) -> Experiment:
    """Return an experiment that has a file, or one that is kept in a results folder.

    Raises:
        ValueError: There is none of that name, or its file is damaged.
    """
    if name not in EXPERIMENTS and name in known_experiments(results):
        return load_experiment(_folder(results) / f"{name}.json")
    return find_experiment(name)


def _folder(results: Path) -> Path:
    return results / "sweeps"


def save_experiment(experiment: Experiment, results: Path) -> None:
    """Keep an experiment in a results folder; one that is there already gets further methods, targets and seeds."""
    path = _folder(results) / f"{experiment.name}.json"
    if path.is_file():
        experiment = _united(load_experiment(path), experiment)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"schema": SCHEMA, **asdict(experiment)}, indent=1, ensure_ascii=False)
    write_atomically(path, (text + "\n").encode())


def _united(kept: Experiment, new: Experiment) -> Experiment:
    """Return the new experiment with what was asked for before, where all other values are the same."""
    profiles = {**kept.profiles, **new.profiles}
    axes = ("methods", "macs_kept", "seeds")
    for name in kept.profiles.keys() & new.profiles.keys():
        old, young = kept.profiles[name], new.profiles[name]
        if replace(old, **{axis: getattr(young, axis) for axis in axes}) == young:
            both: dict[str, Any] = {
                axis: tuple(dict.fromkeys([*getattr(old, axis), *getattr(young, axis)])) for axis in axes
            }
            profiles[name] = replace(young, **both)
    return replace(new, profiles=profiles)


def load_experiment(path: Path) -> Experiment:
    """Read a kept experiment; nothing in the file is executed.

    Raises:
        ExperimentError: It cannot be read, or is none; says why.
    """
    try:
        return parse_experiment(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ExperimentError(f"{path} is no readable experiment: {error}") from error


def parse_experiment(text: str, where: str) -> Experiment:
    """Read the text of an experiment.

    Raises:
        ExperimentError: It is none of this schema.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ExperimentError(f"{where} is no readable experiment: {error}") from error
    if not isinstance(data, dict) or data.pop("schema", None) != SCHEMA:
        raise ExperimentError(f"{where} is no experiment of schema {SCHEMA!r}")
    profiles = data.get("profiles")
    if not isinstance(profiles, dict) or not profiles:
        raise ExperimentError(f"{where} has no profiles")
    data["profiles"] = {name: _read_profile(values, f"{where}, profile {name!r}") for name, values in profiles.items()}
    experiment: Experiment = _build(Experiment, data, where)
    if not NAME.fullmatch(experiment.name):
        raise ExperimentError(
            f"{where}: the name is {experiment.name!r}; letters, digits, '.', '_' and '-' are allowed"
        )
    return experiment


def _read_profile(values: Any, where: str) -> Profile:
    if not isinstance(values, dict):
        raise ExperimentError(f"{where} is {str(values)[:40]!r}, which is no profile")
    phases = {}
    for phase in ("dense", "regularized", "finetune"):
        if not isinstance(values.get(phase), dict):
            raise ExperimentError(f"{where} has no phase {phase!r}")
        phases[phase] = _build(Phase, values[phase], f"{where}, phase {phase!r}")
    profile: Profile = _build(Profile, {**values, **phases}, where)
    return profile


def _build(kind: Any, values: Mapping[str, Any], where: str) -> Any:
    """Build a dataclass from plain values, each checked against the field's type."""
    hints = get_type_hints(kind)
    unknown = sorted(values.keys() - hints.keys())
    missing = sorted(f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING)
    missing = [name for name in missing if name not in values]
    if unknown or missing:
        raise ExperimentError(f"{where}: values missing {missing}, unknown {unknown}")
    try:
        return kind(**{name: _converted(value, hints[name]) for name, value in values.items()})
    except (TypeError, ValueError, OverflowError) as error:
        raise ExperimentError(f"{where}: {error}") from error


def _converted(value: Any, hint: Any) -> Any:
    """Return a JSON value as the type that a field asks for.

    Raises:
        TypeError: It is of another type.
    """
    origin, arguments = getattr(hint, "__origin__", None), get_args(hint)
    if origin is tuple and isinstance(value, list):
        return tuple(_converted(item, arguments[0]) for item in value)
    if origin is not tuple and origin is not None and isinstance(value, dict):  # Mapping
        return {name: _converted(item, arguments[1]) for name, item in value.items()}
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    plain = (hint, *arguments)  # a type, or one of several: int | None, Literal["cosine", "step"]
    if isinstance(hint, type) and isinstance(value, hint) and (hint is bool) == isinstance(value, bool):
        return value
    if any(value == option and isinstance(option, str) for option in plain):
        return value
    if any(isinstance(option, type) and isinstance(value, option) for option in arguments) and value is not True:
        return value
    raise TypeError(f"{str(value)[:40]!r} is no {hint}")


def source_name(experiment: Experiment) -> str:
    """Return the name that the file of an experiment should have."""
    return re.sub("[^a-z0-9]", "_", experiment.name.lower()) + ".py"


def experiment_source(experiment: Experiment) -> str:
    """Return the text of the file that makes an experiment permanent."""
    command = f"Command: `python -m benchmarks run {experiment.name}`. Claim: {experiment.claim}"
    header = f'"""{experiment.title}.\n\n{command}\n"""'
    lines = [header, "", "from benchmarks.config import Experiment, Phase, Profile", "", "EXPERIMENT = Experiment("]
    for field in fields(Experiment):
        value = getattr(experiment, field.name)
        if field.name == "profiles":
            lines += [
                "    profiles={",
                *(line for name in value for line in _profile_lines(name, value[name])),
                "    },",
            ]
        elif value != field.default:
            lines.append(f"    {field.name}={_literal(value)},")
    return "\n".join([*lines, ")", ""])


def _profile_lines(name: str, profile: Profile) -> list[str]:
    values = [f"            {text}," for text in _arguments(profile)]
    return [f"        {_literal(name)}: Profile(", *values, "        ),"]


def _arguments(values: Profile | Phase) -> Sequence[str]:
    """Return the arguments that differ from their defaults."""
    texts = []
    for field in fields(values):
        value = getattr(values, field.name)
        if value == field.default or (not value and field.name == "grids"):
            continue
        inner = f"Phase({', '.join(_arguments(value))})" if isinstance(value, Phase) else _literal(value)
        texts.append(f"{field.name}={inner}")
    return texts


def _literal(value: Any) -> str:
    """Return a value as Python source, texts in double quotes."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, tuple):
        return f"({', '.join(map(_literal, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
    return repr(value)
