"""Figures of single channels: how energy is distributed, how the two sides relate, and which channels stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray

from benchmarks.analysis.comparison import Comparison
from benchmarks.analysis.statistics import summarize
from benchmarks.methods.registry import find_method
from benchmarks.records.histories import Details
from benchmarks.records.record import Record
from benchmarks.records.rows import CURVE_POINTS
from benchmarks.reporting.figures.style import (
    WIDTH,
    Files,
    drawn_methods,
    headline,
    label_of,
    legend_below,
    look_of,
    plain_log_axis,
    render,
    seeds_text,
    style,
)

ENERGY_METHODS = ("oicsr-gl", "gl-out", "gl-separate", "none")

SHARE = 0.9  # of a layer's energy

FLOOR = 1e-5  # of a layer's mean energy: below, a channel is drawn at the border

WIDE = 30  # an axis over more than this ratio needs no ticks between the powers of ten

REMOVED = "#9A9A9A"

ONE_SEED = "of one seed, the first"  # channels are recorded of no other

Array = NDArray[np.float64]

Layers = dict[str, tuple[Array, Array, NDArray[np.bool_]]]  # out-energies, in-energies and what is kept, by coupling


def channel_energy_curves(comparison: Comparison, title: str, details: Details) -> Files | None:
    """Draw the sorted cumulative energy, and how many channels hold 90 % of it in each layer; None without data."""
    target = comparison.targets[-1]
    groups = {m: _group(comparison, m, target) for m in ENERGY_METHODS}
    groups = {method: group for method, group in groups.items() if any(r.structure.get("regularized") for r in group)}
    if not groups:
        return None
    shown = comparison.restricted(groups)  # whose seeds the title counts
    with style():
        figure = Figure(figsize=(WIDTH, 7.6), layout="constrained")
        left, right = figure.subplots(2, 1)
        _cumulative(left, shown, groups)
        drawn = _per_layer(right, groups, details)
        if not drawn:
            right.text(0.5, 0.5, "not run", ha="center", transform=right.transAxes)
        legend_below(figure, left)
        about = f"energy of out-in-channels before pruning to {100 * target:.0f} %"
        headline(figure, f"{title}\n{about}\n{seeds_text(shown, bars=False)}")
        return render(figure)


def _group(comparison: Comparison, method: str, target: float) -> list[Record]:
    return [r for r in comparison.records if (r.method, r.macs_kept) == (method, target)]


def _cumulative(axes: Axes, comparison: Comparison, groups: dict[str, list[Record]]) -> None:
    shares = 100 * np.linspace(0, 1, CURVE_POINTS)
    dense = [r.structure["dense"]["cumulative"] for group in groups.values() for r in group if "dense" in r.structure]
    if dense:  # broad and below the others: a penalty that does nothing leaves the same curve
        axes.plot(shares, 100 * np.mean(dense, 0), label="Dense", zorder=1.5, color="#A8A8A8", linewidth=5)
    for method, group in groups.items():
        look = look_of(method)
        known = [r.structure["regularized"]["cumulative"] for r in group if "regularized" in r.structure]
        curve = 100 * np.mean(known, 0)
        axes.plot(
            shares,
            curve,
            color=look.colour,
            linestyle=look.line,
            marker=look.marker,
            markevery=5,
            markersize=4.5,
            linewidth=1.8 if look.ours else 1.2,
            label=label_of(comparison, method),
        )
    axes.plot([0, 100], [0, 100], color="#606060", linewidth=0.9, linestyle=":", label="All channels equal")
    axes.set_xlabel("strongest channels (% of a layer's)")
    axes.set_ylabel("share of the energy (%)\nmean over layers")


def _per_layer(axes: Axes, groups: dict[str, list[Record]], details: Details) -> bool:
    drawn = False
    for method, group in groups.items():
        layers = _layers(group, details)
        if not layers:
            continue
        look = look_of(method)
        needed = [100 * channels_for(out + inward) for out, inward, _ in layers.values()]
        axes.plot(
            range(1, len(needed) + 1),
            needed,
            color=look.colour,
            linestyle=look.line,
            marker=look.marker,
            markersize=4,
            linewidth=1.6 if look.ours else 1.0,
        )
        drawn = True
    axes.set_xlabel("layer with prunable channels, in order")
    axes.set_ylabel(f"channels that hold\n{100 * SHARE:.0f} % of the energy (%)")
    axes.set_title(ONE_SEED)
    axes.set_ylim(0, 100)
    return drawn


def channels_for(energies: Array, share: float = SHARE) -> float:
    """Return the smallest share of the channels that holds a share of the energy."""
    ordered = np.sort(energies)[::-1].cumsum()
    if ordered[-1] <= 0:
        return 1.0
    return float(np.searchsorted(ordered, share * ordered[-1] * (1 - 1e-12)) + 1) / len(energies)


def _layers(group: Sequence[Record], details: Details) -> Layers:
    """Return out-energies, in-energies and what is kept, by coupling, of the one seed whose channels are recorded."""
    for record in sorted(group, key=lambda r: r.seed):
        rows = details.channels(record)
        if rows:
            return _by_coupling(rows)
    return {}


def _by_coupling(rows: Sequence[dict[str, Any]]) -> Layers:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["coupling"], []).append(row)
    return {
        name: (
            np.array([row["out"] for row in channels]),
            np.array([row["in"] for row in channels]),
            np.array([row["kept"] for row in channels]),
        )
        for name, channels in found.items()
    }


def joint_energies(comparison: Comparison, title: str, details: Details) -> Files | None:
    """Draw out- against in-energy of every channel, one panel per regulariser: the paper's argument in one picture."""
    target = comparison.targets[-1]
    recorded = {m: _layers(_group(comparison, m, target), details) for m in ENERGY_METHODS}
    panels = {method: two for method, layers in recorded.items() if (two := _with_both_sides(layers))}
    if not panels:
        return None
    with style():
        rows = -(-len(panels) // 2)
        figure = Figure(figsize=(WIDTH, 1.6 + 2.9 * rows), layout="constrained")
        drawn = figure.subplots(rows, min(2, len(panels)), squeeze=False, sharex=True, sharey=True).ravel()
        for axes, (method, layers) in zip(drawn, panels.items(), strict=False):
            _joint(axes, layers, find_method(method).title)
        for axes in drawn[len(panels) :]:
            axes.set_axis_off()
        for axes in drawn[max(0, len(panels) - 2) : len(panels)]:
            axes.set_xlabel("relative out-energy")
            axes.tick_params(labelbottom=True)
        for axis in (drawn[0].xaxis, drawn[0].yaxis):  # shared by all panels
            low, high = axis.get_view_interval()
            axis.set_major_locator(LogLocator(subs=(1.0,) if high > WIDE * low else (1.0, 2.0, 5.0), numticks=5))
        figure.supylabel("relative in-energy")
        legend_below(figure, drawn[0])
        about = f"both sides of every channel before pruning to {100 * target:.0f} % of the MACs"
        whole = all(len(panels[method]) == len(recorded[method]) for method in panels)
        left_out = "" if whole else "; without layers of one side"
        how = f"one seed; energies relative to their layer's mean{left_out}{at_floor(panels)}"
        headline(figure, f"{title}\n{about}\n{how}")
        return render(figure)


def at_floor(panels: Mapping[str, Layers]) -> str:
    """Return a line on the channels that are drawn at the border, where there are any."""
    sides = (side for layers in panels.values() for out, inward, _ in layers.values() for side in (out, inward))
    lowest = min(float(_relative(side).min()) for side in sides)
    return f"\nenergies below {FLOOR:g} are drawn at {FLOOR:g}" if lowest <= FLOOR else ""


def _with_both_sides(layers: Layers) -> Layers:
    """Return the layers whose channels have energy on both sides: queries and keys of attention have no columns."""
    return {name: each for name, each in layers.items() if each[0].any() and each[1].any()}


def _joint(axes: Axes, layers: Layers, title: str) -> None:
    out = np.concatenate([_relative(values) for values, _, _ in layers.values()])
    inward = np.concatenate([_relative(values) for _, values, _ in layers.values()])
    kept = np.concatenate([values for _, _, values in layers.values()])
    for chosen, colour, marker, label in ((~kept, REMOVED, "x", "removed"), (kept, "#0072B2", "o", "kept")):
        axes.scatter(
            out[chosen], inward[chosen], s=9, c=colour, marker=marker, linewidths=0.6, alpha=0.7, label=label,
            rasterized=True,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        plain_log_axis(axis)
        axis.set_minor_locator(NullLocator())  # over eight powers of ten they are a grey edge, and half of the time
    if len(title) > 30:
        title = title.replace(" (", "\n(", 1)
    axes.set_title(f"{title}\nrank correlation {rank_correlation(out, inward):.2f}", fontsize=11)


def _relative(values: Array) -> Array:
    mean = values.mean()
    return np.maximum(values / mean if mean > 0 else np.ones_like(values), FLOOR)


def rank_correlation(first: Array, second: Array) -> float:
    """Return Spearman's coefficient; equal values share their mean rank, 0 where one side has no order at all."""
    ranks = [pd.Series(values).rank().to_numpy() for values in (first, second)]
    if any(np.ptp(rank) == 0 for rank in ranks):
        return 0.0
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def kept_channels(comparison: Comparison, title: str) -> Files | None:
    """Draw the share of channels that each layer keeps at the smallest target, mean over seeds."""
    target = comparison.targets[-1]
    methods = [method for method in drawn_methods(comparison) if _group(comparison, method, target)]
    if not methods:
        return None
    shown = comparison.restricted(methods)
    names = list(_group(comparison, methods[0], target)[0].widths)
    with style():
        figure = Figure(figsize=(WIDTH, 5.6), layout="constrained")
        axes = figure.subplots()
        for method in methods:
            look = look_of(method)
            group = _group(comparison, method, target)
            shares = [100 * summarize([r.widths[n][1] / r.widths[n][0] for r in group]).mean for n in names]
            axes.plot(
                range(1, len(names) + 1),
                shares,
                color=look.colour,
                linestyle=look.line,
                marker=look.marker,
                markersize=4.5,
                linewidth=1.8 if look.ours else 1.1,
                zorder=4 if look.ours else 3,
                label=label_of(shown, method),
            )
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
        axes.set_xlabel("layer with prunable channels, in order")
        axes.set_ylabel("channels kept (%)")
        legend_below(figure, axes)
        about = f"channels kept at {100 * target:.0f} % of the MACs"
        headline(figure, f"{title}\n{about}\n{seeds_text(shown, bars=False)}")
        return render(figure)
