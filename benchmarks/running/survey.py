"""Which runs have a record already, and whether it was made with the same values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.config import PROTOCOL, Cell
from benchmarks.machine.paths import unused
from benchmarks.methods.registry import find_method
from benchmarks.records.origins import SHORT_DATA, data_of
from benchmarks.records.record import NewerRecordError, Record, RecordError, read_record, record_path
from benchmarks.records.strengths import choose_strength
from benchmarks.running.bench import Bench, data_checksum
from benchmarks.running.outcome import resolved_config

OTHER = "was made with another configuration"

ADVICE = "Move its folder away, or give another folder with --results."

LISTED = 20  # folders that an error names


@dataclass
class Survey:
    """The part of a sweep that exists already."""

    todo: list[Cell] = field(default_factory=list)
    complete: list[Record] = field(default_factory=list)
    failed: list[Record] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    outdated: list[Record] = field(default_factory=list)


def survey(bench: Bench, cells: Sequence[Cell], *, retry_failed: bool = False, look_only: bool = False) -> Survey:
    """Find out which runs already have a record.

    Args:
        bench: Its results folder holds the records.
        cells: The runs.
        retry_failed: Whether failed runs are to be done again.
        look_only: Change nothing; otherwise a damaged record is renamed to `record.json.damaged` (or `-2`, `-3`, ...
            after that: all are kept), since its run will be done again.

    Raises:
        RecordError: Records were made with another configuration; the message names all, and says what differs in the
            first one.
        NewerRecordError: One was made by a newer version of this suite.
        OSError: A record cannot be read now: it may be whole, and nothing is renamed.
    """
    found = Survey()
    other: dict[str, str] = {}
    for cell in cells:
        path = record_path(bench.results, cell)
        if not path.is_file():
            found.todo.append(cell)
            continue
        try:
            record = read_record(path)
        except NewerRecordError:  # nothing is wrong with it: its run is not done again
            raise
        except RecordError as error:
            found.damaged.append(str(error) if look_only else f"{error}; renamed to {_keep_aside(path).name}")
            found.todo.append(cell)
            continue
        if record.protocol != PROTOCOL:  # made under another version of the protocol
            found.outdated.append(record)
            found.todo.append(cell)
            continue
        difference = _difference(cell, record, bench)
        if difference:
            other[str(path.parent)] = difference
        elif record.complete:
            found.complete.append(record)
        elif retry_failed:
            found.todo.append(cell)
        else:
            found.failed.append(record)
    if other:
        raise RecordError(_refusal(other))
    return found


def _refusal(other: dict[str, str]) -> str:
    """Return the text of an error about runs of another configuration: what differs, by folder."""
    (first, difference), *rest = other.items()
    if not rest:
        return f"{first} {OTHER}: {difference}. {ADVICE}"
    named = ", ".join(folder for folder, _ in rest[:LISTED])
    more = f" and {len(rest) - LISTED} more" if len(rest) > LISTED else ""
    return f"{first} {OTHER}: {difference}. So were {named}{more}. {ADVICE.replace('its folder', 'these folders')}"


def _keep_aside(path: Path) -> Path:
    """Rename a damaged record, and return its new path."""
    return path.rename(unused(path.with_name(f"{path.name}.damaged")))


def check_same_configuration(cell: Cell, record: Record, where: str, bench: Bench, advice: str = ADVICE) -> None:
    """Check that a record was made with the present values of its run.

    Raises:
        RecordError: It was not; the message says what differs, and ends with `advice`.
    """
    difference = _difference(cell, record, bench)
    if difference:
        raise RecordError(f"{where} {OTHER}: {difference}. {advice}")


def _difference(cell: Cell, record: Record, bench: Bench) -> str:
    """Return in which values a record differs from the present ones of its run; empty if in none."""
    method = find_method(cell.method)
    values = resolved_config(cell, method, bench.device.type)
    if cell.profile.precision == "auto":  # chosen by the machine of the run; tables do not mix them
        values["precision"] = record.config.get("precision")
    strength = choose_strength(bench.tuning, cell, method)
    expected = flatten({**values, "strength": strength.value, "macs_kept": cell.macs_kept})
    found = flatten({**record.config, "strength": record.strength, "macs_kept": record.macs_kept})
    different = [
        f"{name} is {expected.get(name)!r} now and was {found.get(name)!r}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]
    if difference := _other_data(cell, record):
        different.append(difference)
    if expected["strength"] != found["strength"]:  # mostly because a search took place in between
        different.append(f"the strength is {strength.source!r} now and was {record.strength_source!r}")
    return "; ".join(different)


def _other_data(cell: Cell, record: Record) -> str:
    """Return how the data of a record differ from the present ones; empty if they do not, or one is unknown."""
    found, expected = data_of([record]), data_checksum(cell)
    if not found or not expected or expected.startswith(found):
        return ""
    return f"the SHA-256 of the data is {expected[:SHORT_DATA]} now and was {found[0]}"


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under dotted names; tuples count as lists."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat
