"""Comparisons: the records of one experiment and profile as one frame, a row per method and target."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from benchmarks.analysis.fairness import check_comparable, level_name
from benchmarks.analysis.statistics import ENOUGH_SEEDS, Summary, summarize, tied_with_best
from benchmarks.methods.registry import find_method
from benchmarks.records.record import STATES_OF, Record

# The paper's comparison with its controls, in the order and with the looks that every table and figure gives them.
MAIN_METHODS = ("oicsr-gl", "gl-out", "gl-separate", "oicsr-growl", "growl", "l1-weights", "none", "random")

BEFORE_AFTER = ("pruned", "finetuned")


@dataclass(frozen=True)
class Comparison:
    """The records of one experiment in one profile, summarised.

    Attributes:
        experiment: Name of the experiment.
        profile: Name of the profile.
        level: Setup level and budget of the comparison.
        table: One row per method and target; accuracies in [0, 1].
        records: What it was made from.
    """

    experiment: str
    profile: str
    level: str
    table: pd.DataFrame
    records: tuple[Record, ...] = ()

    @property
    def name(self) -> str:
        """Name of the files that belong to it."""
        return f"{self.experiment}-{self.profile}"

    @property
    def dense(self) -> Summary:
        """Top-1 of the dense networks of its seeds: what chance alone does."""
        return summarize(list({r.seed: r.states["dense"]["top1"] for r in self.records}.values()))

    @property
    def targets(self) -> list[float]:
        """Its targets, the mildest first; 1 (of methods that remove nothing) only where there is no other."""
        found = {record.macs_kept for record in self.records}
        return sorted(found - {1.0} or found, reverse=True)

    @property
    def by_accuracy(self) -> list[str]:
        """Its methods that remove something, the least accurate before fine-tuning (mean over the targets) first."""
        table = self.table[self.table["macs_kept"].isin(self.targets)]
        means = table.groupby("method")["pruned_top1"].mean()
        return [str(name) for name in means.sort_values(kind="stable").index]

    @property
    def others(self) -> list[str]:
        """Its methods outside the paper's comparison and its controls, the most accurate before fine-tuning first."""
        return [method for method in reversed(self.by_accuracy) if method not in MAIN_METHODS]

    def restricted(self, methods: Iterable[str]) -> Comparison:
        """Return the same comparison with some methods only."""
        wanted = set(methods)
        table = self.table[self.table["method"].isin(wanted)].reset_index(drop=True)
        return replace(self, table=table, records=tuple(r for r in self.records if r.method in wanted))


def compare(records: Sequence[Record]) -> list[Comparison]:
    """Summarise records, one comparison per experiment and profile, the complete runs only.

    Raises:
        UnfairComparisonError: Records of one comparison were made under different protocols.
    """
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record.complete:
            groups.setdefault((record.experiment, record.profile), []).append(record)
    found = []
    for (experiment, profile), group in sorted(groups.items()):
        check_comparable(group)
        found.append(Comparison(experiment, profile, level_name(group), _table(group), tuple(group)))
    return found


def _table(records: Sequence[Record]) -> pd.DataFrame:
    level = level_name(records)
    targets: dict[float, dict[str, list[Record]]] = {}
    for record in records:
        targets.setdefault(-record.macs_kept, {}).setdefault(record.method, []).append(record)
    rows: list[dict[str, object]] = []
    for _, methods in sorted(targets.items()):
        cells = [methods[name] for name in sorted(methods, key=rank)]
        marks = {state: _marks(cells, state) for state in BEFORE_AFTER}
        for position, cell in enumerate(cells):
            rows.append(_row(cell, level) | {f"{state}_mark": marks[state][position] for state in BEFORE_AFTER})
    return pd.DataFrame(rows)


def rank(method: str) -> tuple[int, str]:
    """Order methods: those of the paper's comparison, then OICSR's variants, then the rest by name."""
    if method in MAIN_METHODS:
        return MAIN_METHODS.index(method), method
    return (len(MAIN_METHODS) if method.startswith("oicsr") else len(MAIN_METHODS) + 1), method


def _marks(cells: Sequence[Sequence[Record]], state: str) -> list[str]:
    """Mark the best method of a target and those that cannot be told from it; not where seeds are too few."""
    if cells[0][0].profile == "quick" or min(map(len, cells)) < ENOUGH_SEEDS:
        return [""] * len(cells)
    return tied_with_best([{r.seed: float(r.states[state]["top1"]) for r in cell} for cell in cells])


def _title(record: Record) -> str:
    """Return the registry's title, so that all records of a method read alike; an unknown method keeps its record's."""
    try:
        return find_method(record.method).title
    except ValueError:
        return record.title


def _row(records: Sequence[Record], level: str) -> dict[str, object]:
    first = records[0]
    row: dict[str, object] = {
        "method": first.method,
        "title": _title(first),
        "macs_kept": first.macs_kept,
        "n": len(records),
        "strength": first.strength,
        "dense_macs": first.states["dense"]["macs"],
        "macs": _mean(records, lambda r: r.states["finetuned"]["macs"]),
        "macs_with_norm_pool": _mean(records, lambda r: r.states["finetuned"]["macs_with_norm_pool"]),
        "params": _mean(records, lambda r: r.states["finetuned"]["params"]),
    }
    row["flops_2_per_mac"] = 2 * float(row["macs"])  # type: ignore[arg-type]
    for state in STATES_OF[first.protocol]:
        summary = summarize([record.states[state]["top1"] for record in records])
        row |= {f"{state}_top1": summary.mean, f"{state}_sd": summary.sd, f"{state}_ci95": summary.half_width}
    for state in BEFORE_AFTER:
        change = summarize([r.states[state]["top1"] - r.states["dense"]["top1"] for r in records])
        row |= {f"{state}_delta": change.mean, f"{state}_delta_ci95": change.half_width}
    row |= {
        "surgery_loss": _mean(records, lambda r: r.states["regularized"]["top1"] - r.states["pruned"]["top1"]),
        "near_zero": _mean(records, lambda r: _structure(r, "near_zero")),
        "concentration": _mean(records, lambda r: _structure(r, "concentration")),
        "epochs": sum(first.epochs.values()),
        "compute_macs": _mean(records, lambda r: r.compute["total"]),
    }
    return row | {"level": level, "strength_source": first.strength_source, "seeds": _listed(records)}


def _listed(records: Sequence[Record]) -> str:
    return " ".join(str(record.seed) for record in records)


def _structure(record: Record, name: str) -> float:
    return float(record.structure.get("regularized", {}).get(name, math.nan))


def _mean(records: Sequence[Record], value: Callable[[Record], float]) -> float:
    return summarize([value(record) for record in records]).mean
