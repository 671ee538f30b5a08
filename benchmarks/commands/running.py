"""What `run` and `sweep` share: their options, and the way from runs to records, tables and plots."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.analysis.comparison import compare
from benchmarks.commands.options import (
    add_budget,
    add_device,
    add_folders,
    add_graphs,
    add_jobs,
    choose_device,
    choose_graphs,
    gpu_share,
    names,
    results_option,
)
from benchmarks.config import Cell, Profile
from benchmarks.datasets.contract import MissingDataError
from benchmarks.escape import for_terminal
from benchmarks.experiments import EXPERIMENTS
from benchmarks.machine.leases import process_age
from benchmarks.machine.processes import current_rank, local_device, process_group
from benchmarks.methods.registry import find_method
from benchmarks.records.record import Record
from benchmarks.records.strengths import UNTUNED, choose_strength, tuned_under
from benchmarks.reporting import build as report
from benchmarks.reporting.comparison_table import TEXT_NOTES, notes, to_text
from benchmarks.reporting.gathered import gather
from benchmarks.reporting.study import title_of
from benchmarks.running.bench import Bench, bench_at, check_network, splits_of
from benchmarks.running.console import ConsoleObserver, count_runs, duration
from benchmarks.running.engines.contract import Engine
from benchmarks.running.engines.driver import Driver, SweepOutcome
from benchmarks.running.engines.local import InProcess, Processes
from benchmarks.running.engines.torchrun import TorchrunEngine, dismiss, follow
from benchmarks.running.estimate import Estimate, Sweep, SweepEstimate, estimate, sweep_of
from benchmarks.running.reach import cell_out_of_reach
from benchmarks.running.side_by_side import choose_jobs
from benchmarks.running.stopping import INTERRUPT, Control, budget_seconds, on_signals
from benchmarks.running.survey import Survey, survey
from benchmarks.running.trackers import NAMES, check_trackers, open_trackers
from oicsr import OutOfReachError

OK, FAILURE, INTERRUPTED = 0, 1, 130

LONG = 3600.0  # seconds of training above which the user is warned

ALL_IMAGES = 50_000  # of a data set that a profile uses in full; only to compare profiles with each other


def add_running(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how runs are done."""
    add_folders(parser)
    add_device(parser)
    parser.add_argument(
        "--wandb",
        choices=("online", "offline", "disabled"),
        default="offline",
        help="mirror the runs in Weights & Biases (default: offline, into ./wandb, no account needed)",
    )
    text = f"comma-separated, of {', '.join(NAMES)}, or none (default: wandb); tensorboard/ and tracks/ hold files"
    parser.add_argument("--trackers", type=names, metavar="LIST", default=["wandb"], help=text)
    add_graphs(parser)
    parser.add_argument("--retry-failed", action="store_true", help="run failed runs again (default: leave them)")
    parser.add_argument("--plan", action="store_true", help="show what would run and for how long, and run nothing")
    add_budget(parser)
    parser.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="where runs are done (default: local)"
    )
    add_jobs(parser, "runs")
    parser.add_argument("--address", help="Ray: of a cluster to join, or auto (default: start one on this machine)")
    parser.add_argument(
        "--gpu-share",
        type=gpu_share,
        default=1.0,
        metavar="F",
        help="Ray: GPUs per run, may be a fraction (default: 1.0)",
    )


def keep_nothing(cells: Sequence[Cell]) -> None:
    """Do nothing before the first run."""


def run_all(
    options: argparse.Namespace,
    choose: Callable[[torch.device], Sequence[Cell]],
    keep: Callable[[Sequence[Cell]], None] = keep_nothing,
) -> int:
    """Do the chosen runs that are missing, then show tables and plots; return the exit code.

    Args:
        options: The options of the command.
        choose: Returns the runs, for a device.
        keep: Called with them before the first one, once they are known to agree with the records; not for a plan.
    """
    _check(options)
    device = local_device(choose_device(options))
    bench = bench_at(device, options.results, options.checkpoints, graphs=choose_graphs(options, device))
    with process_group(device) as rank:  # of several processes where torchrun started them
        if not rank.first:
            follow(bench)
            return OK
        code = _run(options, bench, choose(device), keep)
        if rank.count > 1:
            dismiss()
        return code


def _check(options: argparse.Namespace) -> None:
    """Refuse contradictory options, whether or not there is anything to run."""
    if options.address and options.engine != "ray":
        raise ValueError("--address names a Ray cluster; add --engine ray")
    check_trackers(options.trackers)
    if options.budget_minutes is not None:
        budget_seconds(options.budget_minutes, 0.0)


def _run(
    options: argparse.Namespace, bench: Bench, cells: Sequence[Cell], keep: Callable[[Sequence[Cell]], None]
) -> int:
    console = Console()
    found = survey(bench, cells, retry_failed=options.retry_failed, look_only=options.plan)
    for damaged in found.damaged:
        line = f"{for_terminal(damaged)}; the run is done again"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if found.outdated:
        many = len(found.outdated)
        runs = f"{many} recorded run{'' if many == 1 else 's'}"
        console.print(f"{runs} of an older protocol: done again, and kept beside", highlight=False, soft_wrap=True)
    for cell in {cell.experiment.name: cell for cell in found.todo}.values():
        check_network(cell)
    if options.plan:
        return _show_plan(bench, cells, found, console)
    keep(cells)
    outcome = _do(bench, found, options, console) if found.todo else SweepOutcome()
    if not found.todo:
        all_runs = "the run is" if len(cells) == 1 else f"all {len(cells)} runs are"
        line = f"{all_runs} recorded under {options.results}/runs: nothing to run"
        console.print(line, highlight=False, soft_wrap=True)
    left_out = show(console, options.results, cells) if outcome.stopped != INTERRUPT else []
    code = _conclude(console, outcome, [*found.failed, *outcome.records, *outcome.elsewhere])
    return FAILURE if left_out and code == OK else code


def _show_plan(bench: Bench, cells: Sequence[Cell], found: Survey, console: Console) -> int:
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    try:
        expected = estimate(bench, found.todo, found.complete, tell=say)
    except MissingDataError as error:  # a plan needs no data
        say(f"how long it takes is unknown without the data: {for_terminal(str(error))}")
        expected = estimate(bench, found.todo, found.complete, calibrate=False)
    for name in dict.fromkeys(map(sweep_of, cells)):
        mine = [cell for cell in found.todo if sweep_of(cell) == name]
        part = expected.sweeps.get(name, SweepEstimate())
        time = "time unknown" if part.seconds is None else duration(part.seconds)
        say(f"{name[0]} ({name[1]}): {count_runs(len(mine))}, {part.epochs} epochs, {time}")
        for method in dict.fromkeys(cell.method for cell in mine):
            say(f"  {method}: {count_runs(sum(cell.method == method for cell in mine))}")
    known = all(part.seconds is not None for part in expected.sweeps.values())
    total = f"about {duration(expected.total)} in sequence" if known else "time unknown,"
    say(
        f"plan: {len(found.todo)} of {len(cells)} runs to do, {expected.epochs_left} epochs, {total} on {bench.device} "
        "(shared stages count once)"
    )
    if found.todo:
        warn_of_length(bench, found.todo, expected.total, say)
    warn_of_untuned(bench, found.todo, say)
    return FAILURE if _warn_of_reach(found.todo, say) else OK


def _warn_of_reach(cells: Sequence[Cell], say: Callable[[str], None]) -> bool:
    """Name the targets that no removal can reach, and say whether there are any; where data are missing, nothing."""
    reasons: dict[str, list[Cell]] = {}
    for cell in cells:
        try:
            data = splits_of(cell)
        except MissingDataError:
            continue
        if reason := cell_out_of_reach(cell, data.num_classes, data.shape):
            reasons.setdefault(reason, []).append(cell)
    for reason, some in reasons.items():
        say(f"{count_runs(len(some))} will fail ({some[0].label}, ...): {for_terminal(reason)}")
    return bool(reasons)


def warn_of_untuned(bench: Bench, cells: Sequence[Cell], say: Callable[[str], None]) -> None:
    """Name the regularised methods that run at a strength that was not tuned for them, and the command that tunes."""
    untuned: dict[Sweep, list[Cell]] = {}
    for cell in cells:
        if choose_strength(bench.tuning, cell, find_method(cell.method)).source == UNTUNED:
            untuned.setdefault(sweep_of(cell), []).append(cell)
    for (experiment, profile), some in untuned.items():
        named = ", ".join(dict.fromkeys(cell.method for cell in some))
        say(f"{experiment} ({profile}): strength not tuned, the middle of the grid is used for {named}")
        if experiment in EXPERIMENTS:
            command = f"python -m benchmarks tune {_what_to_tune(some)}{results_option(bench.results)}"
            say(f"  to tune first (a run at another strength has to be made again): {command}")


def _what_to_tune(cells: Sequence[Cell]) -> str:
    """Return experiment and options with which `tune` searches the strengths of some runs of one sweep."""
    cell = cells[0]
    owner = tuned_under(cell.experiment, cell.profile)
    methods = dict.fromkeys(find_method(each.method).strength_of or each.method for each in cells)
    words = f"{owner} --profile {cell.profile_name} --methods {','.join(methods)}"
    targets = dict.fromkeys(each.macs_kept for each in cells)
    if owner != cell.experiment.name or targets.keys() <= set(cell.profile.macs_kept):
        return words  # another experiment has targets of its own, of which the nearest one serves
    return f"{words} --macs-kept {','.join(map(str, targets))}"


def warn_of_length(bench: Bench, cells: Sequence[Cell], seconds: float, say: Callable[[str], None]) -> None:
    """Warn before more than an hour of training, and suggest shorter alternatives."""
    if seconds <= LONG:
        return
    say(f"warning: this takes about {duration(seconds)} on {bench.device}. Shorter alternatives:")
    first = cells[0]
    if len({cell.seed for cell in cells}) > 1:
        some = [cell for cell in cells if cell.seed == first.seed]
        say(f"  --seeds {first.seed} ({len(some)} of {len(cells)} runs)")
    if len({cell.method for cell in cells}) > 2:
        say("  --methods oicsr-gl,none (two methods)")
    names = dict.fromkeys(cell.experiment.name for cell in cells)
    others = [name for name, profile in first.experiment.profiles.items() if _images(profile) < _images(first.profile)]
    for name in others if len(names) == 1 else ():
        share = _images(first.experiment.profile(name)) / _images(first.profile)
        say(f"  --profile {name} (each run trains on {100 * share:.2g} % of the images; different results)")
    say("  --budget-minutes N stops at a checkpoint; the same command continues. --plan only shows the plan.")


def _images(profile: Profile) -> float:
    """Return how many images a run trains on, in all epochs."""
    return profile.epochs * (profile.train_images or ALL_IMAGES)


def _do(bench: Bench, found: Survey, options: argparse.Namespace, console: Console) -> SweepOutcome:
    todo = found.todo
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    options.jobs = _jobs(options, todo, bench.device, say)
    expected = estimate(bench, todo, found.complete, tell=say)
    seconds = expected.total / min(options.jobs, len(todo))
    profiles = ", ".join(dict.fromkeys(f"{cell.experiment.name} ({cell.profile_name})" for cell in todo))
    say(f"{profiles}: {count_runs(len(todo))} on {bench.device}, expected to take about {duration(seconds)}")
    warn_of_length(bench, todo, seconds, say)
    warn_of_untuned(bench, todo, say)
    minutes = options.budget_minutes
    limit = None if minutes is None else budget_seconds(minutes, process_age())
    trackers = open_trackers(options.trackers, options.wandb, bench.tuning, bench.results)
    try:
        with (
            on_signals() as asked,
            ConsoleObserver(console, len(todo), expected, parallel=options.jobs > 1) as observer,
        ):
            control = Control(limit, asked, expected.epochs)
            engine = _engine(bench, control, options, expected)
            return Driver(bench, engine, control, [observer, *trackers]).drive(todo)
    finally:
        for tracker in trackers:
            tracker.close()


def _jobs(options: argparse.Namespace, todo: Sequence[Cell], device: torch.device, say: Callable[[str], None]) -> int:
    """Return how many runs are done at a time: as many as were asked for, else as many as suit this machine."""
    if options.jobs is not None:
        return int(options.jobs)
    if options.engine != "local" or current_rank().count > 1:
        return 1
    threads = torch.get_num_threads()
    jobs = choose_jobs(todo, device, len(todo))
    if jobs is None:
        return 1
    torch.set_num_threads(jobs)  # one each
    if threads > 1:
        say(f"{jobs} at a time, one thread each; --jobs 1 gives all {threads} threads to one run")
    return jobs


def _engine(bench: Bench, control: Control, options: argparse.Namespace, expected: Estimate) -> Engine:
    if current_rank().count > 1:
        if options.engine != "local" or options.jobs > 1:
            raise ValueError("under torchrun all processes share one run; omit --engine and --jobs")
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
    """Report what failed and what is left; return the exit code."""
    failed = [record for record in records if not record.complete]
    reasons: dict[str, list[Record]] = {}
    for record in failed:
        reasons.setdefault(record.failure_reason, []).append(record)
    for reason, some in reasons.items():
        more = f" and {count_runs(len(some) - 1)} more" if len(some) > 1 else ""
        line = f"failed: {some[0].experiment}/{some[0].run_id}{more}: {for_terminal(reason)}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if any((record.failure or {}).get("kind") != OutOfReachError.__name__ for record in failed):
        console.print("to try failed runs again, add --retry-failed to the same command", highlight=False)
    if outcome.left:
        console.print(
            f"{outcome.stopped}: {count_runs(len(outcome.left))} left; the progress is in the checkpoints, and "
            "the same command continues from there. Next: "
            + ", ".join(cell.label for cell in outcome.left[:3])
            + (", ..." if len(outcome.left) > 3 else ""),
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    if outcome.stopped == INTERRUPT:
        return INTERRUPTED
    return FAILURE if failed else OK


def show(console: Console, results: Path, cells: Sequence[Cell]) -> list[str]:
    """Generate the tables and plots of some experiments and print the tables; return why records are left out."""
    names = list(dict.fromkeys(cell.experiment.name for cell in cells))
    profiles = {(cell.experiment.name, cell.profile_name) for cell in cells}
    found = gather(results, names)
    for reason in found.left_out.values():
        console.print(f"left out: {for_terminal(reason)}", markup=False, highlight=False, soft_wrap=True)
    comparisons = [c for c in compare(found.records) if (c.experiment, c.profile) in profiles]
    for comparison in comparisons:
        files = report.files_of(comparison, results)
        report.write(files)
        console.print(f"\n{title_of(comparison.experiment)}, profile {comparison.profile}", style="bold")
        console.print(to_text(comparison), markup=False, highlight=False, soft_wrap=True)
        console.print(f"{TEXT_NOTES} {notes(comparison, for_terminal)}", markup=False, highlight=False, style="dim")
        for kind, folder, suffix in (("table", "tables", "md"), ("plot", "figures", "png")):
            path = os.path.relpath(results / folder / f"{comparison.name}.{suffix}")
            console.print(f"{kind}: {path}", markup=False, highlight=False, soft_wrap=True)
    return list(found.left_out.values())
