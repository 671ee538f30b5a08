"""`perf`: measure speed and memory against peers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.commands.options import EachOnce, add_device, add_list, add_results, choose_device, names, positive
from benchmarks.perf.measure import BACKENDS, Settings
from benchmarks.perf.sections import BENCHMARKS, conditions, name_of, slug, table, write
from benchmarks.suggest import unknown_name


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "benchmark", nargs="*", action=EachOnce, metavar="BENCHMARK", help=f"{', '.join(BENCHMARKS)} (default: all)"
    )
    add_list(parser, "--models", names, "networks, comma-separated (default: each benchmark's own)")
    parser.add_argument(
        "--repeats", type=positive, default=20, metavar="N", help="rounds of each measurement (default: 20)"
    )
    parser.add_argument("--batch-size", type=positive, default=128, metavar="N", help="images per step (default: 128)")
    parser.add_argument(
        "--backends",
        type=names,
        default=list(BACKENDS),
        metavar="LIST",
        help=f"backends of the latencies (default: {','.join(BACKENDS)})",
    )
    add_results(parser)
    add_device(parser)


def command(options: argparse.Namespace) -> int:
    """Run the benchmarks; each row is written at once, so an interrupted run keeps its rows.

    Raises:
        ValueError: A benchmark or a backend is unknown.
    """
    for name in options.benchmark:
        if name not in BENCHMARKS:
            raise ValueError(unknown_name("benchmark", name, BENCHMARKS))
    for name in options.backends:
        if name not in BACKENDS:
            raise ValueError(unknown_name("backend", name, BACKENDS))
    device = choose_device(options)
    settings = Settings(
        device=device,
        repeats=options.repeats,
        batch_size=options.batch_size,
        models=tuple(options.models or ()),
        backends=tuple(options.backends),
    )
    path: Path = options.results / "perf" / f"{slug(device)}.json"
    for name in options.benchmark or list(BENCHMARKS):
        run, note = BENCHMARKS[name]
        rows: list[dict[str, Any]] = []
        section = {**conditions(settings), "note": note, "rows": rows}
        for row in run(settings):
            rows.append(row)
            write(path, name_of(device), name, section)
        print(table(name, section))
    return 0
