"""Figures from records: SVG and PNG, the same bytes every time, told apart without colour.

A method of the paper's comparison has the same colour, marker and line in every figure; the others are drawn grey
together, and by name in the figure of all methods.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.analysis.comparison import MAIN_METHODS, Comparison
from benchmarks.methods.registry import find_method
from benchmarks.reporting.figures.style import (
    BEST_OTHER,
    OTHERS,
    Files,
    Look,
    _others_label,
    headline,
    legend_below,
    look_of,
    main_methods,
    render,
    seeds_text,
    style,
)


def accuracy_against_macs(comparison: Comparison, title: str) -> Files:
    """Draw accuracy against MACs, before and after fine-tuning, with 95 % intervals over seeds."""
    if len(comparison.targets) == 1:
        return all_methods(comparison, title)
    with style():
        figure = Figure(figsize=(8.4, 4.4), layout="constrained")
        panels = figure.subplots(1, 2)
        for axes, state, name in zip(panels, ("pruned", "finetuned"), ("before", "after"), strict=True):
            axes.set_title(f"{name} fine-tuning", fontsize=9)
            _curves(axes, comparison, state)
            axes.set_xlabel("MACs kept (% of the dense network's)")
            axes.set_xticks([100 * t for t in comparison.targets], [f"{100 * t:.3g}" for t in comparison.targets])
            axes.invert_xaxis()
        panels[0].set_ylabel("test top-1 (%)")
        legend_below(figure, panels[0])
        headline(figure, f"{title} · {seeds_text(comparison)}")
        return render(figure)


def _curves(axes: Axes, comparison: Comparison, state: str) -> None:
    axes.axhline(100 * comparison.dense.mean, color="black", linewidth=0.9, linestyle=(0, (4, 3)), label="dense")
    for method in main_methods(comparison):
        _method_line(axes, comparison.table, state, method, look_of(method))
    others = comparison.others
    if others:  # the best of them by name: a rival that wins must not drown in grey
        best = Look(BEST_OTHER, "p", (0, (7, 1)), f"{find_method(others[0]).title} (best of the others)")
        _method_line(axes, comparison.table, state, others[0], best)
    low, high = axes.get_ylim()
    table = comparison.table
    for position, method in enumerate(others[1:]):
        rows = table[table["method"] == method].sort_values("macs")
        label = _others_label(others[1:]) if position == 0 else None
        axes.plot(_kept(rows), 100 * rows[f"{state}_top1"], color=OTHERS, linewidth=0.8, zorder=1, label=label)
    if state != "finetuned":  # there, a collapsed rival must not squeeze what differs by tenths
        low, high = axes.get_ylim()
    axes.set_ylim(max(low, -3), min(high, 103))  # error bars of few seeds reach beyond what an accuracy can be


def _kept(rows: pd.DataFrame) -> pd.Series:
    return 100 * rows["macs"] / rows["dense_macs"]


def _method_line(axes: Axes, table: pd.DataFrame, state: str, method: str, look: Look) -> None:
    rows = table[table["method"] == method].sort_values("macs")
    axes.errorbar(
        _kept(rows),
        100 * rows[f"{state}_top1"],
        yerr=_errors(rows[f"{state}_ci95"].tolist()),
        color=look.colour,
        marker=look.marker,
        linestyle=look.line,
        markersize=6 if look.ours else 5,
        linewidth=2.0 if look.ours else 1.3,
        elinewidth=0.9,
        capsize=2.5,
        zorder=4 if look.ours else 3,
        label=look.label,
    )


def _errors(half_widths: Sequence[float]) -> list[float] | None:
    errors = [0.0 if math.isnan(half) else 100 * half for half in half_widths]
    return errors if any(errors) else None


def all_methods(comparison: Comparison, title: str) -> Files:
    """Draw every method by name, one row of panels per state, at every target, the best before fine-tuning on top."""
    targets = comparison.targets
    methods = comparison.by_accuracy
    with style():
        height = 1.6 + 0.21 * len(methods)
        width = max(7.6, 2.6 + 2.1 * len(targets))
        figure = Figure(figsize=(width, height), layout="constrained")
        panels = np.atleast_1d(figure.subplots(1, max(len(targets), 2), sharey=True))
        if len(targets) == 1:
            _dots(panels[0], comparison, targets[0], methods, ("pruned",), "before fine-tuning")
            _dots(panels[1], comparison, targets[0], methods, ("finetuned",), "after fine-tuning")
        else:
            for axes, target in zip(panels, targets, strict=True):
                _dots(axes, comparison, target, methods, ("pruned", "finetuned"), f"{100 * target:.0f} % of the MACs")
            legend_below(figure, panels[0])
        panels[0].set_yticks(range(len(methods)), [find_method(name).title for name in methods], fontsize=8)
        panels[0].set_ylim(-0.7, len(methods) - 0.3)
        for axes in panels:
            axes.set_xlabel("test top-1 (%)\ndashed: dense" if axes is panels[0] else "test top-1 (%)", fontsize=8)
        headline(figure, _single_target_title(comparison, title))
        return render(figure)


def _single_target_title(comparison: Comparison, title: str) -> str:
    at = f" · {100 * comparison.targets[0]:.0f} % of the MACs" if len(comparison.targets) == 1 else ""
    return f"{title}{at}\n{seeds_text(comparison)}"


def _dots(
    axes: Axes, comparison: Comparison, target: float, methods: Sequence[str], states: Sequence[str], name: str
) -> None:
    axes.set_title(name, fontsize=9)
    axes.axvline(100 * comparison.dense.mean, color="black", linewidth=0.9, linestyle=(0, (4, 3)))
    table = comparison.table[comparison.table["macs_kept"] == target].set_index("method")
    for state in states:
        filled = state == "finetuned"
        for position, method in enumerate(methods):
            if method not in table.index:
                continue
            half = float(table[f"{state}_ci95"][method])
            ours = method in MAIN_METHODS
            axes.errorbar(
                100 * float(table[f"{state}_top1"][method]),
                position,
                xerr=None if math.isnan(half) else 100 * half,
                marker="o" if filled else "D",
                color=look_of(method).colour if ours else "#606060",
                markerfacecolor=None if filled else "white",
                markersize=4.5,
                elinewidth=0.9,
                capsize=2,
                linestyle="none",
                label=f"{'after' if filled else 'before'} fine-tuning" if position == 0 else None,
            )
