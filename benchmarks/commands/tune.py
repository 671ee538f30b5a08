"""`tune`: strengths, chosen on the validation split."""

from __future__ import annotations

import argparse
import os

from benchmarks.commands.options import add_choice, add_device, add_folders, choose_device
from benchmarks.config import Cell
from benchmarks.experiments import find_experiment
from benchmarks.records.strengths import read_tuning
from benchmarks.running.bench import Bench
from benchmarks.running.cells import cells_of, default_profile
from benchmarks.running.checkpoints import CheckpointStore
from benchmarks.running.stopping import Control, Stopped, on_signals
from benchmarks.running.tuning import TUNING_SEEDS, tune


def add_options(parser: argparse.ArgumentParser) -> None:
    """Say which runs' methods and targets are tuned."""
    add_choice(parser)
    add_folders(parser)
    add_device(parser)


def command(options: argparse.Namespace) -> int:
    """Search the strengths of some experiments."""
    device = choose_device(options)
    with on_signals() as asked:
        store = CheckpointStore(options.checkpoints)
        bench = Bench(device, options.results, store, tuning=options.results / "tuning", control=Control(asked=asked))
        try:
            for name in options.experiments:
                _tune(bench, name, options)
        except Stopped:
            print("interrupted; run the same command again to continue from the last epoch")
            return 130
    return 0


def _tune(bench: Bench, name: str, options: argparse.Namespace) -> None:
    experiment = find_experiment(name)
    profile = options.profile or default_profile(experiment, bench.device)
    cells = cells_of(experiment, profile, methods=options.methods, macs_kept=options.macs_kept)
    path = tune(bench, cells, options.seeds or TUNING_SEEDS, _tell_try)
    print(f"tuning record: {os.path.relpath(path)}")
    for method, chosen in read_tuning(path)["chosen"].items():
        print(f"  {method}: {', '.join(f'{value:g} at {target}' for target, value in chosen.items())}")


def _tell_try(cell: Cell, strength: float, top1: float | None) -> None:
    result = "diverged" if top1 is None else f"{100 * top1:.2f} %"
    print(f"{cell.label} strength {strength:g}: validation {result} before fine-tuning", flush=True)
