"""`report`: every generated file from the records."""

from __future__ import annotations

import argparse
import os
import sys

from benchmarks.commands.options import add_results
from benchmarks.machine.paths import ROOT
from benchmarks.reporting import build as report


def add_options(parser: argparse.ArgumentParser) -> None:
    """Say where the records lie."""
    add_results(parser)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 where a file differs")


def command(options: argparse.Namespace) -> int:
    """Make every generated file from the records; with `--check` only compare."""
    published = options.results.resolve() == ROOT / "results"
    artefacts = report.build(options.results, ROOT if published else None)
    if options.check:
        wrong = report.differing(artefacts, options.results)
        for line in wrong:
            print(line, file=sys.stderr)
        print(f"{len(artefacts)} generated files checked, {len(wrong)} wrong")
        return 1 if wrong else 0
    changed = report.write(artefacts)
    print(f"{len(artefacts)} generated files, {len(changed)} changed")
    for path in changed:
        print(f"  {os.path.relpath(path)}")
    return 0
