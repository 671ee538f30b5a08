"""Measured speed-ups beside those that the MACs promise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from benchmarks.escape import for_figure
from benchmarks.reporting.figures.style import WIDTH, Files, headline, legend_below, render, style

PROMISED: Any = {"marker": "|", "markersize": 12, "markeredgewidth": 1.6, "linestyle": "none"}


def latency_against_macs(device: str, section: Mapping[str, Any]) -> Files | None:
    """Draw the measured speed-ups of each network beside that which the MACs promise; None without rows."""
    rows = [row for row in section.get("rows", []) if row.get("x measured") and row.get("x MACs")]
    if not rows:
        return None
    lines = list(dict.fromkeys((row["model"], row["batch"], row["backend"]) for row in rows))
    with style():
        figure = Figure(figsize=(WIDTH, 2.4 + 0.3 * len(lines)), layout="constrained")
        axes = figure.subplots()
        for y, line in enumerate(lines):
            group = [row for row in rows if (row["model"], row["batch"], row["backend"]) == line]
            axes.plot([row["x MACs"] for row in group], [y] * len(group), color="black", **PROMISED)
            for row in group:
                face = "white" if row["widths"] == "any" else "black"
                axes.plot(row["x measured"], y, "o", color="black", markerfacecolor=face, markersize=6)
        axes.plot([], [], color="black", label="expected from the MACs", **PROMISED)
        axes.plot([], [], "o", color="black", markerfacecolor="white", markersize=6, label="measured, any widths")
        axes.plot([], [], "o", color="black", markersize=6, label="measured, widths rounded")
        labels = [for_figure(f"{model}, batch {batch}, {backend}") for model, batch, backend in lines]
        axes.set_yticks(range(len(lines)), labels)
        axes.invert_yaxis()
        axes.set_xlim(left=min(1.0, *(row["x measured"] for row in rows)) - 0.05)
        axes.set_xlabel("speed-up over the dense network")
        legend_below(figure, axes)
        headline(figure, f"Latency of pruned networks, {device}")
        return render(figure)
