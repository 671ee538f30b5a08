"""`recalibration`: measure what the number and the augmentation of images do to recalibration."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace

import torch

from benchmarks.commands.options import add_choice, add_device, add_folders, choose_device, numbers
from benchmarks.config import PROTOCOL, Cell
from benchmarks.experiments import find_experiment
from benchmarks.machine.provenance import provenance
from benchmarks.records.recalibrations import Measured, write_recalibrations
from benchmarks.running.bench import Bench, bench_at, splits_of
from benchmarks.running.cells import cells_of, default_profile
from benchmarks.running.run import strength_of, validate_recalibrations

OK = 0

COUNTS = (128, 256, 512, 1024, 4096, 16384)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    add_choice(parser)
    add_folders(parser)
    add_device(parser)
    parser.add_argument(
        "--images",
        type=numbers("numbers of images such as 128,1024", int),
        metavar="LIST",
        default=COUNTS,
        help=f"numbers of images, rounded up to batches (default: {','.join(map(str, COUNTS))})",
    )
    parser.add_argument(
        "--trained-on",
        choices=("cpu", "cuda"),
        help="type of the device whose checkpoints are taken (default: that of --device)",
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        help="of the training whose checkpoints are taken (default: what the profile means on this machine)",
    )


def command(options: argparse.Namespace) -> int:
    """Measure on validation images: checkpoints are taken where there are any, and missing networks are trained."""
    if any(count < 1 for count in options.images):
        raise ValueError(f"--images is {options.images}; every number must be 1 or more")
    device = choose_device(options)
    bench = bench_at(device, options.results, options.checkpoints)
    for name in options.experiments:
        experiment = find_experiment(name)
        profile = options.profile or default_profile(experiment, device)
        if options.precision:
            values = replace(experiment.profile(profile), precision=options.precision)
            experiment = replace(experiment, profiles={**experiment.profiles, profile: values})
        cells = cells_of(experiment, profile, methods=options.methods, seeds=options.seeds, macs_kept=options.macs_kept)
        for cell in cells:  # written one by one: nothing done is lost
            _measure(bench, cell, options.images, options.trained_on or device.type)
    return OK


def _measure(bench: Bench, cell: Cell, counts: list[int], trained_on: str) -> None:
    row = validate_recalibrations(bench, cell, strength_of(bench, cell).value, sorted(counts), trained_on)
    device: torch.device = bench.device
    measured = Measured(
        cell.experiment.name,
        cell.profile_name,
        PROTOCOL,
        cell.profile.recalibration_images,
        (row,),
        provenance(device, splits_of(cell).checksum),
    )
    path = write_recalibrations(bench.results, measured)
    print(
        f"{cell.label}: pruned {100 * row.pruned:.2f}, recalibrated {100 * row.protocol:.2f} % of validation images; "
        f"{os.path.relpath(path)}",
        flush=True,
    )
