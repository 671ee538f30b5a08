"""The sections of `results/perf/<device>.json`: which benchmarks there are, their conditions, and their tables."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.escape import for_markdown
from benchmarks.machine.atomic_write import write_atomically
from benchmarks.machine.plain_files import read_plain
from benchmarks.machine.precision import has_bfloat16
from benchmarks.machine.provenance import device_name, git_state, versions
from benchmarks.perf import latency, penalty, prune, pruned, steps, train
from benchmarks.perf.measure import Settings

BENCHMARKS: dict[str, tuple[Callable[[Settings], Iterable[dict[str, Any]]], str]] = {
    "penalty": (penalty.run, penalty.NOTE),
    "prune": (prune.run, prune.NOTE),
    "latency": (latency.run, latency.NOTE),
    "train": (train.run, train.NOTE),
    "steps": (steps.run, steps.NOTE),
    "pruned": (pruned.run, pruned.NOTE),
}


def name_of(device: torch.device) -> str:
    """Return the device's name; of a CPU, also whether it has bfloat16: one name may stand for several generations."""
    half = device.type == "cpu" and has_bfloat16(device.type)
    return f"{device_name(device)}, bfloat16 in hardware" if half else device_name(device)


def slug(device: torch.device) -> str:
    """Return the device's name as a file name, with the threads of a CPU."""
    name = re.sub(r"[^a-z0-9]+", "-", name_of(device).lower().replace(" in hardware", "")).strip("-")
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
    """Put one section into the device's file, next to the existing ones, and rewrite the tables."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sections = {**_earlier(path), name: dict(section)}
    ordered = {key: sections[key] for key in BENCHMARKS if key in sections}
    tables = "\n".join(table(key, value) for key, value in ordered.items())
    text = json.dumps({"device": device, "sections": ordered}, indent=1, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode())
    write_atomically(path.with_suffix(".md"), f"# Speed on {for_markdown(device)}\n\n{tables}".encode())


def _earlier(path: Path) -> dict[str, Any]:
    """Return the sections that a device's file holds already.

    Raises:
        ValueError: It is no such file.
    """
    if not path.exists():
        return {}
    try:
        found: dict[str, Any] = json.loads(read_plain(path))["sections"]
        for name, section in found.items():
            table(name, section)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no readable measurement of speed ({error!r}); move it away") from error
    return found


def table(name: str, section: Mapping[str, Any]) -> str:
    """Return a section as Markdown: a heading, the conditions, one line per row."""
    columns = list(dict.fromkeys(key for row in section["rows"] for key in row))
    lines = [
        "| " + " | ".join(map(for_markdown, columns)) + " |",
        "|" + "|".join(" --- " for _ in columns) + "|",
        *("| " + " | ".join(cell(row.get(column)) for column in columns) + " |" for row in section["rows"]),
    ]
    most = " at most" if "rounds" in columns else ""  # the rows say how many
    how = f"{section['threads']} threads, {section['repeats']} rounds{most}, medians; {section['measured']}."
    return f"## {name}\n\n{_note(section['note'])}\n\n{for_markdown(how)}\n\n" + "\n".join(lines) + "\n"


def _note(text: str) -> str:
    """Return a note as Markdown in which nothing but code between backticks is markup."""
    parts = re.split("(`[^`\n]+`)", text)
    return "".join(part if position % 2 else _between(part) for position, part in enumerate(parts))


def _between(text: str) -> str:
    """Return a part of a note as Markdown, with the spaces around it."""
    before, after = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
    return f"{before and ' '}{for_markdown(text)}{after and ' '}" if text.strip() else text and " "


def cell(value: object) -> str:
    """Return a value as a table shows it."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else for_markdown(str(value))
