"""Figures along training: fine-tuning, repeated removals, and the search for strengths."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from benchmarks.analysis.comparison import Comparison, rank
from benchmarks.analysis.statistics import summarize
from benchmarks.methods.registry import find_method
from benchmarks.records.histories import Details
from benchmarks.records.record import Record
from benchmarks.records.strengths import WHEN, Tries, search_state
from benchmarks.reporting.figures.style import (
    LEAST_SEEDS,
    SMALL,
    WIDTH,
    Files,
    Look,
    dodge,
    drawn_methods,
    headline,
    label_of,
    legend_below,
    look_of,
    render,
    seeds_text,
    style,
)

TARGET_COLOURS = ("#440154", "#31688E", "#35B779", "#B8A000")  # of the viridis map, the mildest target first

TARGET_MARKERS = ("o", "s", "^", "D")

ACROSS = 3  # small panels side by side

MARKED_EPOCHS = 10  # points with error bars on a curve, at most

Curves = dict[tuple[float, str], list[list[float]]]


def finetuning_curves(comparison: Comparison, title: str, details: Details) -> Files | None:
    """Draw validation accuracy along fine-tuning, mean over seeds with its range; None without histories."""
    targets, methods = comparison.targets, drawn_methods(comparison)
    curves: Curves = {
        (target, method): [
            curve
            for record in comparison.records
            if (record.method, record.macs_kept) == (method, target) and (curve := details.finetuning(record))
        ]
        for target in targets
        for method in methods
    }
    if not any(curves.values()):
        return None
    with style():
        rows = math.ceil(len(targets) / 2)
        figure = Figure(figsize=(WIDTH, 1.8 + 2.6 * rows), layout="constrained")
        panels = figure.subplots(rows, min(2, len(targets)), squeeze=False, sharex=True).ravel()
        for axes, target in zip(panels, targets, strict=False):
            axes.set_title(f"{100 * target:.0f} % of the MACs")
            for position, method in enumerate(methods):
                look = replace(look_of(method), label=label_of(comparison, method))
                _curve(axes, curves[target, method], look, position, len(methods))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in panels[len(targets) :]:
            axes.set_axis_off()
        for axes in _lowest(panels, len(targets), 2):
            axes.set_xlabel("epochs of fine-tuning")
            axes.tick_params(labelbottom=True)  # also above a panel that is left empty
        figure.supylabel("validation top-1 (%)")
        legend_below(figure, *panels)
        bars = "; bars: range over seeds" if any(len(found) >= LEAST_SEEDS for found in curves.values()) else ""
        headline(figure, f"{title}\nfine-tuning{bars}\n{seeds_text(comparison)}")
        return render(figure)


def _lowest(panels: Iterable[Axes], used: int, columns: int) -> Sequence[Axes]:
    """Return the lowest used panel of each column, which carries the label of the horizontal axis."""
    return list(panels)[max(0, used - columns) : used]


def _curve(axes: Axes, curves: Sequence[Sequence[float]], look: Look, position: int, count: int) -> None:
    if not curves:
        return
    values = 100 * np.array(curves)  # (seeds, epochs + 1)
    epochs = np.arange(values.shape[1])
    every = max(1, math.ceil(len(epochs) / MARKED_EPOCHS))
    mean = values.mean(0)
    axes.errorbar(
        epochs + dodge(position, count, len(epochs) - 1),
        mean,
        yerr=np.stack([mean - values.min(0), values.max(0) - mean]) if len(curves) >= LEAST_SEEDS else None,
        errorevery=every,
        markevery=every,
        color=look.colour,
        linestyle=look.line,
        marker=look.marker,
        markersize=5,
        linewidth=2.0 if look.ours else 1.3,
        elinewidth=0.8,
        zorder=4 if look.ours else 3,
        label=look.label,
    )


def iterations(comparison: Comparison, title: str) -> Files | None:
    """Draw validation accuracy along training and removals; None where each run removes once."""
    if max(len(record.removals) for record in comparison.records) < 2:
        return None
    target = comparison.targets[-1]
    with style():
        figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
        axes = figure.subplots()
        for method in drawn_methods(comparison):
            group = [r for r in comparison.records if (r.method, r.macs_kept) == (method, target)]
            if group:
                _zigzag(axes, group, replace(look_of(method), label=label_of(comparison, method)))
        axes.invert_xaxis()
        axes.set_xlabel("MACs kept (%)")
        axes.set_ylabel("validation top-1 (%)")
        legend_below(figure, axes)
        text = "each removal: a drop, then training with the regulariser"
        headline(figure, f"{title}\n{text}\n{seeds_text(comparison, bars=False)}")
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
    width = 2.2 if look.ours else 1.4
    axes.plot(
        x, y, color=look.colour, marker=look.marker, markersize=5.5, linestyle=look.line, lw=width, label=look.label
    )


def strength_curves(tuning: Mapping[str, Any], title: str) -> Files | None:
    """Draw the tuning score against strength: a panel for every method that was tuned, a line for every target."""
    scores: dict[str, dict[str, Tries]] = tuning["scores"]
    targets = sorted({target for found in scores.values() for target in found}, key=float, reverse=True)
    if not targets:
        return None
    methods = sorted(scores, key=rank)
    with style():
        columns = min(ACROSS, len(methods))
        rows = math.ceil(len(methods) / columns)
        figure = Figure(figsize=(WIDTH, 2.0 + 1.55 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
        metric = _metric(tuning)
        for axes, method in zip(panels, methods, strict=False):
            axes.set_title(_short(find_method(method).title), fontsize=9)
            first = {target: _on_first(tries, len(tuning["seeds"])) for target, tries in scores[method].items()}
            _strength_panel(axes, first, targets, tuning["chosen"].get(method, {}), metric)
            _mark_further(axes, scores[method], first, targets, metric)
        if metric == "loss":  # the loss of the weakest strengths is several times the best one's
            panels[0].set_yscale("log")
            panels[0].yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            panels[0].yaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
            panels[0].yaxis.set_minor_formatter(NullFormatter())
        for axes in panels[len(methods) :]:
            axes.set_axis_off()
        for axes in _lowest(panels, len(methods), columns):
            axes.set_xlabel("strength λ")
        figure.supylabel("validation loss" if metric == "loss" else "validation top-1 (%)")
        legend_below(figure, *panels)
        networks = len(tuning["seeds"])
        count = "one network only" if networks == 1 else f"{networks} networks"
        if tuning.get("again"):
            count = f"{'one network' if networks == 1 else count}; cross: mean with further ones"
        when = WHEN[search_state(tuning)]
        headline(figure, f"{title}: strength search\nvalidation images, {when}, {count}; ring: chosen")
        return render(figure)


def _on_first(tries: Tries, networks: int) -> Tries:
    """Return trials without those that were made again on further networks, which the best two strengths alone have."""
    return {text: {name: values[:networks] for name, values in found.items()} for text, found in tries.items()}


def _mark_further(
    axes: Axes, tries: Mapping[str, Tries], first: Mapping[str, Tries], targets: Sequence[str], metric: str
) -> None:
    """Mark the mean over all networks of the strengths that were tried on further ones."""
    for position, target in enumerate(targets):
        for text, found in tries.get(target, {}).items():
            if len(found[metric]) > len(first[target][text][metric]) and _known(found, metric):
                mean = (1 if metric == "loss" else 100) * summarize(found[metric]).mean
                axes.plot([float(text)], [mean], color=TARGET_COLOURS[position % len(TARGET_COLOURS)], marker="x")


def _metric(tuning: Mapping[str, Any]) -> str:
    """Return what strengths were chosen by: the loss, or the accuracy where an old record has no other."""
    tries = [found for targets in tuning["scores"].values() for tried in targets.values() for found in tried.values()]
    return "loss" if any(found["loss"] for found in tries) else "top1"


def _short(title: str, width: int = 26) -> str:
    """Break a title that is wider than its panel."""
    if len(title) <= width:
        return title
    at = title.rfind(" ", 0, width + 1)
    return title[:at] + "\n" + title[at + 1 :] if at > 0 else title


def _known(found: Mapping[str, Sequence[float | None]], metric: str) -> bool:
    return bool(found[metric]) and None not in found[metric]


def _strength_panel(
    axes: Axes,
    tries: Mapping[str, Tries],
    targets: Sequence[str],
    chosen: Mapping[str, float | None],
    metric: str,
) -> None:
    scale = 1 if metric == "loss" else 100
    axes.set_xscale("log")
    tried = [float(strength) for found in tries.values() for strength, each in found.items() if _known(each, metric)]
    tried = tried or [1.0]
    centre = math.sqrt(min(tried) * max(tried))
    middle = min(tried, key=lambda strength: abs(math.log(strength / centre)))
    axes.xaxis.set_major_locator(FixedLocator(sorted({min(tried), middle, max(tried)})))  # decades leave one label
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:.3g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=SMALL - 2)
    for position, target in enumerate(targets):
        points = sorted(
            (float(strength), scale * summarize(found[metric]).mean)
            for strength, found in tries.get(target, {}).items()
            if _known(found, metric)
        )
        colour = TARGET_COLOURS[position % len(TARGET_COLOURS)]
        marker = TARGET_MARKERS[position % len(TARGET_MARKERS)]
        x, y = [point[0] for point in points], [point[1] for point in points]
        axes.plot(x, y, color=colour, marker=marker, markersize=4, lw=1.3, label=f"{100 * float(target):.0f} %")
        best = chosen.get(target)
        if best is not None and best in x:
            ring: Any = {"marker": "o", "markersize": 10, "markerfacecolor": "none", "linestyle": "none"}
            axes.plot([best], [y[x.index(best)]], color=colour, **ring)
