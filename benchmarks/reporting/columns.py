"""The columns of the comparison tables, one line each: heading, cell of a row, cell of the dense networks.

The rows' numbers are made in `analysis/comparison.py`; the terminal, Markdown and LaTeX tables are made from here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.analysis.comparison import AFTER_SURGERY, Comparison
from benchmarks.analysis.statistics import ENOUGH_SEEDS
from benchmarks.reporting.numbers import NONE, change, percent, share

Row = dict[Any, Any]

DENSE_ROW = "Dense, retrained (noise floor)"

PETA = 1e15

STATE_TITLES = {
    "dense": "Dense",
    "regularized": "Regularised",
    "pruned": "Pruned",
    "recalibrated": "Recalibrated",
    "finetuned": "Fine-tuned",
}


def _nothing(comparison: Comparison) -> str:
    return NONE


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        header: Its heading.
        cell: Cell of a method at a target.
        dense: Cell of the dense networks.
        terminal: Whether the narrow table of the terminal shows it too.
    """

    header: str
    cell: Callable[[Row], str]
    dense: Callable[[Comparison], str] = _nothing
    terminal: bool = True


def _dense_state(comparison: Comparison) -> dict[str, Any]:
    return dict(comparison.records[0].states["dense"])


def _accuracy(state: str) -> Column:
    def cell(row: Row) -> str:
        text = percent(row[f"{state}_top1"], row[f"{state}_sd"])
        marked = {"best": f"**{text}**", "tied": f"{text} ≈", "unknown": f"{text} °"}
        return marked.get(row.get(f"{state}_mark", ""), text)

    return Column(STATE_TITLES[state], cell)


def _change(state: str) -> Column:
    def cell(row: Row) -> str:
        # over two seeds it is 13 standard errors wide: more points than there are
        known = row["n"] >= ENOUGH_SEEDS
        return change(row[f"{state}_delta"], row[f"{state}_delta_ci95"] if known else math.nan)

    return Column("Change", cell, terminal=state == AFTER_SURGERY[-1])


COLUMNS: tuple[Column, ...] = (
    Column("Method", lambda row: str(row["title"]), lambda c: DENSE_ROW),
    Column("n", lambda row: str(row["n"]), lambda c: str(c.dense.n)),
    Column("MACs (M)", lambda row: f"{row['macs'] / 1e6:.2f}", lambda c: f"{_dense_state(c)['macs'] / 1e6:.2f}", False),
    Column("MACs kept", lambda row: share(row["macs"] / row["dense_macs"]), lambda c: share(1)),
    Column(
        "Params (M)",
        lambda row: f"{row['params'] / 1e6:.3f}",
        lambda c: f"{_dense_state(c)['params'] / 1e6:.3f}",
        False,
    ),
    Column(
        "Dense",
        lambda row: percent(row["dense_top1"], row["dense_sd"]),
        lambda c: percent(c.dense.mean, c.dense.sd),
    ),
    _accuracy("regularized"),
    *(column for state in AFTER_SURGERY for column in (_accuracy(state), _change(state))),
    Column("Epochs", lambda row: str(row["epochs"]), lambda c: str(c.records[0].epochs.get("dense", 0)), False),
    Column(
        "Compute",
        lambda row: f"{row['compute_macs'] / PETA:.3g}",
        lambda c: f"{c.records[0].compute.get('dense', 0) / PETA:.3g}",
        False,
    ),
    Column("Level", lambda row: str(row["level"]), terminal=False),
)


def _strength(row: Row) -> str:
    return NONE if not row["strength"] else f"{row['strength']:.3g}{'' if row['tuned'] else ' *'}"


COST_COLUMNS: tuple[Column, ...] = (
    Column("Method", lambda row: str(row["title"])),
    Column("MACs kept", lambda row: share(row["macs"] / row["dense_macs"])),
    Column("Strength", _strength),
    Column("Level", lambda row: str(row["level"])),
    Column("Epochs", lambda row: str(row["epochs"])),
    Column("Compute (10^15 MACs)", lambda row: f"{row['compute_macs'] / PETA:.3g}"),
    Column("MACs (M)", lambda row: f"{row['macs'] / 1e6:.2f}"),
    Column("with BatchNorm and pooling (M)", lambda row: f"{row['macs_with_norm_pool'] / 1e6:.2f}"),
    Column("FLOPs at 2 per MAC (M)", lambda row: f"{row['flops_2_per_mac'] / 1e6:.2f}"),
    Column("Near zero before pruning", lambda row: share(row["near_zero"])),
    Column("Concentration", lambda row: f"{row['concentration']:.3f}"),
    Column("Lost at surgery", lambda row: f"{100 * row['surgery_loss']:.2f}".replace("-", "−")),
)
