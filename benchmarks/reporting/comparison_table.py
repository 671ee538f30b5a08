"""Comparison tables from records: one per experiment and profile, with what makes it fair beside it."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.analysis.comparison import BEFORE_AFTER, Comparison
from benchmarks.analysis.statistics import ENOUGH_SEEDS
from benchmarks.escape import one_line
from benchmarks.experiments import EXPERIMENTS
from benchmarks.methods.registry import find_method
from benchmarks.reporting.table_files import NOT_RUN, Sheet, sheet_csv, sheet_latex, sheet_markdown

DENSE_ROW = "Dense, retrained (noise floor)"

PETA = 1e15

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
    plain = [[one_line(cell.replace("**", "")) for cell in row] for row in display_rows(comparison)]
    rows = [row[:TERMINAL_COLUMNS] for row in [list(HEADER), *plain]]
    widths = [max(len(row[column]) for row in rows) for column in range(TERMINAL_COLUMNS)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
