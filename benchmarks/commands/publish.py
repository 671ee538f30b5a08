"""`publish`: replay records into Weights & Biases."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.commands.options import add_results
from benchmarks.escape import for_terminal
from benchmarks.records.record import RecordError
from benchmarks.running.checkpoints import CheckpointStore
from benchmarks.running.wandb_mirror import PROJECT, Place, wandb_errors
from benchmarks.running.wandb_replay import publish


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help="names (default: all that have records)")
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
        type=Path,
        default=Path("wandb"),
        metavar="DIR",
        help="W&B files and the ledger (default: wandb)",
    )
    parser.add_argument(
        "--checkpoints",
        type=Path,
        metavar="DIR",
        help="add the fine-tuned networks as artifacts, from the checkpoints in this folder (default: no networks)",
    )
    parser.add_argument("--again", action="store_true", help="send unchanged records too (default: only what is new)")


def command(options: argparse.Namespace) -> int:
    """Replay what is missing; exit with 1 if W&B fails or a record cannot be read."""
    place = Place(options.wandb, options.folder, options.project, options.entity)
    store = None if options.checkpoints is None else CheckpointStore(options.checkpoints)
    try:
        done = publish(options.results, place, options.experiments or None, again=options.again, store=store)
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
