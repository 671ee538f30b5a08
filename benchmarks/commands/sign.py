"""`sign`: sign records, for those who merge only signed ones."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.commands.options import EachOnce, add_results
from benchmarks.machine.paths import inside
from benchmarks.records.record import read_record, record_paths, runs_folder
from benchmarks.records.signatures import sign
from benchmarks.suggest import unknown_name


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "experiments", nargs="*", action=EachOnce, metavar="EXPERIMENT", help="names (default: all that have records)"
    )
    add_results(parser)
    parser.add_argument(
        "--key",
        type=Path,
        required=True,
        metavar="FILE",
        help="private SSH key, or the public one of an agent's (no default)",
    )


def command(options: argparse.Namespace) -> int:
    """Sign every record, verified first, and every saved sweep.

    Raises:
        RecordError: A record cannot be read, or was changed.
        ValueError: There are no records, or none of an experiment that is named; or that key signs nothing.
    """
    results: Path = options.results
    records = record_paths(results)
    sweeps = sorted((results / "sweeps").glob("*.json"))
    if not records:
        raise ValueError(f"there are no records to sign under {runs_folder(results)}")
    there = dict.fromkeys(path.parent.parent.name for path in records)
    for name in options.experiments:
        if name not in there:
            raise ValueError(unknown_name("experiment with records to sign", name, there))
    if options.experiments:
        records = [path for path in records if path.parent.parent.name in options.experiments]
        sweeps = [path for path in sweeps if path.stem in options.experiments]
    for path in [*records, *sweeps]:  # all of them before the first signature
        inside(results, path.relative_to(results))
        if path.name == "record.json":
            read_record(path)
    for path in [*records, *sweeps]:
        sign(path, options.key)
    print(f"signed: {len(records)} records, {len(sweeps)} sweeps")
    return 0
