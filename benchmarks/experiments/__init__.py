"""The experiments: every file in this folder defines `EXPERIMENT` and is found automatically."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable

from benchmarks.config import Experiment, ExperimentFileError
from benchmarks.suggest import unknown_name


def discover(package: str, path: Iterable[str]) -> dict[str, Experiment]:
    """Return the experiments of the modules in a package, by name.

    Raises:
        ExperimentFileError: A file defines an experiment that cannot be, or two files define one of the same name.
    """
    found: dict[str, Experiment] = {}
    files: dict[str, str] = {}
    for info in pkgutil.iter_modules(path):
        experiment = _defined_in(f"{package}.{info.name}")
        if experiment is None:  # a file of what several experiments share
            continue
        other = files.setdefault(experiment.name, f"{info.name}.py")
        if other != f"{info.name}.py":
            message = f"{other} and {info.name}.py both define the experiment {experiment.name!r}"
            raise ExperimentFileError(f"{message}; give one of them another name")
        found[experiment.name] = experiment
    return found


def _defined_in(module: str) -> Experiment | None:
    file = f"{module.rpartition('.')[2]}.py"
    try:
        experiment = getattr(importlib.import_module(module), "EXPERIMENT", None)
    except (ValueError, TypeError) as error:  # a wrong value, or a misspelt field
        raise ExperimentFileError(f"{file} defines no usable experiment: {error}") from error
    if experiment is not None and not isinstance(experiment, Experiment):
        raise ExperimentFileError(f"EXPERIMENT in {file} is {experiment!r}; it must be an Experiment")
    return experiment


EXPERIMENTS: dict[str, Experiment] = discover(__name__, __path__)


def find_experiment(name: str) -> Experiment:
    """Return an experiment by name.

    Raises:
        ValueError: No experiment has that name; the message suggests the nearest one.
    """
    if name not in EXPERIMENTS:
        raise ValueError(unknown_name("experiment", name, EXPERIMENTS))
    return EXPERIMENTS[name]
