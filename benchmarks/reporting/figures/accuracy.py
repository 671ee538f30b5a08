"""Accuracy figures from records: before fine-tuning, recalibrated and after it, with 95 % intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator

from benchmarks.analysis.comparison import AFTER_SURGERY, DRAWN_METHODS, MAIN_METHODS, Comparison
from benchmarks.methods.registry import find_method
from benchmarks.reporting.figures.style import (
    DENSE_LINE,
    LEAST_SEEDS,
    LONG_LINE,
    WIDTH,
    Files,
    Look,
    dodge,
    drawn_methods,
    headline,
    label_of,
    legend_below,
    legend_in,
    look_of,
    render,
    seeds_text,
    style,
)
from benchmarks.reporting.numbers import NOT_RUN

STATE_TITLES = {
    "pruned": "before fine-tuning",
    "recalibrated": "recalibrated",
    "finetuned": "after fine-tuning",
}

STATE_MARKERS: dict[str, Any] = {
    "pruned": {"marker": "D", "markerfacecolor": "white"},
    "recalibrated": {"marker": "^", "markerfacecolor": "white"},
    "finetuned": {"marker": "o"},
}

LABEL = 10  # points; of the many names in the figure of all methods, which fills a page
NARROW_LABEL = 8.5  # of the numbers below its panels, where there are more than MOST_WIDE
MOST_WIDE = 3


def accuracy_against_macs(comparison: Comparison, title: str) -> Files:
    """Draw accuracy against MACs in the three states after surgery, one panel each."""
    if len(comparison.targets) == 1:
        return all_methods(comparison, title)
    with style():
        figure = Figure(figsize=(WIDTH, 6.9), layout="constrained")
        panels = figure.subplots(2, 2).ravel()
        lines = [*drawn_methods(comparison), *comparison.others[:1]]  # a rival that wins must not be left out
        for axes, state in zip(panels, AFTER_SURGERY, strict=False):
            axes.set_title(STATE_TITLES[state])
            _curves(axes, comparison, state, lines)
            axes.set_xlabel("MACs kept (%)")
            axes.set_ylabel("test top-1 (%)")
            _target_ticks(axes, comparison.targets)
        legend_in(panels[-1], panels[0])
        headline(figure, f"{title}\n{seeds_text(comparison)}")
        return render(figure)


def before_and_after(comparison: Comparison, methods: Sequence[str]) -> Files:
    """Draw a few methods before and after fine-tuning, side by side and without a title: the first figure of a page."""
    there = [method for method in methods if method in set(comparison.table["method"])]
    with style():
        figure = Figure(figsize=(WIDTH, 4.3), layout="constrained")
        panels = figure.subplots(1, 2)
        for axes, state in zip(panels, ("pruned", "finetuned"), strict=True):
            axes.set_title(STATE_TITLES[state])
            _curves(axes, comparison, state, there)
            axes.set_xlabel("MACs kept (%)")
            _target_ticks(axes, comparison.targets)
        panels[0].set_ylabel("test top-1 (%)")
        legend_below(figure, *panels)
        return render(figure)


def _target_ticks(axes: Axes, targets: Sequence[float]) -> None:
    """Mark the targets, the mildest on the left."""
    axes.set_xticks([100 * target for target in targets], [f"{100 * target:.3g}" for target in targets])
    axes.invert_xaxis()


def _curves(axes: Axes, comparison: Comparison, state: str, methods: Sequence[str]) -> None:
    table = comparison.table
    if table[f"{state}_top1"].isna().all():
        axes.text(0.5, 0.5, NOT_RUN, ha="center", transform=axes.transAxes)
        axes.set_yticks([])
        axes.set_xlim(100 * comparison.targets[-1], 100 * comparison.targets[0])
        return
    axes.axhline(100 * comparison.dense.mean, label="Dense", **DENSE_LINE)
    if comparison.dense_long:
        axes.axhline(100 * comparison.dense_long.mean, label="Dense (all epochs)", **LONG_LINE)
    span = 100 * (comparison.targets[0] - comparison.targets[-1]) or 10.0  # of a single target: any
    for position, method in enumerate(methods):
        rows = table[table["method"] == method].sort_values("macs")
        look = replace(look_of(method), label=label_of(comparison, method))
        _method_line(axes, rows, state, look, dodge(position, len(methods), span))
    _within_accuracies(axes, "y")


class _Accuracies(AutoLocator):
    """Ticks at possible accuracies alone: the room around them is for error bars and markers."""

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        return [value for value in super().tick_values(vmin, vmax) if 0 <= value <= 100]


def _within_accuracies(axes: Axes, which: Literal["x", "y"]) -> None:
    """Limit an axis to possible accuracies: error bars over few seeds reach beyond."""
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    axes.set(**{f"{which}lim": (max(low, -3), min(high, 105))})
    (axes.xaxis if which == "x" else axes.yaxis).set_major_locator(_Accuracies())


def _method_line(axes: Axes, rows: pd.DataFrame, state: str, look: Look, aside: float) -> None:
    axes.errorbar(
        100 * rows["macs"] / rows["dense_macs"] + aside,
        100 * rows[f"{state}_top1"],
        yerr=_errors(rows[f"{state}_ci95"].where(rows["n"] >= LEAST_SEEDS).tolist()),
        color=look.colour,
        marker=look.marker,
        linestyle=look.line,
        markersize=6.5 if look.ours else 5.5,
        linewidth=2.2 if look.ours else 1.4,
        elinewidth=0.9,
        capsize=2.5,
        zorder=4 if look.ours else 3,
        label=look.label,
    )


def _errors(half_widths: Sequence[float]) -> list[float] | None:
    errors = [0.0 if math.isnan(half) else 100 * half for half in half_widths]
    return errors if any(errors) else None


def every_method(comparison: Comparison, title: str) -> Files | None:
    """Draw every method by name; None where the figure of accuracy against MACs shows them all."""
    others = set(comparison.table["method"]) - set(DRAWN_METHODS)
    return all_methods(comparison, title) if others and len(comparison.targets) > 1 else None


def all_methods(comparison: Comparison, title: str) -> Files:
    """Draw every method by name, the best before fine-tuning on top.

    There is a panel per target; of a single target, one per state.
    """
    methods, targets = comparison.by_accuracy, comparison.targets
    single = len(targets) == 1
    views = [(targets[0], (state,)) for state in AFTER_SURGERY] if single else [(t, AFTER_SURGERY) for t in targets]
    with style():
        figure = Figure(figsize=(WIDTH, 2.3 + 0.22 * len(methods)), layout="constrained")
        panels = np.atleast_1d(figure.subplots(1, len(views), sharey=True))
        for axes, (target, states) in zip(panels, views, strict=True):
            _dots(axes, comparison, target, methods, states)
            state = STATE_TITLES[states[0]].replace(" ", "\n", 1)  # in two lines
            axes.set_title(state if single else f"{100 * target:.0f} %", fontsize=11)
            axes.tick_params(axis="x", labelsize=LABEL)
            if len(views) > MOST_WIDE:  # narrow panels have room for few and small numbers
                axes.set_xlim(0, 107)
                axes.set_xticks([0, 50, 100])
                axes.tick_params(axis="x", labelsize=NARROW_LABEL)
            else:
                axes.set_xlabel("top-1 (%)", fontsize=LABEL)
        panels[0].set_yticks(range(len(methods)), [label_of(comparison, name) for name in methods], fontsize=LABEL)
        panels[0].set_ylim(-0.7, len(methods) - 0.3)
        if not single:
            legend_below(figure, *panels)
        unit = "; top-1 in %" if len(views) > MOST_WIDE else ""
        headline(figure, _all_methods_title(comparison, title) + unit)
        return render(figure)


def _all_methods_title(comparison: Comparison, title: str) -> str:
    targets = comparison.targets
    at = f"at {100 * targets[0]:.0f} % of the MACs" if len(targets) == 1 else "by share of the MACs"
    return f"{title}, {at}\n{seeds_text(comparison)}; dashed: dense"


def _dots(axes: Axes, comparison: Comparison, target: float, methods: Sequence[str], states: Sequence[str]) -> None:
    axes.axvline(100 * comparison.dense.mean, **DENSE_LINE)
    table = comparison.table[comparison.table["macs_kept"] == target].set_index("method")
    for place, state in enumerate(states):
        aside = 0.25 * ((len(states) - 1) / 2 - place)
        first = True
        for position, method in enumerate(methods):
            if method not in table.index or math.isnan(table[f"{state}_top1"][method]):
                continue
            if state != "finetuned" and find_method(method).ending != "finetune":
                continue  # a control from scratch is untrained until then
            half = float(table[f"{state}_ci95"][method])
            axes.errorbar(
                100 * float(table[f"{state}_top1"][method]),
                position + aside,
                xerr=None if math.isnan(half) or table["n"][method] < LEAST_SEEDS else 100 * half,
                color=look_of(method).colour if method in MAIN_METHODS else "#505050",
                markersize=4.5,
                elinewidth=0.8,
                capsize=1.5,
                linestyle="none",
                label=STATE_TITLES[state] if first else None,
                **STATE_MARKERS[state],
            )
            first = False
        if first and len(states) == 1:
            axes.text(0.5, 0.5, NOT_RUN, ha="center", backgroundcolor="white", transform=axes.transAxes)
            axes.set_xticks([])
    _within_accuracies(axes, "x")
