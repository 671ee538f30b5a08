"""Figures along training: fine-tuning, repeated removals, and the search for strengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from benchmarks.analysis.comparison import MAIN_METHODS, Comparison
from benchmarks.analysis.statistics import summarize
from benchmarks.methods.registry import find_method
from benchmarks.records.histories import Details
from benchmarks.records.record import Record
from benchmarks.records.strengths import Tries
from benchmarks.reporting.figures.style import (
    Files,
    Look,
    _others_label,
    headline,
    legend_below,
    look_of,
    main_methods,
    plain_log_axis,
    render,
    seeds_text,
    style,
)

NAMED_OTHERS = 4


def finetuning_curves(comparison: Comparison, title: str, details: Details) -> Files | None:
    """Draw validation accuracy along fine-tuning, mean over seeds with its range; None without histories."""
    targets = comparison.targets
    curves = {
        (target, method): [
            curve
            for record in comparison.records
            if (record.method, record.macs_kept) == (method, target) and (curve := details.finetuning(record))
        ]
        for target in targets
        for method in main_methods(comparison)
    }
    if not any(curves.values()):
        return None
    with style():
        figure = Figure(figsize=(max(5.2, 2.7 * len(targets) + 0.6), 3.9), layout="constrained")
        panels = np.atleast_1d(figure.subplots(1, len(targets), sharey=True))
        for axes, target in zip(panels, targets, strict=True):
            axes.set_title(f"{100 * target:.0f} % of the MACs", fontsize=9)
            for method in main_methods(comparison):
                _band(axes, curves[target, method], look_of(method))
            axes.set_xlabel("epochs of fine-tuning")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[0].set_ylabel("validation top-1 (%)")
        legend_below(figure, panels[0])
        headline(figure, f"{title} · fine-tuning\n{seeds_text(comparison)}")
        return render(figure)


def _band(axes: Axes, curves: Sequence[Sequence[float]], look: Look) -> None:
    if not curves:
        return
    values = 100 * np.array(curves)  # (seeds, epochs + 1)
    epochs = np.arange(values.shape[1])
    every = max(1, len(epochs) // 10)
    axes.plot(
        epochs,
        values.mean(0),
        color=look.colour,
        linestyle=look.line,
        marker=look.marker,
        markevery=every,
        markersize=4.5,
        linewidth=1.8 if look.ours else 1.2,
        zorder=4 if look.ours else 3,
        label=look.label,
    )
    axes.fill_between(epochs, values.min(0), values.max(0), color=look.colour, alpha=0.12, linewidth=0)


def iterations(comparison: Comparison, title: str) -> Files | None:
    """Draw validation accuracy along training and removals; None where each run removes once."""
    if max(len(record.removals) for record in comparison.records) < 2:
        return None
    target = comparison.targets[-1]
    with style():
        figure = Figure(figsize=(6.2, 4.2), layout="constrained")
        axes = figure.subplots()
        for method in main_methods(comparison):
            group = [r for r in comparison.records if (r.method, r.macs_kept) == (method, target)]
            if group:
                _zigzag(axes, group, look_of(method))
        axes.invert_xaxis()
        axes.set_xlabel("MACs kept (% of the dense network's)")
        axes.set_ylabel("validation top-1 (%)")
        legend_below(figure, axes)
        headline(
            figure, f"{title}\neach removal: a drop, then training with the regulariser · {seeds_text(comparison)}"
        )
        return render(figure)


def _zigzag(axes: Axes, records: Sequence[Record], look: Look) -> None:
    dense = records[0].states["dense"]["macs"]
    x, y = [], []
    kept = 100.0
    for step in range(min(len(record.removals) for record in records)):
        removals = [record.removals[step] for record in records]
        after = 100 * summarize([removal["macs"] for removal in removals]).mean / dense
        x += [kept, after]
        y += [100 * summarize([r[f"val_top1_{when}"] for r in removals]).mean for when in ("before", "after")]
        kept = after
    width = 2.0 if look.ours else 1.2
    axes.plot(
        x, y, color=look.colour, marker=look.marker, markersize=4.5, linestyle=look.line, lw=width, label=look.label
    )


def strength_curves(tuning: Mapping[str, Any], title: str) -> Files | None:
    """Draw validation accuracy before fine-tuning against strength, for every method that was tuned."""
    scores: dict[str, dict[str, Tries]] = tuning["scores"]
    targets = sorted({target for found in scores.values() for target in found}, key=float, reverse=True)
    if not targets:
        return None
    with style():
        figure = Figure(figsize=(max(5.2, 2.7 * len(targets) + 0.6), 3.9), layout="constrained")
        panels = np.atleast_1d(figure.subplots(1, len(targets), sharey=True))
        for axes, target in zip(panels, targets, strict=True):
            axes.set_title(f"{100 * float(target):.0f} % of the MACs", fontsize=9)
            axes.set_xscale("log")
            plain_log_axis(axes.xaxis)
            axes.set_xlabel("strength λ")
            _strength_lines(axes, scores, target, tuning["chosen"], named=target == targets[-1])
            low, high = axes.get_xlim()
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if high < 200 * low else (1,)))
        panels[0].set_ylabel("validation top-1 (%), before fine-tuning")
        legend_below(figure, panels[0])
        seeds = len(tuning["seeds"])
        text = f"{title} · strength search, {seeds} {'seed' if seeds == 1 else 'seeds'}; large marker: chosen"
        headline(figure, text)
        return render(figure)


def _strength_lines(
    axes: Axes, scores: Mapping[str, Any], target: str, chosen: Mapping[str, Mapping[str, float]], *, named: bool
) -> None:
    """Draw a panel; `named`: with the names of the grey curves where these are highest, unless there are too many."""
    others = sorted(name for name in scores if name not in MAIN_METHODS)
    for method in [name for name in MAIN_METHODS if name in scores] + others:
        tries = scores[method].get(target, {})
        points = sorted(
            (float(strength), 100 * summarize(found["top1"]).mean)
            for strength, found in tries.items()
            if found["top1"] and None not in found["top1"]
        )
        if not points:
            continue
        look = look_of(method)
        main = method in MAIN_METHODS
        label = look.label if main else (_others_label(others) if method == others[0] else None)
        x, y = zip(*points, strict=True)
        width = 1.4 if main else 0.8
        axes.plot(x, y, color=look.colour, marker=look.marker, markersize=4, linestyle=look.line, lw=width, label=label)
        best = chosen.get(method, {}).get(target)
        if main and best is not None and best in x:
            axes.plot([best], [y[x.index(best)]], color=look.colour, marker=look.marker, markersize=9, linestyle="none")
        if named and not main and len(others) <= NAMED_OTHERS:
            peak = max(range(len(y)), key=y.__getitem__)
            name = find_method(method).title
            axes.annotate(name, (x[peak], y[peak]), (0, 2), textcoords="offset points", ha="center", fontsize=6)
