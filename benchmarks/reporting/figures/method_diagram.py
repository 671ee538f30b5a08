"""A picture of the method: which weights form a group, and what is removed together."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from benchmarks.reporting.figures.style import COLOURS, FONT, SMALL, WIDTH, Files, render, style

INPUTS, CHANNELS, OUTPUTS = 4, 5, 3

TINTS = (COLOURS[1], COLOURS[2], COLOURS[0], COLOURS[5], COLOURS[3])

WEAK = 2  # the channel that is removed

GAP = 2.6


def method_diagram() -> Files:
    """Draw two layers' weights, grouped by separated regularisers and by OICSR."""
    with style():
        figure = Figure(figsize=(WIDTH, 2.95), layout="constrained")
        left, right = figure.subplots(1, 2)
        _panel(left, "Separated: a group is\nan out-channel alone", joined=False)
        _panel(
            right,
            "OICSR: a group is an out-channel\nand the in-channel that reads it",
            joined=True,
        )
        return render(figure)


def _panel(axes: Axes, title: str, *, joined: bool) -> None:
    axes.set_title(title, fontsize=SMALL)
    axes.set_axis_off()
    axes.set_aspect("equal")
    for channel in range(CHANNELS):
        y = CHANNELS - 1 - channel
        _cells(axes, [(x, y) for x in range(INPUTS)], TINTS[channel], channel, coloured=True)
        start = INPUTS + GAP
        _cells(axes, [(start + channel, 1 + o) for o in range(OUTPUTS)], TINTS[channel], channel, coloured=joined)
        axes.text(-0.35, y + 0.5, f"{channel + 1}", ha="right", va="center", fontsize=SMALL)
        axes.text(start + channel + 0.5, 0.75, f"{channel + 1}", ha="center", va="top", fontsize=SMALL)
    arrow = FancyArrowPatch(
        (INPUTS + 0.3, 2.5), (INPUTS + GAP - 0.3, 2.5), arrowstyle="-|>", mutation_scale=12, color="black"
    )
    axes.add_patch(arrow)
    axes.text(INPUTS + GAP / 2, 2.8, "BN,\nReLU", ha="center", fontsize=SMALL)
    axes.text(INPUTS / 2, CHANNELS + 0.25, "layer l:\nrows", ha="center", fontsize=SMALL)
    axes.text(INPUTS + GAP + CHANNELS / 2, CHANNELS - 0.75, "layer l + 1:\ncolumns", ha="center", fontsize=SMALL)
    formula = r"$\sum_i \sqrt{\|W^l_{i,:}\|^2 + \|W^{l+1}_{:,i}\|^2}$" if joined else r"$\sum_i \|W^l_{i,:}\|$"
    axes.text((INPUTS + GAP + CHANNELS) / 2, -1.1, formula, ha="center", va="center", fontsize=FONT)
    axes.set_xlim(-1, INPUTS + GAP + CHANNELS + 0.6)
    axes.set_ylim(-1.9, CHANNELS + 2.0)


def _cells(axes: Axes, corners: list[tuple[float, float]], colour: str, channel: int, *, coloured: bool) -> None:
    removed = channel == WEAK
    for corner in corners:
        axes.add_patch(
            Rectangle(
                corner,
                0.94,
                0.94,
                facecolor=colour if coloured else "#E4E4E4",
                alpha=0.35 if removed and coloured else 1.0,
                hatch="////" if removed else None,
                edgecolor="white" if not removed else "#303030",
                linewidth=0.6,
            )
        )
