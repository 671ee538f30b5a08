"""The command: run benchmarks, write `results/perf/<device>.json` and the table beside it."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.perf import latency, penalty, prune, train
from benchmarks.perf.measure import Settings
from benchmarks.provenance import device_name, git_state, versions

BENCHMARKS: dict[str, tuple[Callable[[Settings], Iterable[dict[str, Any]]], str]] = {
    "penalty": (penalty.run, penalty.NOTE),
    "prune": (prune.run, prune.NOTE),
    "latency": (latency.run, latency.NOTE),
    "train": (train.run, train.NOTE),
}


def main(argv: Sequence[str]) -> int:
    """Run the benchmarks that `argv` names (all without one); return the exit status."""
    arguments = parser().parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    settings = Settings(
        device=device,
        repeats=arguments.repeats,
        batch_size=arguments.batch_size,
        models=tuple(arguments.models.split(",")) if arguments.models else (),
        backends=tuple(arguments.backends.split(",")),
    )
    path = Path(arguments.results) / "perf" / f"{slug(device)}.json"
    for name in arguments.benchmark or list(BENCHMARKS):
        run, note = BENCHMARKS[name]
        rows: list[dict[str, Any]] = []
        section = {**conditions(settings), "note": note, "rows": rows}
        for row in run(settings):  # written as they come: a long run that is cut off leaves what it has
            rows.append(row)
            write(path, device_name(device), name, section)
        sys.stdout.write(table(name, section) + "\n")
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the command line's grammar."""
    made = argparse.ArgumentParser(prog="python -m benchmarks perf", description=__doc__)
    made.add_argument("benchmark", nargs="*", choices=list(BENCHMARKS), help="all without one")
    made.add_argument("--models", help="names, with commas between; without it, each benchmark's own")
    made.add_argument("--repeats", type=positive, default=20, help="rounds (default 20)")
    made.add_argument("--batch-size", type=positive, default=128, help="images per step (default 128)")
    made.add_argument("--backends", default="eager,compiled", help="for latency (default eager,compiled)")
    made.add_argument("--device", help="cpu or cuda; without it, cuda where there is one")
    made.add_argument("--threads", type=positive, help="threads on the CPU; without it, PyTorch's choice")
    made.add_argument("--results", default="results", help="folder (default results)")
    return made


def positive(text: str) -> int:
    """Read a whole number from 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def slug(device: torch.device) -> str:
    """Return the device's name as a file name, with the threads of a CPU."""
    name = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    return f"{name}-{torch.get_num_threads()}-threads" if device.type == "cpu" else name


def conditions(settings: Settings) -> dict[str, Any]:
    """Return under what conditions a section is measured."""
    return {
        **git_state(),
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "repeats": settings.repeats,
        "measured": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def write(path: Path, device: str, name: str, section: Mapping[str, Any]) -> None:
    """Put one section into the device's file, beside those that are there, and draw the tables anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = json.loads(path.read_text()) if path.is_file() else {"sections": {}}
    sections = {**found["sections"], name: dict(section)}
    ordered = {key: sections[key] for key in BENCHMARKS if key in sections}
    path.write_text(json.dumps({"device": device, "sections": ordered}, indent=1, ensure_ascii=False) + "\n")
    tables = "\n".join(table(key, value) for key, value in ordered.items())
    path.with_suffix(".md").write_text(f"# Speed on {device}\n\n{tables}")


def table(name: str, section: Mapping[str, Any]) -> str:
    """Return a section as Markdown: a heading, the conditions, one line per row."""
    columns = list(dict.fromkeys(key for row in section["rows"] for key in row))
    lines = [
        "| " + " | ".join(columns) + " |",
        "|" + "|".join(" --- " for _ in columns) + "|",
        *("| " + " | ".join(cell(row.get(column)) for column in columns) + " |" for row in section["rows"]),
    ]
    how = f"{section['threads']} threads, {section['repeats']} rounds, medians; {section['measured']}."
    return f"## {name}\n\n{section['note']}\n\n{how}\n\n" + "\n".join(lines) + "\n"


def cell(value: object) -> str:
    """Return a value as a table shows it."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
