"""Comparison tables from records: one per experiment and profile, with what makes it fair beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from benchmarks.experiments import EXPERIMENTS
from benchmarks.methods import find_method
from benchmarks.protocol import check_comparable, level_name
from benchmarks.records import STATES, Record
from benchmarks.sheets import NOT_RUN, Sheet, sheet_csv, sheet_latex, sheet_markdown
from benchmarks.statistics import ENOUGH_SEEDS, Summary, summarize, tied_with_best

# The paper's comparison with its controls, in the order and with the looks that every table and figure gives them.
MAIN_METHODS = ("oicsr-gl", "gl-out", "gl-separate", "oicsr-growl", "growl", "l1-weights", "none", "random")
DENSE_ROW = "Dense, retrained (noise floor)"
BEFORE_AFTER = ("pruned", "finetuned")
PETA = 1e15


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


def _row(records: Sequence[Record], level: str) -> dict[str, object]:
    first = records[0]
    row: dict[str, object] = {
        "method": first.method,
        "title": first.title,
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


HEADER = (
    "Method",
    "n",
    "MACs (M)",
    "MACs kept",
    "Params (M)",
    "Dense",
    "Regularised",
    "Pruned",
    "Change",
    "Fine-tuned",
    "Change",
    "Epochs",
    "Compute",
    "Level",
)
TERMINAL_COLUMNS = 11


def display_rows(comparison: Comparison) -> list[list[str]]:
    """Return the cells of the table as people read them: per cent, mean ± standard deviation."""
    return [_noise_floor(comparison), *(_display(row) for row in comparison.table.to_dict("records"))]


def _noise_floor(comparison: Comparison) -> list[str]:
    first, dense = comparison.records[0], comparison.dense
    state = first.states["dense"]
    cells = [DENSE_ROW, str(dense.n), f"{state['macs'] / 1e6:.2f}", "100.0 %", f"{state['params'] / 1e6:.3f}"]
    rest = [percent(dense.mean, dense.sd), *["–"] * 5, str(first.epochs["dense"])]
    return [*cells, *rest, f"{first.compute['dense'] / PETA:.3g}", "–"]


def _display(row: dict[Any, Any]) -> list[str]:
    cells = [
        str(row["title"]),
        str(row["n"]),
        f"{row['macs'] / 1e6:.2f}",
        f"{100 * row['macs'] / row['dense_macs']:.1f} %",
        f"{row['params'] / 1e6:.3f}",
        percent(row["dense_top1"], row["dense_sd"]),
        percent(row["regularized_top1"], row["regularized_sd"]),
    ]
    for state in BEFORE_AFTER:
        cells.append(_marked(percent(row[f"{state}_top1"], row[f"{state}_sd"]), row[f"{state}_mark"]))
        cells.append(change(row[f"{state}_delta"], row[f"{state}_delta_ci95"]))
    return [*cells, str(row["epochs"]), f"{row['compute_macs'] / PETA:.3g}", str(row["level"])]


def _marked(text: str, mark: str) -> str:
    return {"best": f"**{text}**", "tied": f"{text} ≈"}.get(mark, text)


def percent(mean: float, sd: float) -> str:
    """Return an accuracy in per cent, with its standard deviation where there is one."""
    return f"{100 * mean:.2f}" if math.isnan(sd) else f"{100 * mean:.2f} ± {100 * sd:.2f}"


def change(mean: float, half_width: float) -> str:
    """Return a difference in points, with half the width of its 95 % interval where there is one."""
    text = f"{100 * mean:+.2f}"
    return text if math.isnan(half_width) else f"{text} (±{100 * half_width:.2f})"


def missing_rows(comparison: Comparison) -> list[list[str]]:
    """Return a row of "not run" for each method and target that the experiment's profile names and no record has."""
    experiment = EXPERIMENTS.get(comparison.experiment)
    if experiment is None or comparison.profile not in experiment.profiles:
        return []
    profile = experiment.profiles[comparison.profile]
    done = {(record.method, f"{record.macs_kept:g}") for record in comparison.records}
    rows = []
    for target in profile.macs_kept:
        for method in profile.methods:
            if (method, f"{target:g}") not in done:
                head = [find_method(method).title, "0", NOT_RUN, f"{100 * target:.1f} %"]
                rows.append([*head, *[NOT_RUN] * (len(HEADER) - len(head))])
    return rows


def notes(comparison: Comparison) -> str:
    """Return what a reader must know to read the table."""
    few = int(comparison.table["n"].min()) if len(comparison.table) else 0
    text = (
        "Top-1 in % on the test set after the last epoch, mean ± standard deviation over n seeds. Pruned: before "
        "fine-tuning. Change: less the same seed's dense network, in points (± half its 95 % interval). Bold: the best "
        "of its target; ≈: its paired 95 % interval to the best holds zero. MACs (the paper's FLOPs): convolutions and "
        "linear layers, batch 1. Epochs, and compute in 10^15 MACs: all training of one run, the dense network's too. "
        f"Setup level {comparison.level} (Wang et al.; A: equal epochs, B: equal compute)."
    )
    if few < ENOUGH_SEEDS:
        text += f" Fewer than {ENOUGH_SEEDS} seeds in some rows: no conclusion can be drawn from them."
    if comparison.profile == "quick":
        text += " Profile quick: shows that the pipeline works, says nothing about the claim."
    return text


def comparison_sheet(comparison: Comparison, title: str, *, with_missing: bool = True) -> Sheet:
    """Return the main table of a comparison."""
    rows = display_rows(comparison) + (missing_rows(comparison) if with_missing else [])
    numbers = comparison.table.drop(columns=["title", "level", "strength_source", "seeds"], errors="ignore")
    return Sheet(comparison.name, title, HEADER, rows, notes(comparison), numbers)


FAIRNESS_HEADER = (
    "Method",
    "MACs kept",
    "Strength",
    "Level",
    "Epochs",
    "Compute (10^15 MACs)",
    "MACs (M)",
    "with BatchNorm and pooling (M)",
    "FLOPs at 2 per MAC (M)",
    "Near zero before pruning",
    "Concentration",
    "Lost at surgery",
)
FAIRNESS_NOTES = (
    "Strength: as tuned on the validation split (*: not tuned). Epochs and compute: of one run, the dense network's "
    "too. MACs as three counters count them: convolutions and linear layers; as fvcore, with BatchNorm (2 per element) "
    "and pooling; and operations, 2 per MAC. Near zero: out-in-channels with a norm below a thousandth of their "
    "coupling's largest, after training with the regulariser. Concentration: twice the area between the sorted "
    "cumulative energy and the diagonal, 0 (all channels equal) to 1. Lost at surgery: top-1 of the regularised less "
    "that of the pruned network, in points."
)


def fairness_sheet(comparison: Comparison, title: str) -> Sheet:
    """Return the table of what each row cost and how it was counted."""
    rows = [_fairness_row(row) for row in comparison.table.to_dict("records")]
    columns = ["method", "macs_kept", "strength", "epochs", "compute_macs", "macs", "macs_with_norm_pool"]
    columns += ["flops_2_per_mac", "near_zero", "concentration", "surgery_loss"]
    numbers = comparison.table[columns]
    name = f"{comparison.name}-fairness"
    return Sheet(name, f"{title}: cost, counting and strengths", FAIRNESS_HEADER, rows, FAIRNESS_NOTES, numbers)


def _fairness_row(row: dict[Any, Any]) -> list[str]:
    tuned = str(row["strength_source"]).startswith(("tuned", "none needed"))
    strength = "–" if not row["strength"] else f"{row['strength']:.3g}{'' if tuned else ' *'}"
    return [
        str(row["title"]),
        f"{100 * row['macs'] / row['dense_macs']:.1f} %",
        strength,
        str(row["level"]),
        str(row["epochs"]),
        f"{row['compute_macs'] / PETA:.3g}",
        *[f"{row[name] / 1e6:.2f}" for name in ("macs", "macs_with_norm_pool", "flops_2_per_mac")],
        f"{100 * row['near_zero']:.1f} %",
        f"{row['concentration']:.3f}",
        f"{100 * row['surgery_loss']:.2f}",
    ]


def to_csv(comparison: Comparison) -> str:
    """Return the numbers of the main table."""
    return sheet_csv(comparison_sheet(comparison, comparison.name))


def to_markdown(comparison: Comparison) -> str:
    """Return the main table as Markdown, its notes below."""
    return sheet_markdown(comparison_sheet(comparison, comparison.name))


def to_latex(comparison: Comparison) -> str:
    """Return the main table as LaTeX for the booktabs package."""
    return sheet_latex(comparison_sheet(comparison, comparison.name))


def to_text(comparison: Comparison) -> str:
    """Return the table in aligned columns, for a terminal."""
    plain = [[cell.replace("**", "") for cell in row] for row in display_rows(comparison)]
    rows = [row[:TERMINAL_COLUMNS] for row in [list(HEADER), *plain]]
    widths = [max(len(row[column]) for row in rows) for column in range(TERMINAL_COLUMNS)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
