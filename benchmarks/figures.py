"""Figures from records: SVG and PNG, the same bytes every time, told apart without colour."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.tables import Comparison

# Okabe and Ito's palette, told apart in every kind of colour blindness
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h", "p")
STYLE: Any = {
    "svg.hashsalt": "oicsr",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": 160,
}


@contextmanager
def style() -> Iterator[None]:
    """Draw in the suite's style."""
    with mpl.rc_context(STYLE):
        yield


def render(figure: Figure) -> dict[str, bytes]:
    """Return a figure as SVG and PNG, without dates and versions in them."""
    files = {}
    for suffix, metadata in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, metadata=metadata)
        files[suffix] = buffer.getvalue()
    return files


def accuracy_against_macs(comparison: Comparison, title: str) -> dict[str, bytes]:
    """Draw accuracy against MACs, before and after fine-tuning, with 95 % intervals over seeds."""
    with style():
        figure = Figure(figsize=(8.4, 4.2), layout="constrained")
        panels = figure.subplots(1, 2, sharex=True)
        table = comparison.table
        for axes, state, name in zip(panels, ("pruned", "finetuned"), ("before", "after"), strict=True):
            axes.set_title(f"{name} fine-tuning", fontsize=9)
            _dense_line(axes, table)
            for position, (method, rows) in enumerate(table.groupby("method", sort=False)):
                _method_line(axes, rows, state, position, str(method))
            axes.set_xlabel("MACs kept (% of the dense network's)")
        panels[0].set_ylabel("test top-1 (%)")
        panels[0].invert_xaxis()
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), fontsize=8)
        seeds = int(table["n"].min()), int(table["n"].max())
        count = f"n = {seeds[0]}" if seeds[0] == seeds[1] else f"n = {seeds[0]} to {seeds[1]}"
        figure.suptitle(f"{title} · profile {comparison.profile}, {count} seeds", fontsize=10)
        return render(figure)


def _dense_line(axes: Axes, table: pd.DataFrame) -> None:
    dense = 100 * float(table["dense_top1"].mean())
    axes.axhline(dense, color="black", linewidth=0.9, linestyle=(0, (4, 3)), label="dense")


def _method_line(axes: Axes, rows: pd.DataFrame, state: str, position: int, method: str) -> None:
    rows = rows.sort_values("macs")
    count = len(rows)
    x = 100 * rows["macs"] / rows["dense_macs"] + 0.25 * (position % 5 - 2) * (count == 1)
    errors = [0.0 if math.isnan(e) else 100 * e for e in rows[f"{state}_ci95"]]
    ours = method.startswith("oicsr")
    axes.errorbar(
        x,
        100 * rows[f"{state}_top1"],
        yerr=errors if any(errors) else None,
        color=COLOURS[position % len(COLOURS)],
        marker=MARKERS[position % len(MARKERS)],
        markersize=5.5 if ours else 4.5,
        linewidth=2.0 if ours else 1.2,
        capsize=2.5,
        zorder=3 if ours else 2,
        label=str(rows["title"].iloc[0]),
    )
