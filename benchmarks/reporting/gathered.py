"""The records that a report is made from, and those that it leaves out, each with its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.methods.registry import find_method
from benchmarks.records.record import Record, find_records, run_folder


@dataclass
class Gathered:
    """Records for a report.

    Attributes:
        records: What it is made from.
        left_out: Why others cannot stand in it, by path of the record.
    """

    records: list[Record] = field(default_factory=list)
    left_out: dict[Path, str] = field(default_factory=dict)


def gather(results: Path, experiments: Sequence[str] | None = None) -> Gathered:
    """Read the records of a results folder; what cannot stand in a table beside the others is left out.

    Args:
        results: Holds `runs/`.
        experiments: Names (None: all).
    """
    found = find_records(results, experiments)
    odd = {**_unknown_methods(found.records)}
    known = [record for record in found.records if _key(record) not in odd]
    odd |= _misfits(known)
    left_out = dict(found.refused)
    for record in found.records:
        if _key(record) in odd:
            path = run_folder(results, record.experiment, record.run_id) / "record.json"
            left_out[path] = f"{path}: {odd[_key(record)]}"
    return Gathered([record for record in found.records if _key(record) not in odd], dict(sorted(left_out.items())))


Key = tuple[str, str]


def _key(record: Record) -> Key:
    return record.experiment, record.run_id


def _unknown_methods(records: Iterable[Record]) -> dict[Key, str]:
    odd = {}
    for record in records:
        try:
            find_method(record.method)
        except ValueError as error:
            odd[_key(record)] = str(error)
    return odd


def _misfits(records: Sequence[Record]) -> dict[Key, str]:
    """Return the complete records that differ in shape from most of those they would be averaged with."""
    complete = [record for record in records if record.complete]
    odd = _minority(
        complete,
        "couplings of prunable channels",
        lambda r: (r.experiment, r.profile, r.protocol, bool(r.widths)),
        lambda r: tuple(sorted(r.widths)),
    )
    return odd | _minority(
        complete,
        "epochs by phase",
        lambda r: (r.experiment, r.profile, r.protocol, r.method, r.macs_kept),
        lambda r: tuple(sorted(r.epochs.items())),
    )


def _minority(
    records: Sequence[Record], what: str, group: Callable[[Record], Hashable], shape: Callable[[Record], Hashable]
) -> dict[Key, str]:
    groups: dict[Hashable, list[Record]] = {}
    for record in records:
        groups.setdefault(group(record), []).append(record)
    odd = {}
    for members in groups.values():
        usual = Counter(map(shape, members)).most_common(1)[0][0]
        for record in members:
            if shape(record) != usual:
                odd[_key(record)] = f"its {what} are other than those of most runs beside it"
    return odd
