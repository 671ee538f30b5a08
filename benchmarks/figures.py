"""Figures from records: SVG and PNG, the same bytes every time, told apart without colour.

A method of the paper's comparison has the same colour, marker and line in every figure; the others are drawn grey
together, and by name in the figure of all methods.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from benchmarks.details import Details
from benchmarks.methods import find_method
from benchmarks.records import Record
from benchmarks.statistics import summarize
from benchmarks.tables import MAIN_METHODS, Comparison

# Okabe and Ito's palette, told apart in every kind of colour blindness
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES: tuple[Any, ...] = ("-", "--", "-.", "-", "--", ":", (0, (1, 1)), (0, (5, 1, 1, 1)))
PROMISED: Any = {"marker": "|", "markersize": 12, "markeredgewidth": 1.6, "linestyle": "none"}
OTHERS, BEST_OTHER = "#C4C4C4", "#7A5C3E"
NAMED_OTHERS = 4
STYLE: Any = {
    "svg.hashsalt": "oicsr",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": 150,
}
Files = dict[str, bytes]
LEGEND_COLUMNS = 4


@dataclass(frozen=True)
class Look:
    """How a method is drawn."""

    colour: str
    marker: str
    line: Any
    label: str

    @property
    def ours(self) -> bool:
        """Whether it is the paper's method, drawn above the others."""
        return self.colour == COLOURS[0]


def look_of(method: str) -> Look:
    """Return how a method is drawn; methods outside the paper's comparison in grey."""
    title = find_method(method).title
    if method not in MAIN_METHODS:
        return Look(OTHERS, "", "-", title)
    position = MAIN_METHODS.index(method)
    return Look(COLOURS[position], MARKERS[position], LINES[position], title)


@contextmanager
def style() -> Iterator[None]:
    """Draw in the suite's style."""
    with mpl.rc_context(STYLE):
        yield


def headline(figure: Figure, text: str) -> None:
    """Write the title above a figure, in more lines where it is wider than the figure."""
    figure.suptitle(text, fontsize=10, wrap=True)


def render(figure: Figure) -> Files:
    """Return a figure as SVG and PNG, without dates and versions in them.

    Each is drawn once: `savefig` would draw twice, and solve the layout for each format.
    """
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")
    svg, png = io.BytesIO(), io.BytesIO()
    figure.set_dpi(mpl.rcParams["savefig.dpi"])  # of pictures inside the SVG too
    FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, "Creator": None})
    figure.set_dpi(mpl.rcParams["savefig.dpi"])  # print_svg leaves its own behind
    FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
    return {"svg": svg.getvalue(), "png": png.getvalue()}


def seeds_text(comparison: Comparison) -> str:
    """Return profile and number of seeds, for a title."""
    low, high = int(comparison.table["n"].min()), int(comparison.table["n"].max())
    count = str(low) if low == high else f"{low} to {high}"
    quick = ", says nothing about the claim" if comparison.profile == "quick" else ""
    return f"profile {comparison.profile}{quick}, n = {count} {'seed' if high == 1 else 'seeds'}"


def main_methods(comparison: Comparison) -> list[str]:
    """Return the methods of the paper's comparison that were run, in their order."""
    there = set(comparison.table["method"])
    return [method for method in MAIN_METHODS if method in there]


def plain_log_axis(axis: Axis) -> None:
    """Label the powers of ten of a logarithmic axis as plain text, which takes a tenth of the time of formulas."""
    axis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def legend_below(figure: Figure, axes: Axes) -> None:
    """Put one legend for all panels below them, where it covers no data."""
    handles, labels = axes.get_legend_handles_labels()
    columns = min(LEGEND_COLUMNS, len(labels))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8)


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


def _others_label(others: Sequence[str]) -> str:
    return find_method(others[0]).title if len(others) == 1 else f"{len(others)} other methods"


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
    scores: dict[str, dict[str, dict[str, list[float | None]]]] = tuning["scores"]
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
            (float(strength), 100 * summarize([v for v in values if v is not None]).mean)
            for strength, values in tries.items()
            if values and None not in values
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


def latency_against_macs(device: str, section: Mapping[str, Any]) -> Files | None:
    """Draw the measured speed-ups of each network beside that which the MACs promise; None without rows."""
    rows = [row for row in section.get("rows", []) if row.get("x measured") and row.get("x MACs")]
    if not rows:
        return None
    names = list(dict.fromkeys(row["model"] for row in rows))
    lines = list(dict.fromkeys((row["model"], row["batch"], row["backend"]) for row in rows))
    with style():
        figure = Figure(figsize=(6.4, 1.5 + 0.27 * len(lines)), layout="constrained")
        axes = figure.subplots()
        for y, line in enumerate(lines):
            group = [row for row in rows if (row["model"], row["batch"], row["backend"]) == line]
            colour = COLOURS[names.index(line[0]) % len(COLOURS)]
            axes.plot([row["x MACs"] for row in group], [y] * len(group), color="black", **PROMISED)
            for row in group:
                face = "white" if row["widths"] == "any" else colour
                axes.plot(row["x measured"], y, "o", color=colour, markerfacecolor=face, markersize=6)
        axes.plot([], [], color="black", label="as the MACs promise", **PROMISED)
        axes.plot([], [], "o", color="black", markerfacecolor="white", markersize=6, label="measured, any widths")
        axes.plot([], [], "o", color="black", markersize=6, label="measured, widths rounded")
        axes.set_yticks(range(len(lines)), [f"{model}, batch {batch}, {backend}" for model, batch, backend in lines])
        axes.invert_yaxis()
        axes.set_xlim(left=min(1.0, *(row["x measured"] for row in rows)) - 0.05)
        axes.set_xlabel("speed-up over the dense network")
        legend_below(figure, axes)
        headline(figure, f"Latency of pruned networks · {device}")
        return render(figure)
