"""`report`: generate all files from the records."""

from __future__ import annotations

import argparse
import os
import sys

from benchmarks.commands.options import add_results
from benchmarks.escape import for_terminal
from benchmarks.machine.paths import ROOT
from benchmarks.reporting import build as report
from benchmarks.reporting.gathered import gather


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    add_results(parser)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a file differs")


def command(options: argparse.Namespace) -> int:
    """Generate all files from the records; with `--check`, only compare.

    Raises:
        ValueError: There is no such folder.
    """
    if not options.results.is_dir():
        raise ValueError(f"there is no folder {str(options.results)!r}; --results names the one that holds runs/")
    published = options.results.resolve() == ROOT / "results"
    gathered = gather(options.results)
    for reason in gathered.left_out.values():
        print(f"left out: {for_terminal(reason)}", file=sys.stderr)
    artefacts = report.build(options.results, ROOT if published else None, gathered)
    if options.check:
        wrong = report.differing(artefacts, options.results)
        for line in wrong:
            print(for_terminal(line), file=sys.stderr)
        print(f"{len(artefacts)} generated files checked, {len(wrong)} wrong")
        return 1 if wrong or gathered.left_out else 0
    changed = report.write(artefacts)
    print(f"{len(artefacts)} generated files, {len(changed)} changed")
    for path in changed:
        print(f"  {os.path.relpath(path)}")
    if gathered.left_out:
        count = "1 record was" if len(gathered.left_out) == 1 else f"{len(gathered.left_out)} records were"
        print(f"{count} left out: restore each file, or move its folder away")
    return 1 if gathered.left_out else 0
