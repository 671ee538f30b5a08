"""`sweep`: any networks x data sets x methods x targets x seeds, without an experiment file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from benchmarks.commands.options import add_list, methods, names, numbers, positive, seeds, shares, word
from benchmarks.commands.running import add_running, run_all
from benchmarks.config import Cell
from benchmarks.datasets import FOLDER
from benchmarks.running.adhoc import make_experiments, save_experiment, with_saved
from benchmarks.running.bench import check_images
from benchmarks.running.cells import cells_of


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    listed = "comma-separated, as `list` shows them"
    add_list(parser, "--models", names, listed, required=True)
    add_list(parser, "--datasets", names, f"{listed}; {FOLDER} or {FOLDER}@SIZE for images in folders", required=True)
    add_list(parser, "--methods", methods, "comma-separated, or all (default: the template's)")
    add_list(parser, "--macs-kept", shares, "comma-separated shares in (0, 1] (default: the template's)")
    add_list(parser, "--seeds", seeds, "comma-separated, with ranges such as 0-2 (default: the template's)")
    parser.add_argument(
        "--template",
        metavar="EXPERIMENT",
        help="experiment whose profile gives all other values (default: the first one on the same data set)",
    )
    parser.add_argument("--profile", type=word, help="the template's profile (default: paper on a GPU, else the first)")
    parser.add_argument(
        "--epochs",
        type=numbers("three integers such as 100,50,30", int),
        metavar="D,R,F",
        help="epochs dense, regularized, finetune (default: the template's)",
    )
    usual = "(default: the template's; of a folder all)"
    parser.add_argument("--train-images", type=positive, metavar="N", help=f"training images used {usual}")
    parser.add_argument("--test-images", type=positive, metavar="N", help=f"test images used {usual}")
    add_running(parser)


def command(options: argparse.Namespace) -> int:
    """Run every combination; each pair of network and data set is saved as an experiment in the results folder.

    Raises:
        ValueError: A value cannot be used, or a sweep of the same name is saved with other values; nothing is saved.
    """
    return run_all(options, lambda device: _cells(options, device), lambda cells: _save(options, cells))


def _cells(options: argparse.Namespace, device: torch.device) -> Sequence[Cell]:
    cells: list[Cell] = []
    for experiment in make_experiments(options, device):
        with_saved(experiment, options.results)  # refuses other values, also where only a plan is asked for
        for profile in experiment.profiles:
            cells += cells_of(experiment, profile)
    return cells


def _save(options: argparse.Namespace, cells: Sequence[Cell]) -> None:
    """Save the experiments of runs, unless their data sets hold fewer images than they are to use."""
    firsts = {cell.experiment.name: cell for cell in reversed(cells)}
    for cell in firsts.values():
        check_images(cell)
    for cell in reversed(firsts.values()):
        path = save_experiment(cell.experiment, options.results)
        print(f"saved as {path}; `run` and `status` accept the name {cell.experiment.name}, and `report` includes it")
