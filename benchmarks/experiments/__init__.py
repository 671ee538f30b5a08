"""The experiments: every file in this folder defines `EXPERIMENT` and is found automatically."""

from __future__ import annotations

import importlib
import pkgutil

from benchmarks.config import Experiment
from benchmarks.suggest import unknown_name


def _discover() -> dict[str, Experiment]:
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    found = [module.EXPERIMENT for module in modules if hasattr(module, "EXPERIMENT")]
    return {experiment.name: experiment for experiment in found}


EXPERIMENTS: dict[str, Experiment] = _discover()


def find_experiment(name: str) -> Experiment:
    """Return an experiment by name.

    Raises:
        ValueError: No experiment has that name; the message suggests the nearest one.
    """
    if name not in EXPERIMENTS:
        raise ValueError(unknown_name("experiment", name, EXPERIMENTS))
    return EXPERIMENTS[name]
