"""The records that a report is made from, and those that it leaves out, each with its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.analysis.fairness import conditions
from benchmarks.config import target_name
from benchmarks.experiments import EXPERIMENTS
from benchmarks.methods.registry import find_method
from benchmarks.records.origins import data_of
from benchmarks.records.record import Record, find_records, run_folder
from benchmarks.records.table_names import table_name, whose_table


@dataclass
class Gathered:
    """Records for a report.

    Attributes:
        records: What it is made from.
        left_out: Why others are not part of it, by path of the record.
    """

    records: list[Record] = field(default_factory=list)
    left_out: dict[Path, str] = field(default_factory=dict)


def gather(results: Path, experiments: Sequence[str] | None = None) -> Gathered:
    """Read the records of a results folder; those that cannot share a table with the others are left out.

    Args:
        results: Holds `runs/`.
        experiments: Names (None: all).
    """
    found = find_records(results, experiments)
    odd = {**_unknown_methods(found.records), **_tables_of_others(found.records)}
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


def _tables_of_others(records: Sequence[Record]) -> dict[Key, str]:
    """Return the records whose table has the name of another: one with an experiment file, or with more records."""
    counts = Counter((record.experiment, record.profile) for record in records)
    pairs = sorted(counts, key=lambda pair: (pair[0] not in EXPERIMENTS, -counts[pair], pair))
    whose = {pair: whose_table(*pair, pairs[:position]) for position, pair in enumerate(pairs)}
    return {
        _key(r): f"the name of its table, {table_name(r.experiment, r.profile)!r}, belongs to {owner}"
        for r in records
        if (owner := whose[r.experiment, r.profile]) is not None
    }


def _misfits(records: Sequence[Record]) -> dict[Key, str]:
    """Return the complete records that could share no table with most of those beside them."""
    left = [record for record in records if record.complete]
    odd: dict[Key, str] = {}
    for what, group, shape in ALIKE:
        left = [record for record in left if _key(record) not in odd]
        odd |= _minority(left, what, group, shape)
    return odd


Shape = dict[str, str]


def _table_of(record: Record) -> Hashable:
    return record.experiment, record.profile, record.protocol


def _within_seed(record: Record) -> Shape:
    device, precision = record.provenance.get("device_type"), record.config.get("precision")
    return {"device type": str(device), "precision": str(precision)}


def _dense_size(record: Record) -> Shape:
    return {name: str(record.states["dense"][name]) for name in ("macs", "params")}


# What the runs of a group must have in common: its name, the group of a run, its values. The majority is right.
ALIKE: tuple[tuple[str, Callable[[Record], Hashable], Callable[[Record], Shape]], ...] = (
    ("configuration", _table_of, conditions),
    ("dense network", _table_of, _dense_size),
    (
        "couplings of prunable channels",
        lambda r: (_table_of(r), bool(r.widths)),
        lambda r: {name: str(width) for name, (width, _) in r.widths.items()},
    ),
    (
        "epochs by phase",
        lambda r: (_table_of(r), r.method, r.macs_kept),
        lambda r: {phase: str(count) for phase, count in r.epochs.items()},
    ),
    (
        "target",
        lambda r: (_table_of(r), target_name(r.macs_kept)),
        lambda r: {"macs_kept": repr(r.macs_kept)},
    ),
    ("device or precision", lambda r: (_table_of(r), r.seed), _within_seed),
    (
        "data",
        lambda r: (_table_of(r), r.seed, bool(data_of([r]))),
        lambda r: {"data_sha256": "".join(data_of([r]))},
    ),
)


def _minority(
    records: Sequence[Record], what: str, group: Callable[[Record], Hashable], shape: Callable[[Record], Shape]
) -> dict[Key, str]:
    groups: dict[Hashable, list[Record]] = {}
    for record in records:
        groups.setdefault(group(record), []).append(record)
    odd = {}
    for members in groups.values():
        shapes = [shape(record) for record in members]
        counts = Counter(frozenset(values.items()) for values in shapes)
        usual = dict(counts.most_common(1)[0][0])
        for record, values in zip(members, shapes, strict=True):
            if values != usual:
                odd[_key(record)] = f"it differs from most runs beside it in its {what}: {_difference(values, usual)}"
    return odd


def _difference(values: Shape, usual: Shape) -> str:
    name = min(name for name in values.keys() | usual.keys() if values.get(name) != usual.get(name))
    found, expected = (shown.get(name, "missing")[:40] for shown in (values, usual))
    return f"{name[:40]} is {found}, not {expected}"
