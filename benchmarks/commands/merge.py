"""`merge`: copy records that were made elsewhere."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from benchmarks.commands.options import add_results
from benchmarks.escape import for_terminal
from benchmarks.records.schema import need_checker
from benchmarks.records.signatures import Signers
from benchmarks.running.adhoc import find_any, known_experiments
from benchmarks.running.bench import bench_at
from benchmarks.running.merge import bring_in_sweeps, merge, records_under


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("source", type=Path, nargs="+", metavar="DIR", help="results folder, as --results named it")
    add_results(parser)
    parser.add_argument(
        "--replace",
        action="store_true",
        help="replace an existing record by a different complete one, keeping the old one (default: refuse)",
    )
    parser.add_argument(
        "--unchecked", action="store_true", help="accept records without checksum and give them one (default: refuse)"
    )
    parser.add_argument(
        "--as",
        dest="into",
        metavar="EXPERIMENT",
        help="take the records over into this experiment, if it has their values: the second run of a sweep, beside "
        "the first (default: the one that each was made as)",
    )
    parser.add_argument(
        "--signed-by",
        type=Path,
        metavar="FILE",
        help="accept only what is signed by a key of this file: SSH public keys, or allowed signers (default: no "
        "signatures needed)",
    )


def command(options: argparse.Namespace) -> int:
    """Verify and import every record; exit with 1 if one was refused.

    Raises:
        ValueError: Options contradict each other, or signatures cannot be verified here.
    """
    need_checker()
    for option, given in (("--unchecked", options.unchecked), ("--as", options.into)):
        if options.signed_by and given:
            raise ValueError(f"{option} changes records, which --signed-by forbids; omit one of them")
    signers = Signers.read(options.signed_by) if options.signed_by else None
    bench = bench_at(torch.device("cpu"), options.results, Path("checkpoints"))
    for source in options.source:  # all of them before the first record is copied
        records_under(source)
    refused = 0
    for source in options.source:
        sweeps = bring_in_sweeps(source, options.results, signers)
        experiments = {name: find_any(name, options.results) for name in known_experiments(options.results)}
        ways = {"replace": options.replace, "unchecked": options.unchecked, "signers": signers, "into": options.into}
        merged = merge(bench, source, experiments, **ways)
        for label, reason in [*sweeps.items(), *merged.refused.items()]:
            named = reason if reason.startswith(label) else f"{label}: {reason}"
            print(f"refused: {for_terminal(named)}", file=sys.stderr)
        refused += len(merged.refused) + len(sweeps)
        print(
            f"{source}: {len(merged.added)} added, {len(merged.replaced)} replaced, {len(merged.present)} already "
            f"there, {len(merged.refused)} refused"
        )
    return 1 if refused else 0
