"""`coverage`: try which networks of torchvision and timm can be pruned."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from benchmarks.commands.options import add_results
from benchmarks.commands.options import names as name_list
from benchmarks.coverage.attention import (
    attention_csv,
    attention_markdown,
    cover_attention,
    cover_attention_peer,
    read_attention,
    rows_of_attention,
)
from benchmarks.coverage.examine import cover, cover_peer
from benchmarks.coverage.table import (
    LIMIT_SECONDS,
    Row,
    listed,
    read_rows,
    to_csv,
    to_markdown,
)
from benchmarks.coverage.tasks import check_network
from benchmarks.machine.atomic_write import write_atomically
from benchmarks.suggest import unknown_name
from oicsr import trace_couplings

__all__ = ["add_options", "command"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    add_results(parser)
    text = "comma-separated (default: all that have no row yet)"
    parser.add_argument("--networks", type=name_list, metavar="LIST", help=text)
    text = f"CPU time per network and tool (default: {LIMIT_SECONDS:g})"
    parser.add_argument("--limit", type=seconds, default=LIMIT_SECONDS, metavar="SECONDS", help=text)
    parser.add_argument("--again", action="store_true", help="test networks again that already have a row")
    parser.add_argument("--no-peer", action="store_true", help="skip torch-pruning")
    parser.add_argument("--attention", action="store_true", help="what of transformers' attention can go, instead")


def seconds(text: str) -> float:
    """Read a time above 0."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number of seconds above 0")
    return found


def command(options: argparse.Namespace) -> int:
    """Run what is missing, first the networks, then torch-pruning; write `coverage.csv` and `coverage.md`.

    Raises:
        ValueError: There is no network of a name.
    """
    if options.attention:
        return _attention(options)
    path: Path = options.results / "coverage.csv"
    rows = read_rows(path)
    names = options.networks or listed()
    for name in names:
        check_network(name)
    options.results.mkdir(parents=True, exist_ok=True)
    _warm_up()
    for name in names:
        if name not in rows or options.again:
            rows[name] = _beside(rows.get(name), cover(name, options.limit), keep=options.no_peer)
            _write(path, rows)
            _tell(name, rows[name]["passed"], rows[name]["reason"])
    for name in names:
        if not options.no_peer and not rows[name]["torch_pruning"]:
            rows[name] |= cover_peer(name, options.limit)
            _write(path, rows)
            _tell(f"{name}, torch-pruning", rows[name]["torch_pruning"], rows[name]["torch_pruning_reason"])
    _write(path, rows)
    return 0


def _beside(before: Row | None, row: Row, *, keep: bool) -> Row:
    """Return a new row; where torch-pruning is skipped, with what it came to before."""
    if before is None or not keep:
        return row
    return {**row, **{column: cell for column, cell in before.items() if column.startswith("torch_pruning")}}


def _attention(options: argparse.Namespace) -> int:
    """Run what is missing of the table of attention; write `attention.csv` and `attention.md`.

    Raises:
        ValueError: The table has no network of a name.
    """
    path: Path = options.results / "attention.csv"
    rows = read_attention(path)
    wanted = options.networks
    known = dict.fromkeys(name.split(" ")[0] for name in rows_of_attention())
    for name in wanted or ():
        if name not in known:
            raise ValueError(unknown_name("network of the attention table", name, known))
    options.results.mkdir(parents=True, exist_ok=True)
    _warm_up()
    for name in rows_of_attention():
        if wanted is not None and name.split(" ")[0] not in wanted:
            continue
        if name not in rows or options.again:
            rows[name] = _beside(rows.get(name), cover_attention(name, options.limit), keep=options.no_peer)
            _write_attention(path, rows)
            _tell(name, rows[name]["passed"], rows[name]["reason"])
        if not options.no_peer and not rows[name]["torch_pruning"]:
            rows[name] |= cover_attention_peer(name, options.limit)
            _write_attention(path, rows)
            _tell(f"{name}, torch-pruning", rows[name]["torch_pruning"], rows[name]["torch_pruning_reason"])
    _write_attention(path, rows)
    return 0


def _write(path: Path, rows: Mapping[str, Row]) -> None:
    write_atomically(path, to_csv(rows).encode())
    write_atomically(path.with_suffix(".md"), to_markdown(rows).encode())


def _write_attention(path: Path, rows: Mapping[str, Row]) -> None:
    write_atomically(path, attention_csv(rows).encode())
    write_atomically(path.with_suffix(".md"), attention_markdown(rows).encode())


def _tell(what: str, passed: str, reason: str) -> None:
    print(f"{what}: {'passed' if passed == 'yes' else reason}", flush=True)


def _warm_up() -> None:
    """Import what the networks need and trace once, so that every forked process starts with it."""
    torch.set_num_threads(1)
    trace_couplings(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)), torch.zeros(1, 3, 8, 8))
    import timm
    import torch_pruning
    import torchvision

    assert timm and torch_pruning and torchvision
