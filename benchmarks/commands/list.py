"""`list`: show experiments, methods, networks and data sets."""

from __future__ import annotations

import argparse

from benchmarks.datasets import DATASETS, FOLDER
from benchmarks.experiments import EXPERIMENTS
from benchmarks.methods.registry import METHODS
from benchmarks.models import MODELS


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare no options."""


def command(options: argparse.Namespace) -> int:
    """Print experiments, methods, networks and data sets."""
    width = max(map(len, EXPERIMENTS))
    for experiment in sorted(EXPERIMENTS.values(), key=lambda experiment: experiment.priority):
        print(f"{experiment.name.ljust(width)} {experiment.title} (profiles: {', '.join(experiment.profiles)})")
    print(f"\nmethods: {', '.join(METHODS)}")
    print(f"\nnetworks: {', '.join(MODELS)}, torchvision:NAME, timm:NAME")
    print(f"\ndata sets: {', '.join(DATASETS)}, {FOLDER}")
    return 0
