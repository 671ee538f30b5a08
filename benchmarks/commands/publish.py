"""`publish`: replay records into Weights & Biases."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.commands.options import EachOnce, add_results, folder
from benchmarks.escape import for_terminal
from benchmarks.records.record import RecordError, find_records, record_paths, runs_folder
from benchmarks.running.adhoc import known_experiments
from benchmarks.running.checkpoints import CheckpointStore
from benchmarks.running.wandb_mirror import PROJECT, Place, wandb_errors
from benchmarks.running.wandb_replay import Ledger, publish
from benchmarks.running.wandb_report import make_report
from benchmarks.suggest import unknown_name


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "experiments", nargs="*", action=EachOnce, metavar="EXPERIMENT", help="names (default: all that have records)"
    )
    add_results(parser)
    parser.add_argument("--project", default=PROJECT, help=f"W&B project (default: {PROJECT})")
    parser.add_argument("--entity", help="W&B user or team (default: the one logged in)")
    parser.add_argument(
        "--wandb",
        choices=("online", "offline"),
        default="offline",
        help="offline: into the folder, for `wandb sync` later; online: after `wandb login` (default: offline)",
    )
    parser.add_argument(
        "--folder",
        type=folder,
        default=Path("wandb"),
        metavar="DIR",
        help="folder of the W&B files and the ledger (default: wandb)",
    )
    parser.add_argument(
        "--checkpoints",
        type=folder,
        metavar="DIR",
        help="add the fine-tuned networks as artifacts, from the checkpoints in this folder (default: no networks)",
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="also make a W&B report of each experiment (online; needs wandb-workspaces)",
    )
    parser.add_argument("--again", action="store_true", help="send unchanged records too (default: only what is new)")


def command(options: argparse.Namespace) -> int:
    """Replay what is missing; exit with 1 if W&B fails or a record cannot be read.

    Raises:
        ValueError: There are no records, an experiment is unknown, or `--report` is given without `--wandb online` and
            `--entity`, or without the package that makes reports.
    """
    if options.report and (options.wandb != "online" or not options.entity):
        raise ValueError("--report makes a report on the W&B server; add --wandb online and --entity USER-OR-TEAM")
    _check_names(options)
    place = Place(options.wandb, options.folder, options.project, options.entity)
    store = None if options.checkpoints is None else CheckpointStore(options.checkpoints)
    try:
        done = publish(options.results, place, options.experiments or None, again=options.again, store=store)
        if options.report:
            _make_reports(options, place)
    except RecordError:
        raise
    except wandb_errors() as error:
        print(f"W&B failed ({type(error).__name__}: {error}); run the same command again to continue", file=sys.stderr)
        return 1
    print(f"{len(done.written)} W&B runs written, {len(done.present)} unchanged since they were published")
    if options.wandb == "offline" and done.written:
        print(f"to upload them: wandb sync --include-offline {options.folder}/wandb/offline-run-*")
    for reason in done.refused:
        print(f"left out: {for_terminal(reason)}", file=sys.stderr)
    return 1 if done.refused else 0


def _check_names(options: argparse.Namespace) -> None:
    """Refuse a folder without records, and names of experiments that are unknown and have no records either.

    Raises:
        ValueError: There is such a name, or no record.
    """
    recorded = sorted(path.name for path in runs_folder(options.results).glob("*") if path.is_dir())
    known = dict.fromkeys([*known_experiments(options.results), *recorded])
    for name in options.experiments:
        if name not in known:
            raise ValueError(unknown_name("experiment", name, known))
    if not record_paths(options.results):
        raise ValueError(f"there are no records to publish under {runs_folder(options.results)}")


def _make_reports(options: argparse.Namespace, place: Place) -> None:
    """Send a report of every experiment and profile that has a complete record, and print where it is.

    A report that was sent before is replaced and keeps its address.
    """
    ledger = Ledger(place, again=options.again)
    found = find_records(options.results, options.experiments or None)
    firsts = {(record.experiment, record.profile): record for record in reversed(found.records) if record.complete}
    for (experiment, profile), record in sorted(firsts.items()):
        report = make_report(place, record, f"python -m benchmarks run {experiment} --profile {profile}")
        name = f"{experiment}/{profile}-report"
        report.id = ledger.kept(name) or report.id
        report.save()
        ledger.keep(name, str(report.id))
        print(f"report: {report.url}")
