"""`run`: do the missing runs of experiments."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from benchmarks.commands.options import add_choice
from benchmarks.commands.running import add_running, run_all
from benchmarks.config import Cell
from benchmarks.running.adhoc import find_chosen
from benchmarks.running.cells import by_priority, cells_of, default_profile


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    add_choice(parser, nargs="*")
    parser.add_argument(
        "--pending",
        action="store_true",
        help="run experiments in order of priority instead of the order given; with no names, all of them",
    )
    add_running(parser)


def command(options: argparse.Namespace) -> int:
    """Do the missing runs of some experiments, then generate their tables and plots.

    Raises:
        ValueError: No experiment is named, and `--pending` is not given; or a name is unknown.
    """
    if not options.experiments and not options.pending:
        raise ValueError("name an experiment (`list` shows them), or use --pending for everything that is missing")
    return run_all(options, lambda device: _cells(options, device))


def _cells(options: argparse.Namespace, device: torch.device) -> Sequence[Cell]:
    cells: list[Cell] = []
    for experiment in find_chosen(options.experiments, options.profile, options.results):
        profile = options.profile or default_profile(experiment, device)
        if not options.experiments and profile not in experiment.profiles:
            continue
        cells += cells_of(
            experiment, profile, methods=options.methods, seeds=options.seeds, macs_kept=options.macs_kept
        )
    return by_priority(cells) if options.pending else cells
