"""What `run` and `sweep` share: options of running, and from runs to records, tables and plots."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.analysis.comparison import compare
from benchmarks.commands.options import add_device, add_folders, choose_device, positive
from benchmarks.config import Cell
from benchmarks.machine.leases import process_age
from benchmarks.machine.paths import ROOT
from benchmarks.machine.processes import current_rank, local_device, process_group
from benchmarks.records.record import Record, read_records
from benchmarks.reporting import build as report
from benchmarks.reporting.comparison_table import notes, to_text
from benchmarks.reporting.study import title_of
from benchmarks.running.bench import Bench
from benchmarks.running.checkpoints import CheckpointStore
from benchmarks.running.console import ConsoleObserver, duration
from benchmarks.running.engines.contract import Engine
from benchmarks.running.engines.driver import Driver, SweepOutcome
from benchmarks.running.engines.local import InProcess, Processes
from benchmarks.running.engines.torchrun import TorchrunEngine, dismiss, follow
from benchmarks.running.estimate import Estimate, estimate
from benchmarks.running.stopping import INTERRUPT, Control, budget_seconds, on_signals
from benchmarks.running.survey import Survey, survey
from benchmarks.running.wandb_mirror import WandbSink

OK, FAILURE, INTERRUPTED = 0, 1, 130


def add_running(parser: argparse.ArgumentParser) -> None:
    """Say how runs are done."""
    add_folders(parser)
    add_device(parser)
    parser.add_argument(
        "--wandb",
        choices=("online", "offline", "disabled"),
        default="offline",
        help="mirror the runs in Weights & Biases (default: offline, into ./wandb, no account needed)",
    )
    parser.add_argument(
        "--no-graphs", action="store_true", help="take training steps one by one, not from a CUDA graph"
    )
    parser.add_argument("--retry-failed", action="store_true", help="do failed runs again (default: leave them)")
    parser.add_argument("--plan", action="store_true", help="say what would be run and how long; run nothing")
    parser.add_argument(
        "--budget-minutes",
        type=float,
        metavar="N",
        help="stop cleanly, at a checkpoint, before N minutes have passed since the start (default: no limit)",
    )
    parser.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="where runs are done (default: local)"
    )
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="runs at a time (default: 1)")
    parser.add_argument("--address", help="Ray: of a cluster to join, or auto (default: start one on this machine)")
    parser.add_argument(
        "--gpu-share", type=float, default=1.0, metavar="F", help="Ray: GPUs per run, may be a fraction (default: 1.0)"
    )


def run_all(options: argparse.Namespace, choose: Callable[[torch.device], Sequence[Cell]]) -> int:
    """Do what is missing of the chosen runs, then show tables and plots; return the exit code."""
    _check(options)
    device = local_device(choose_device(options))
    bench = Bench(device, options.results, CheckpointStore(options.checkpoints), tuning=ROOT / "results" / "tuning")
    bench = replace(bench, graphs=not options.no_graphs)
    with process_group(device) as rank:  # of several processes where torchrun started them
        if not rank.first:
            follow(bench)
            return OK
        code = _run(options, bench, choose(device))
        if rank.count > 1:
            dismiss()
        return code


def _check(options: argparse.Namespace) -> None:
    """Refuse what cannot be meant, whether or not there is anything to run."""
    if options.address and options.engine != "ray":
        raise ValueError("--address is of a Ray cluster; give --engine ray with it")
    if options.budget_minutes is not None:
        budget_seconds(options.budget_minutes, 0.0)


def _run(options: argparse.Namespace, bench: Bench, cells: Sequence[Cell]) -> int:
    console = Console()
    found = survey(bench, cells, retry_failed=options.retry_failed)
    for damaged in found.damaged:
        console.print(f"{damaged}; kept beside as record.json.damaged, the run is done again", markup=False)
    if options.plan:
        return _show_plan(bench, cells, found, console)
    outcome = _do(bench, found.todo, options, console) if found.todo else SweepOutcome()
    if not found.todo:
        line = f"all {len(cells)} runs are recorded under {options.results}/runs: nothing to run"
        console.print(line, highlight=False, soft_wrap=True)
    if outcome.stopped != INTERRUPT:
        show(console, options.results, cells)
    return _conclude(console, outcome, [*found.failed, *outcome.records, *outcome.elsewhere])


def _show_plan(bench: Bench, cells: Sequence[Cell], found: Survey, console: Console) -> int:
    expected = estimate(bench, found.todo)
    for name in dict.fromkeys((cell.experiment.name, cell.profile_name) for cell in cells):
        mine = [cell for cell in found.todo if (cell.experiment.name, cell.profile_name) == name]
        part = estimate(bench, mine, expected.whole)
        line = f"{name[0]} ({name[1]}): {len(mine)} runs, {part.epochs_left} epochs, {part.total / 60:.1f} minutes"
        console.print(line, highlight=False, soft_wrap=True)
        for method in dict.fromkeys(cell.method for cell in mine):
            console.print(f"  {method}: {sum(cell.method == method for cell in mine)} runs", highlight=False)
    console.print(
        f"plan: {len(found.todo)} of {len(cells)} runs to do, {expected.epochs_left} epochs, about "
        f"{expected.total / 60:.1f} minutes one after the other on {bench.device} (stages that runs share count once)",
        highlight=False,
        soft_wrap=True,
    )
    return OK


def _do(bench: Bench, todo: Sequence[Cell], options: argparse.Namespace, console: Console) -> SweepOutcome:
    expected = estimate(bench, todo)
    profiles = ", ".join(dict.fromkeys(f"{cell.experiment.name} ({cell.profile_name})" for cell in todo))
    console.print(
        f"{profiles}: {len(todo)} runs on {bench.device}, expected to take about "
        f"{duration(expected.total / min(options.jobs, len(todo)))} (from measured steps)",
        highlight=False,
        soft_wrap=True,
    )
    minutes = options.budget_minutes
    limit = None if minutes is None else budget_seconds(minutes, process_age())
    sink = WandbSink(options.wandb, Path("wandb"))
    try:
        with (
            on_signals() as asked,
            ConsoleObserver(console, len(todo), expected, parallel=options.jobs > 1) as observer,
        ):
            control = Control(limit, asked, expected.epochs)
            engine = _engine(bench, control, options, expected)
            return Driver(bench, engine, control, [observer, sink]).drive(todo)
    finally:
        sink.close()


def _engine(bench: Bench, control: Control, options: argparse.Namespace, expected: Estimate) -> Engine:
    if current_rank().count > 1:
        if options.engine != "local" or options.jobs > 1:
            raise ValueError("under torchrun all processes do one run together; leave --engine and --jobs away")
        return TorchrunEngine(bench, control, expected.epochs)
    if options.engine == "ray":
        from benchmarks.running.engines.ray import RayTasks

        threads = max(1, (options.threads or 1) // options.jobs)
        return RayTasks(
            bench,
            control,
            options.jobs,
            expected.epochs,
            address=options.address,
            gpu_share=options.gpu_share,
            threads=threads,
        )
    if options.jobs > 1:
        return Processes(bench, control, options.jobs, expected.epochs, device_named=bool(options.device))
    return InProcess(bench, control)


def _conclude(console: Console, outcome: SweepOutcome, records: Sequence[Record]) -> int:
    """Say what failed and what is left; return the exit code."""
    failed = [record for record in records if not record.complete]
    for record in failed:
        reason = (record.failure or {}).get("reason")
        line = f"failed: {record.experiment}/{record.run_id}: {reason}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if failed:
        console.print("failed runs are tried again with --retry-failed", highlight=False)
    if outcome.left:
        console.print(
            f"{outcome.stopped}: {len(outcome.left)} runs are left, what was trained of them is in the checkpoints; "
            "the same command goes on from there. Next: "
            + ", ".join(cell.label for cell in outcome.left[:3])
            + (", ..." if len(outcome.left) > 3 else ""),
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    if outcome.stopped == INTERRUPT:
        return INTERRUPTED
    return FAILURE if failed else OK


def show(console: Console, results: Path, cells: Sequence[Cell]) -> None:
    """Make the tables and plots of some experiments, and print the tables."""
    names = list(dict.fromkeys(cell.experiment.name for cell in cells))
    profiles = {(cell.experiment.name, cell.profile_name) for cell in cells}
    comparisons = [c for c in compare(read_records(results, names)) if (c.experiment, c.profile) in profiles]
    for comparison in comparisons:
        files = report.files_of(comparison, results)
        report.write(files)
        console.print(f"\n{title_of(comparison.experiment)}, profile {comparison.profile}", style="bold")
        console.print(to_text(comparison), markup=False, highlight=False, soft_wrap=True)
        console.print(notes(comparison), markup=False, highlight=False, style="dim")
        for kind, folder, suffix in (("table", "tables", "md"), ("plot", "figures", "png")):
            path = os.path.relpath(results / folder / f"{comparison.name}.{suffix}")
            console.print(f"{kind}: {path}", markup=False, highlight=False, soft_wrap=True)
