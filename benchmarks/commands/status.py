"""`status`: show the progress of experiments."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence

import torch

from benchmarks.commands.options import add_choice, add_device, add_folders, choose_device
from benchmarks.config import Cell, Experiment
from benchmarks.escape import for_terminal
from benchmarks.records.record import runs_folder
from benchmarks.running.adhoc import find_chosen
from benchmarks.running.bench import bench_at
from benchmarks.running.cells import by_priority, cells_of, default_profile
from benchmarks.running.console import count_runs, duration
from benchmarks.running.status import DAMAGED, DONE, FAILED, MARKS, MISSING, OTHER, PARTIAL, SweepStatus, status_of

UNKNOWN = "time left unknown: no epoch measured on this machine yet"

LISTED = 20  # runs listed by name, per state


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    add_choice(parser, nargs="*")
    add_folders(parser)
    add_device(parser)
    parser.add_argument(
        "--all", action="store_true", help=f"list every run that is not done (default: {LISTED} per state)"
    )


def command(options: argparse.Namespace) -> int:
    """Print one matrix per experiment and profile."""
    device = choose_device(options)
    bench = bench_at(device, options.results, options.checkpoints)
    cells: list[Cell] = []
    for experiment in find_chosen(options.experiments, options.profile, options.results):
        for profile in _profiles(experiment, options, device):
            cells += cells_of(
                experiment, profile, methods=options.methods, seeds=options.seeds, macs_kept=options.macs_kept
            )
    found = status_of(bench, by_priority(cells))
    for (name, profile), sweep in found.items():
        print("\n".join(describe(f"{name} ({profile})", sweep, None if options.all else LISTED)) + "\n")
    marks = ", ".join(f"{mark} {state}" for state, mark in MARKS.items())
    print(f"{marks}; one mark per seed. Missing runs: python -m benchmarks run{_choice(options)}{_folders(options)}")
    return 0


def _choice(options: argparse.Namespace) -> str:
    """Return the names and filters as they were given; without any name, what runs everything that they leave."""
    names = options.experiments or ["--pending"]
    lists = {"--methods": options.methods, "--seeds": options.seeds, "--macs-kept": options.macs_kept}
    given = {"--profile": options.profile, **{name: ",".join(map(str, values or ())) for name, values in lists.items()}}
    filters = [word for name, value in given.items() if value for word in (name, value)]
    device = ["--device", options.device] if options.device else []
    return " " + shlex.join([*names, *filters, *device])


def _folders(options: argparse.Namespace) -> str:
    """Return the folder options as they were given, so that a hint can be copied and run."""
    given = {"--results": options.results, "--checkpoints": options.checkpoints}
    return "".join(f" {name} {shlex.quote(str(path))}" for name, path in given.items() if str(path) != name[2:])


def _profiles(experiment: Experiment, options: argparse.Namespace, device: torch.device) -> list[str]:
    """Return the named profile, or otherwise the default one and all that have records."""
    if options.profile:
        return [options.profile] if options.experiments or options.profile in experiment.profiles else []
    folder = runs_folder(options.results) / experiment.name
    default = default_profile(experiment, device)
    return [name for name in experiment.profiles if name == default or any(folder.glob(f"{name}-*"))]


def describe(title: str, sweep: SweepStatus, listed: int | None) -> list[str]:
    """Return the lines of one sweep: counts, the matrix of methods, targets and seeds, and runs that need attention."""
    states = [DONE, PARTIAL, FAILED, DAMAGED, OTHER, MISSING]
    shown = [state for state in states if sweep.count(state) or state not in (DAMAGED, OTHER)]
    counts = ", ".join(f"{sweep.count(state)} {state}" for state in shown)
    left = f"about {duration(sweep.seconds)} left" if sweep.seconds is not None else UNKNOWN
    lines = [f"{title}: {count_runs(len(sweep.cells))}: {counts}; {left}", *_matrix(sweep)]
    for state in (PARTIAL, FAILED, DAMAGED, OTHER, MISSING):
        cells = [cell for cell in sweep.cells if cell.state == state and (cell.detail or state != MISSING)]
        for item in cells[:listed]:
            progress = f" {100 * item.progress:.0f} %" if state == PARTIAL else ""
            lines.append(f"  {state}{progress}: {item.cell.run_id}: {for_terminal(item.detail)}")
        if listed is not None and len(cells) > listed:
            lines.append(f"  ... and {len(cells) - listed} more {state} (--all names them)")
    return lines


def _matrix(sweep: SweepStatus) -> list[str]:
    targets = sorted({item.cell.macs_kept for item in sweep.cells}, reverse=True)
    methods = list(dict.fromkeys(item.cell.method for item in sweep.cells))
    marks: dict[tuple[str, float], str] = {}
    for item in sweep.cells:  # seeds in their order
        key = item.cell.method, item.cell.macs_kept
        marks[key] = marks.get(key, "") + MARKS[item.state]
    heads = [f"{100 * target:g} %" for target in targets]
    widths = [
        max(len(head), *(len(marks.get((m, t), "")) for m in methods)) for head, t in zip(heads, targets, strict=True)
    ]
    first = max(len(method) for method in [*methods, "MACs kept"])
    return [
        _row("MACs kept", heads, first, widths),
        *(_row(method, [marks.get((method, target), "") for target in targets], first, widths) for method in methods),
    ]


def _row(head: str, cells: Sequence[str], first: int, widths: Sequence[int]) -> str:
    columns = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
    return "  ".join(["  " + head.ljust(first), *columns]).rstrip()
