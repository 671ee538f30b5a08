"""`export`: write the network of a run to a file."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from benchmarks.commands.options import add_folders
from benchmarks.running.export import FORMATS, export


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    add_folders(parser)
    parser.add_argument("run", metavar="RUN", help="EXPERIMENT/RUN_ID, or the folder of the run")
    parser.add_argument(
        "--format", choices=tuple(FORMATS), default="safetensors", help="file format (default: safetensors)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="file (default: named after the run, in this folder)"
    )


def command(options: argparse.Namespace) -> int:
    """Write the fine-tuned network of a run to a file."""
    path = export(options.run, options.format, options.results, options.checkpoints, options.output)
    print(f"exported: {os.path.relpath(path)}")
    return 0
