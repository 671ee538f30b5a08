"""Comparisons: the records of one experiment and profile as one frame, a row per method and target."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from benchmarks.analysis.evidence import CURRENT_PROTOCOL, Evidence, evidence_of
from benchmarks.analysis.fairness import check_comparable, level_name
from benchmarks.analysis.statistics import ENOUGH_SEEDS, Summary, summarize, tied_with_best
from benchmarks.analysis.strata import carries_verdicts, network_of
from benchmarks.analysis.tuned import is_tuned, searched_state, tuned_for
from benchmarks.methods.registry import find_method
from benchmarks.records.origins import Origins, origins_of
from benchmarks.records.record import STATES, Record
from benchmarks.records.table_names import table_name

# The methods that stand first in every table, in this order: the paper's with its controls, and the strongest rivals.
MAIN_METHODS = (
    "oicsr-gl",
    "oicsr-gl-norm",
    "gl-out",
    "gl-separate",
    "depgraph",
    "slimming",
    "l1-weights",
    "none",
    "random",
    "oicsr-growl",
    "growl",
    "oicsr-gl-prox",
    "gl-out-prox",
)

# Those that figures draw as lines: more could not be distinguished.
DRAWN_METHODS = MAIN_METHODS[:9]

DENSE_LONG = "dense-long"  # the dense network, trained for as many epochs as the others: in every table

AFTER_SURGERY = ("pruned", "recalibrated", "finetuned")

# Of each state, as records hold it. Another one needs its name here, and a column in reporting/columns.py.
METRICS = ("top1",)


@dataclass(frozen=True)
class Comparison:
    """The records of one experiment in one profile, summarised.

    Attributes:
        experiment: Name of the experiment.
        profile: Name of the profile.
        level: Setup level and budget of the comparison.
        table: One row per method and target; accuracies in [0, 1], NaN where a state was not run.
        records: What it was made from.
        superseded: Records of older versions of the protocol that were left out.
        failed: Records of runs that ended without a result, of the same protocol.
    """

    experiment: str
    profile: str
    level: str
    table: pd.DataFrame
    records: tuple[Record, ...] = ()
    superseded: int = 0
    failed: tuple[Record, ...] = ()

    @property
    def name(self) -> str:
        """Name of the files that belong to it."""
        return table_name(self.experiment, self.profile)

    @property
    def protocol(self) -> int:
        """Version of the protocol of all its records."""
        return self.records[0].protocol

    @property
    def current(self) -> bool:
        """Whether its protocol is the present one; others are in no headline."""
        return self.protocol == CURRENT_PROTOCOL

    @property
    def evidence(self) -> Evidence:
        """The tier of its records."""
        return evidence_of(self.records)

    @property
    def origins(self) -> Origins:
        """Commits, versions and devices that its rows come from."""
        return origins_of(self.records)

    @property
    def untuned(self) -> list[str]:
        """Titles of the methods whose strength was not tuned at all."""
        return list(
            dict.fromkeys(find_method(r.method).title for r in self.records if not is_tuned(r) and not tuned_for(r))
        )

    @property
    def tuned_for_others(self) -> list[str]:
        """Experiments of another network, data or training that strengths were tuned for."""
        return sorted({owner for r in self.records if (owner := tuned_for(r))})

    @property
    def chosen_late(self) -> bool:
        """Whether strengths were chosen for the fine-tuned network: claims are about those chosen before."""
        return any(searched_state(record) == "finetuned" for record in self.records)

    @property
    def judges(self) -> bool:
        """Whether a verdict may rest on its strengths, where any of its methods has one."""
        with_strength = [record for record in self.records if record.strength]
        return not with_strength or any(map(carries_verdicts, with_strength))

    @property
    def dense(self) -> Summary:
        """Top-1 of the dense networks of its seeds: what chance alone does."""
        return summarize(list({r.seed: r.states["dense"]["top1"] for r in self.records}.values()))

    @property
    def dense_long(self) -> Summary | None:
        """Top-1 of the dense networks that were trained for as many epochs as the others; None where not run."""
        values = [r.states["finetuned"]["top1"] for r in self.records if r.method == DENSE_LONG]
        return summarize(values) if values else None

    @property
    def targets(self) -> list[float]:
        """Its targets, the mildest first; 1 (of methods that remove nothing) only where there is no other."""
        found = {record.macs_kept for record in self.records}
        return sorted(found - {1.0} or found, reverse=True)

    @property
    def by_accuracy(self) -> list[str]:
        """Its methods that remove something, the least accurate before fine-tuning (mean over the targets) first.

        Those that lack targets stand before all others: their means are over milder targets, or harder ones.
        """
        table = self.table[self.table["macs_kept"].isin(self.targets)]
        found = table.groupby("method")["pruned_top1"].agg(["count", "mean"])
        return [str(name) for name in found.sort_values(["count", "mean"], kind="stable").index]

    @property
    def others(self) -> list[str]:
        """Its methods outside the paper's comparison and its controls, the most accurate before fine-tuning first.

        Those with too few seeds are left out, unless all have too few: the best of few would be the luckiest.
        """
        found = [method for method in reversed(self.by_accuracy) if method not in MAIN_METHODS]
        seeds = self.table.groupby("method")["n"].max()
        return [method for method in found if seeds[method] >= ENOUGH_SEEDS] or found

    def by_seed(self, method: str, target: float) -> dict[int, Record]:
        """Return the records of a method at a target."""
        return {r.seed: r for r in self.records if (r.method, r.macs_kept) == (method, target)}

    def by_network(self, method: str, target: float) -> dict[str, Record]:
        """Return the same by dense network: what is compared network by network starts from the same one."""
        return {network_of(record): record for record in self.by_seed(method, target).values()}

    def restricted(self, methods: Iterable[str]) -> Comparison:
        """Return the same comparison with some methods only: the best and the level are those of what is left."""
        wanted = set(methods)
        records, failed = (tuple(r for r in group if r.method in wanted) for group in (self.records, self.failed))
        return replace(self, level=level_name(records), table=_table(records), records=records, failed=failed)


def compare(records: Sequence[Record]) -> list[Comparison]:
    """Summarise records, one comparison per experiment and profile with a complete run; failed ones stand beside.

    While an experiment is repeated under a new protocol, its older records are left out.

    Raises:
        UnfairComparisonError: Records of one comparison were made under different conditions.
    """
    groups: dict[tuple[str, str], list[Record]] = {}
    without: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        (groups if record.complete else without).setdefault((record.experiment, record.profile), []).append(record)
    found = []
    for (experiment, profile), group in sorted(groups.items()):
        newest = max(record.protocol for record in group)
        used = [record for record in group if record.protocol == newest]
        check_comparable(used)
        left_out = len(group) - len(used)
        failed = tuple(record for record in without.get((experiment, profile), ()) if record.protocol == newest)
        found.append(Comparison(experiment, profile, level_name(used), _table(used), tuple(used), left_out, failed))
    return found


def _table(records: Sequence[Record]) -> pd.DataFrame:
    level = level_name(records)
    targets: dict[float, dict[str, list[Record]]] = {}
    for record in records:
        targets.setdefault(-record.macs_kept, {}).setdefault(record.method, []).append(record)
    rows: list[dict[str, object]] = []
    for _, methods in sorted(targets.items()):
        cells = [methods[name] for name in sorted(methods, key=rank)]
        marks = {state: _marks(cells, state) for state in AFTER_SURGERY}
        for position, cell in enumerate(cells):
            rows.append(_row(cell, level) | {f"{state}_mark": marks[state][position] for state in AFTER_SURGERY})
    return pd.DataFrame(rows)


def rank(method: str) -> tuple[int, str]:
    """Order methods: those of the paper's comparison, then OICSR's variants, then the rest by name."""
    if method in MAIN_METHODS:
        return MAIN_METHODS.index(method), method
    return (len(MAIN_METHODS) if method.startswith("oicsr") else len(MAIN_METHODS) + 1), method


def _marks(cells: Sequence[Sequence[Record]], state: str) -> list[str]:
    """Mark methods at a target as `tied_with_best` does, where several have enough seeds; the others are unknown."""
    enough = [place for place, cell in enumerate(cells) if len(cell) >= ENOUGH_SEEDS]
    marks = [""] * len(cells)
    missing = any(state not in record.states for place in enough for record in cells[place])
    if len(enough) < 2 or cells[0][0].profile == "quick" or missing:
        return marks
    marks = ["unknown"] * len(cells)
    found = tied_with_best([{network_of(r): float(r.states[state]["top1"]) for r in cells[place]} for place in enough])
    for place, mark in zip(enough, found, strict=True):
        marks[place] = mark
    return marks


def title_of(record: Record) -> str:
    """Return the registry's title, so that all records of a method read alike; an unknown method keeps its record's."""
    try:
        return find_method(record.method).title
    except ValueError:
        return record.title


def _row(records: Sequence[Record], level: str) -> dict[str, object]:
    first = records[0]
    row: dict[str, object] = {
        "method": first.method,
        "title": title_of(first),
        "macs_kept": first.macs_kept,
        "n": len(records),
        "strength": first.strength,
        "dense_macs": first.states["dense"]["macs"],
        "macs": _mean(records, lambda r: r.states["finetuned"]["macs"]),
        "macs_with_norm_pool": _mean(records, lambda r: r.states["finetuned"]["macs_with_norm_pool"]),
        "params": _mean(records, lambda r: r.states["finetuned"]["params"]),
    }
    row["flops_2_per_mac"] = 2 * float(row["macs"])  # type: ignore[arg-type]
    for state in STATES:
        for metric in METRICS:
            summary = _over_seeds(records, state, metric)
            name = f"{state}_{metric}"
            row |= {name: summary.mean, _beside(name, "sd"): summary.sd, _beside(name, "ci95"): summary.half_width}
    for state in AFTER_SURGERY:
        change = _over_seeds(records, state, "top1", less="dense")
        row |= {f"{state}_delta": change.mean, f"{state}_delta_ci95": change.half_width}
    row |= {
        "surgery_loss": _mean(records, lambda r: r.states["regularized"]["top1"] - r.states["pruned"]["top1"]),
        "near_zero": _mean(records, lambda r: _structure(r, "near_zero")),
        "concentration": _mean(records, lambda r: _structure(r, "concentration")),
        "epochs": sum(first.epochs.values()),
        "compute_macs": _mean(records, lambda r: r.compute["total"]),
    }
    seeds = " ".join(str(record.seed) for record in records)
    return row | {"level": level, "tuned": all(map(is_tuned, records)), "seeds": seeds}


def _beside(name: str, statistic: str) -> str:
    """Name the column beside a metric's mean; that of accuracy is short, as it always was."""
    return f"{name.removesuffix('_top1')}_{statistic}"


def _over_seeds(records: Sequence[Record], state: str, metric: str, less: str | None = None) -> Summary:
    """Summarise a metric of a state, or how far it is above that of another; NaN where one record lacks it."""
    states = [state] if less is None else [state, less]
    if any(metric not in record.states.get(name, {}) for record in records for name in states):
        return Summary(math.nan, math.nan, 0, math.nan)
    base = [record.states[less][metric] if less else 0.0 for record in records]
    return summarize([record.states[state][metric] - b for record, b in zip(records, base, strict=True)])


def _structure(record: Record, name: str) -> float:
    return float(record.structure.get("regularized", {}).get(name, math.nan))


def _mean(records: Sequence[Record], value: Callable[[Record], float]) -> float:
    return summarize([value(record) for record in records]).mean
