"""`tune`: choose strengths on the validation split."""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, field, replace
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import torch

from benchmarks.commands.options import (
    add_budget,
    add_choice,
    add_device,
    add_folders,
    add_graphs,
    add_jobs,
    choose_device,
    choose_graphs,
    positive,
    seeds,
    share,
)
from benchmarks.config import Cell
from benchmarks.escape import for_terminal
from benchmarks.experiments import find_experiment
from benchmarks.machine.leases import process_age
from benchmarks.records.record import Record
from benchmarks.records.rows import EpochRow
from benchmarks.records.strengths import (
    FIRST_TUNING_SEED,
    WHEN,
    TriesOf,
    compared_seeds,
    read_tuning,
    tuned_strengths,
    tuned_under,
    tuning_folder,
    tuning_path,
)
from benchmarks.running.bench import Bench, bench_at
from benchmarks.running.cells import cells_of, default_profile
from benchmarks.running.console import HEARTBEAT
from benchmarks.running.side_by_side import choose_jobs
from benchmarks.running.stages import Stage
from benchmarks.running.stopping import INTERRUPT, OUT_OF_TIME, Control, Stopped, budget_seconds, on_signals
from benchmarks.running.tuning import (
    TUNING_SEEDS,
    best_two,
    by_method,
    check_joins,
    keep,
    try_again,
    tune_method,
    usual_seeds,
    with_tries,
)
from benchmarks.training.loop import Score

OK, FAILURE, INTERRUPTED = 0, 1, 130

POLL = 0.5  # seconds


@dataclass(frozen=True)
class Place:
    """Where a search trains: what a separate process needs.

    Attributes:
        device: Where all training runs.
        results: Results folder; tuning records are in its `tuning/`.
        checkpoints: Folder of the checkpoints.
        threads: Threads of each process; None for PyTorch's choice.
        graphs: Whether training steps are to be replayed from CUDA graphs.
        deadline: When to stop, on the clock that all processes of a machine share (`time.monotonic`); None: never.
    """

    device: str
    results: Path
    checkpoints: Path
    threads: int | None
    graphs: bool = False
    deadline: float | None = None

    @property
    def tuning(self) -> Path:
        """Folder of the tuning records."""
        return tuning_folder(self.results)

    def bench(self, asked: object = None) -> Bench:
        """Return the bench."""
        if self.threads:
            torch.set_num_threads(self.threads)
        left = None if self.deadline is None else self.deadline - time.monotonic()
        control = Control(left, asked) if asked is not None else Control(left)  # type: ignore[arg-type]
        device = torch.device(self.device)
        bench = bench_at(device, self.results, self.checkpoints, control=control, graphs=self.graphs)
        return replace(bench, observers=[_Epochs()])


class _Epochs:
    """Prints the epochs that are trained for trials: the first, and then one after half a minute of silence at most."""

    def __init__(self) -> None:
        self._spoken = -math.inf

    def run_started(self, cell: Cell, stages: Sequence[Stage]) -> None:
        """Trials are told when they are over."""

    def epoch_done(self, cell: Cell, stage: Stage, row: EpochRow, *, cached: bool) -> None:
        """Print an epoch that was trained, if nothing was printed for a while."""
        if not cached and time.monotonic() - self._spoken >= HEARTBEAT:
            self._tell(f"{cell.label} {stage.name}: epoch {row.epoch} of {stage.phase.epochs}")

    def waiting(self, cell: Cell, reason: str) -> None:
        """Print whom a trial waits for."""
        self._tell(f"{cell.label} waits: {for_terminal(reason)}")

    def run_finished(self, cell: Cell, record: Record, history: Sequence[EpochRow]) -> None:
        """Trials leave no record of a run."""

    def _tell(self, line: str) -> None:
        print(f"  {line}", flush=True)
        self._spoken = time.monotonic()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    default = ",".join(map(str, TUNING_SEEDS))
    add_choice(parser, usual_seeds=f"those of the tuning record, else {default}, far from those of any comparison")
    add_folders(parser)
    add_device(parser)
    add_jobs(parser, "methods")
    add_graphs(parser)
    add_budget(parser)
    parser.add_argument(
        "--tries", type=positive, metavar="N", help="strengths to try per method and target (default: the profile's)"
    )
    parser.add_argument(
        "--start-from",
        type=share,
        metavar="SHARE",
        help="start each search at the strength chosen for this share of the MACs (default: at the method's grid)",
    )
    parser.add_argument(
        "--again",
        type=seeds,
        metavar="SEEDS",
        help="try the best two strengths of the record again, on further networks, and choose between them over all "
        "(default: a new search)",
    )


def command(options: argparse.Namespace) -> int:
    """Search the strengths of some experiments; what cannot be run is named, and the rest is done nevertheless."""
    device = choose_device(options)
    jobs = options.jobs or 1
    threads = max(1, options.threads // jobs) if options.threads else (1 if jobs > 1 else None)
    limit = None if options.budget_minutes is None else budget_seconds(options.budget_minutes, process_age())
    deadline = None if limit is None else time.monotonic() + limit
    place = Place(str(device), options.results, options.checkpoints, threads, choose_graphs(options, device), deadline)
    try:
        plans = [_plan(place, name, options) for name in options.experiments]  # refused before any training
        return max([_tune(place, plan, options.jobs) for plan in plans], default=OK)
    except Stopped as stopped:
        print(f"{stopped}; run the same command again to continue from its last step")
        return OK if str(stopped) == OUT_OF_TIME else INTERRUPTED


@dataclass(frozen=True)
class Part:
    """What the search of one method found, and why it stopped before its last target (empty: it did not)."""

    tries: TriesOf
    stopped: str = ""
    failed: Mapping[str, str] = field(default_factory=dict)  # by target: why the method cannot be run


@dataclass(frozen=True)
class Plan:
    """What is to be tuned of an experiment.

    Attributes:
        tuned: Its runs by method.
        seeds: Seeds of the networks of all trials.
        again: Seeds of further networks for the best two strengths; empty: a new search.
        recorded: The trials so far by method, where the best two are tried again.
    """

    tuned: Mapping[str, Sequence[Cell]]
    seeds: Sequence[int]
    again: Sequence[int] = ()
    recorded: Mapping[str, TriesOf] = field(default_factory=dict)

    def search(self, bench: Bench, method: str) -> Part:
        """Search the strengths of a method."""
        cells = self.tuned[method]
        if self.again:
            found = try_again(bench, cells, self.again, self.recorded[method], _tell_try)
        else:
            found = tune_method(bench, cells, self.seeds, _tell_try)
        done = len(found.tries) + len(found.failed) == len(cells)
        stopped = "" if done else bench.control.stop_reason() or OUT_OF_TIME
        return Part(found.tries, stopped, found.failed)


def _plan(place: Place, name: str, options: argparse.Namespace) -> Plan | str:
    """Return what is to be tuned of an experiment, or in words why nothing is.

    Raises:
        ValueError: There is no such experiment, profile, method or target.
        TuningError: The trials cannot join the experiment's tuning record.
    """
    experiment = find_experiment(name)
    profile = options.profile or default_profile(experiment, torch.device(place.device))
    owner = tuned_under(experiment, experiment.profile(profile))
    if owner != experiment.name:
        return f"{name} ({profile}) uses the strengths of {owner}: tune that experiment"
    cells = cells_of(experiment, profile, methods=options.methods, macs_kept=options.macs_kept)
    tuned = by_method(cells)
    if not tuned:
        return f"{name}: no method of profile {profile} has a strength to choose"
    seeds = options.seeds or usual_seeds(place.tuning, name, profile)
    record = check_joins(place.tuning, cells[0], seeds, torch.device(place.device).type)
    if options.again:
        return _plan_again(options, tuned, seeds, record)
    started = {
        method: [with_tries(cell, options.tries, _start(place, cell, options.start_from)) for cell in cells]
        for method, cells in tuned.items()
    }
    return Plan(started, seeds)


def _plan_again(
    options: argparse.Namespace, tuned: Mapping[str, Sequence[Cell]], seeds: Sequence[int], record: Mapping[str, Any]
) -> Plan:
    """Return the plan to try the best two strengths of a record again.

    Raises:
        ValueError: The options contradict one another, a method has no trials, or a network was used before.
    """
    for name, given in (("--tries", options.tries), ("--start-from", options.start_from)):
        if given is not None:
            raise ValueError(f"--again tries the best two strengths of the record, so that {name} has no effect")
    if compared := compared_seeds(options.again):
        raise ValueError(
            f"--again: seed {compared[0]} is one of comparisons; take seeds of {FIRST_TUNING_SEED} or more"
        )
    recorded: dict[str, TriesOf] = {}
    for method, cells in tuned.items():
        recorded[method] = record["scores"].get(method, {})
        for cell in cells:
            target = f"{cell.macs_kept:g}"
            if target not in recorded[method]:
                raise ValueError(f"--again: {method} has no trials at {target}; tune it there first, without --again")
            best_two(recorded[method][target])
            used = {*seeds, *record["again"].get(method, {}).get(target, [])}
            if twice := [seed for seed in options.again if seed in used]:
                raise ValueError(f"--again: {method} at {target} was tried on seed {twice[0]} already")
    return Plan(tuned, seeds, options.again, recorded)


def _start(place: Place, cell: Cell, share: float | None) -> tuple[float, float] | None:
    """Return where the search of a run starts: a share of the MACs and the strength that was chosen for it.

    Raises:
        ValueError: None was.
    """
    if share is None:
        return None
    path = tuning_path(place.tuning, cell.experiment.name, cell.profile_name)
    strength = tuned_strengths(path).get(cell.method, {}).get(f"{share:g}")
    if not strength:
        raise ValueError(
            f"--start-from {share:g}: {os.path.relpath(path)} has no strength of {cell.method} at this share; "
            f"tune it there first (--methods {cell.method} --macs-kept {share:g}), or leave the option out."
        )
    return share, strength


def _tune(place: Place, plan: Plan | str, jobs_asked: int | None) -> int:
    if isinstance(plan, str):
        print(plan)
        return OK
    tuned, path = plan.tuned, None
    cells = [cell for cells in tuned.values() for cell in cells]
    place, jobs = _shared_out(place, cells, len(tuned), jobs_asked)
    print(_announcement(place, plan), flush=True)
    search = _side_by_side if jobs > 1 and len(tuned) > 1 else _one_by_one
    stopped, code = "", OK
    for method, found in search(place, plan, jobs):  # written as they come: nothing done is lost
        if found.tries:
            path = keep(place.bench(), tuned[method], plan.seeds, found.tries, plan.again)
            chosen = read_tuning(path)["chosen"][method]
            code = FAILURE if any(chosen[target] is None for target in found.tries) else code
        for target, reason in found.failed.items():
            print(f"failed: {cells[0].experiment.name}/{method} at {target}: {for_terminal(reason)}", flush=True)
            code = FAILURE
        stopped = stopped or found.stopped
    if stopped:
        raise Stopped(stopped)
    if path is not None:
        _tell_record(path)
    return code


def _announcement(place: Place, plan: Plan) -> str:
    """Return what is about to be tuned, in words."""
    cells = [cell for cells in plan.tuned.values() for cell in cells]
    first = cells[0]
    strengths = "the best two" if plan.again else f"{first.profile.tries} strengths"
    networks = ", ".join(str(seed) for seed in plan.again or plan.seeds)
    searches = "1 search" if len(cells) == 1 else f"{len(cells)} searches"
    where = f"on networks of seed {networks}, on {place.device}"
    return f"{first.experiment.name} ({first.profile_name}): {searches} of {strengths}, {where}"


def _tell_record(path: Path) -> None:
    """Print what a tuning record chose."""
    print(f"tuning record: {os.path.relpath(path)}")
    record = read_tuning(path)
    for method, chosen in record["chosen"].items():
        reasons = record["reason"].get(method, {})
        said = [
            f"{'none works' if value is None else f'{value:g}'} at {target} ({reasons.get(target, 'reason unknown')})"
            for target, value in chosen.items()
        ]
        print(f"  {method}: {', '.join(said)}")


def _shared_out(place: Place, cells: Sequence[Cell], methods: int, asked: int | None) -> tuple[Place, int]:
    """Return where a search trains, and how many methods are tuned at a time."""
    jobs = asked if asked is not None else choose_jobs(cells, torch.device(place.device), methods)
    if asked is not None or jobs is None:
        return place, jobs or 1
    return replace(place, threads=1), jobs


Found = Iterator[tuple[str, Part]]


def _one_by_one(place: Place, plan: Plan, jobs: int) -> Found:
    with on_signals() as asked:
        bench = place.bench(asked)
        for method in plan.tuned:
            yield method, plan.search(bench, method)


def _side_by_side(place: Place, plan: Plan, jobs: int) -> Found:
    """Yield what each search found; where one ends in an error, the others stop and are yielded before it is raised."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with on_signals() as asked, ProcessPoolExecutor(jobs, context, _obey, (stop, os.getpid())) as pool:
        pending = {pool.submit(_in_process, place, plan, method): method for method in plan.tuned}
        errors: list[BaseException] = []
        try:
            while pending:
                done, _ = wait(pending, POLL, FIRST_COMPLETED)
                for future in done:
                    method = pending.pop(future)
                    if error := future.exception():
                        errors.append(error)
                    else:
                        yield method, future.result()
                late = place.deadline is not None and time.monotonic() > place.deadline
                if asked() or errors:
                    stop.set()
                if asked() or errors or late:  # what has begun stops by itself when its time is up
                    for future in [future for future in pending if future.cancel()]:  # those that did not begin
                        yield pending.pop(future), Part({}, OUT_OF_TIME if late and not asked() else INTERRUPT)
        finally:  # also where what was found cannot be written
            stop.set()
            for future in pending:
                future.cancel()
        if errors:
            raise errors[0]


_told: list[Callable[[], bool]] = []  # in a process of the pool: whether the command wants it to stop


def _obey(stop: Event, parent: int) -> None:
    """Let the command alone decide what Ctrl-C and SIGTERM mean; a process whose command was killed stops too."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _told[:] = [lambda: stop.is_set() or os.getppid() != parent]


def _in_process(place: Place, plan: Plan, method: str) -> Part:
    (told,) = _told
    return Part({}, INTERRUPT) if told() else plan.search(place.bench(told), method)


def _tell_try(cell: Cell, strength: float, score: Score | None) -> None:
    result = "diverged" if score is None else f"loss {score.loss:.4f}, top-1 {100 * score.top1:.2f} %"
    when = WHEN[cell.profile.search_state]
    print(f"{cell.label} strength {strength:g}: validation {result} {when}", flush=True)
