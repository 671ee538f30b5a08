"""Comparison tables from records: numbers as CSV, and the same for people as Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from benchmarks.protocol import check_comparable
from benchmarks.records import STATES, Record
from benchmarks.statistics import ENOUGH_SEEDS, Summary, summarize

NOT_RUN = "not run"


@dataclass(frozen=True)
class Comparison:
    """The records of one experiment in one profile, summarised.

    Attributes:
        experiment: Name of the experiment.
        profile: Name of the profile.
        level: Setup level of the comparison.
        table: One row per method and target; accuracies in [0, 1].
    """

    experiment: str
    profile: str
    level: str
    table: pd.DataFrame

    @property
    def name(self) -> str:
        """Name of the files that belong to it."""
        return f"{self.experiment}-{self.profile}"


def compare(records: Sequence[Record]) -> list[Comparison]:
    """Summarise records, one comparison per experiment and profile, the complete runs only.

    Raises:
        UnfairComparisonError: Records of one comparison were made under different protocols.
    """
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record.complete:
            groups.setdefault((record.experiment, record.profile), []).append(record)
    return [
        Comparison(experiment, profile, check_comparable(group), _table(group))
        for (experiment, profile), group in sorted(groups.items())
    ]


def _table(records: Sequence[Record]) -> pd.DataFrame:
    level = check_comparable(records)
    cells: dict[tuple[float, str], list[Record]] = {}
    for record in records:
        cells.setdefault((-record.macs_kept, record.method), []).append(record)
    rows = [_row(cells[key], level) for key in sorted(cells, key=lambda key: (key[0], _rank(key[1]), key[1]))]
    return pd.DataFrame(rows)


def _rank(method: str) -> int:
    """Put OICSR first."""
    return 0 if method.startswith("oicsr") else 1


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
        "params": _mean(records, lambda r: r.states["finetuned"]["params"]),
    }
    for state in STATES:
        summary = summarize([record.states[state]["top1"] for record in records])
        row |= {f"{state}_top1": summary.mean, f"{state}_sd": summary.sd, f"{state}_ci95": summary.half_width}
    for state in ("pruned", "finetuned"):
        change = summarize([r.states[state]["top1"] - r.states["dense"]["top1"] for r in records])
        row |= {f"{state}_delta": change.mean, f"{state}_delta_ci95": change.half_width}
    row |= {"epochs": sum(first.epochs.values()), "level": level, "seeds": " ".join(str(r.seed) for r in records)}
    return row


def _mean(records: Sequence[Record], value: Callable[[Record], float]) -> float:
    return summarize([value(record) for record in records]).mean


def to_csv(comparison: Comparison) -> str:
    """Return the numbers, accuracies in [0, 1], six significant digits; empty where there is none (n = 1)."""
    return str(comparison.table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


HEADER = (
    "Method",
    "n",
    "MACs (M)",
    "MACs kept",
    "Params (M)",
    "Dense",
    "Regularised",
    "Pruned",
    "Fine-tuned",
    "Change",
)


def display_rows(comparison: Comparison) -> list[list[str]]:
    """Return the cells of the table as people read them: per cent, mean ± standard deviation."""
    rows = []
    for row in comparison.table.to_dict("records"):
        states = [percent(row[f"{state}_top1"], row[f"{state}_sd"]) for state in STATES]
        rows.append(
            [
                str(row["title"]),
                str(row["n"]),
                f"{row['macs'] / 1e6:.2f}",
                f"{100 * row['macs'] / row['dense_macs']:.1f} %",
                f"{row['params'] / 1e6:.3f}",
                *states,
                f"{100 * row['finetuned_delta']:+.2f}",
            ]
        )
    return rows


def percent(mean: float, sd: float) -> str:
    """Return an accuracy in per cent, with its standard deviation where there is one."""
    return f"{100 * mean:.2f}" if math.isnan(sd) else f"{100 * mean:.2f} ± {100 * sd:.2f}"


def notes(comparison: Comparison) -> str:
    """Return what a reader must know to read the table."""
    table = comparison.table
    few = int(table["n"].min())
    text = (
        "Top-1 in % on the test set after the last epoch, mean ± standard deviation over n seeds. Pruned: before "
        "fine-tuning. Change: fine-tuned less the same seed's dense network. MACs (the paper's FLOPs): convolutions "
        f"and linear layers, batch 1. Every row: {table['epochs'].iloc[0]} epochs in all, setup level "
        f"{comparison.level} (Wang et al.)."
    )
    if few < ENOUGH_SEEDS:
        text += f" Fewer than {ENOUGH_SEEDS} seeds in some rows: no conclusion can be drawn from them."
    if comparison.profile == "quick":
        text += " Profile quick: shows that the pipeline works, says nothing about the claim."
    return text


def to_markdown(comparison: Comparison) -> str:
    """Return the table as Markdown, its notes below."""
    align = ["---", *["---:"] * (len(HEADER) - 1)]
    lines = [_markdown_row(HEADER), _markdown_row(align), *map(_markdown_row, display_rows(comparison))]
    return "\n".join([*lines, "", notes(comparison), ""])


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def to_latex(comparison: Comparison) -> str:
    """Return the table as LaTeX for the booktabs package."""
    body = [" & ".join(map(_escape, row)) + r" \\" for row in display_rows(comparison)]
    lines = [
        f"% {notes(comparison)}",
        r"\begin{tabular}{l" + "r" * (len(HEADER) - 1) + "}",
        r"\toprule",
        " & ".join(map(_escape, HEADER)) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        "",
    ]
    return "\n".join(lines)


def _escape(text: str) -> str:
    return text.replace("&", r"\&").replace("%", r"\%").replace("±", r"$\pm$").replace("_", r"\_")


def to_text(comparison: Comparison) -> str:
    """Return the table in aligned columns, for a terminal."""
    rows = [list(HEADER), *display_rows(comparison)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


__all__ = ["Comparison", "Summary", "compare", "display_rows", "notes", "to_csv", "to_latex", "to_markdown", "to_text"]
