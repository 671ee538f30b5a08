"""The style that all figures share: colours, markers, legends, and how a figure becomes files.

Every figure is as wide as a page's text; its text stays readable at half that width, in a column of 3.3 inches.
"""

from __future__ import annotations

import io
import math
import textwrap
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.analysis.comparison import DRAWN_METHODS, MAIN_METHODS, Comparison
from benchmarks.escape import for_figure
from benchmarks.methods.registry import find_method

WIDTH = 6.6  # inches

FONT, SMALL = 13, 12  # points; at half the width six of them are left

# Okabe and Ito's palette, distinguishable with every kind of colour blindness, and darker and lighter forms of it
COLOURS = (
    *("#D55E00", "#8A3B00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F"),
    *("#B8860B", "#5A7D9A", "#F28E5C", "#4FA3D8"),
)

# of the methods that no figure draws beside many others
MORE_COLOURS = ("#8C564B", "#9467BD", "#6B8E23", "#17808F", "#C05780", "#4A6FA5", "#A0522D", "#556B2F")

MARKERS = ("o", "P", "s", "^", "D", "v", "X", "*", ".", "h", "p", "<", ">")

MORE_MARKERS = ("d", "8", "H", "2", "4", "x", "+", "1")  # none that a line through it hides

LINES: tuple[Any, ...] = (
    "-",
    (0, (7, 1)),
    "--",
    "-.",
    "-",
    "--",
    ":",
    (0, (1, 1)),
    (0, (5, 1, 1, 1)),
    "-",
    "--",
    "-",
    "--",
)

DENSE_LINE: Any = {"color": "black", "linewidth": 1.2, "linestyle": (0, (4, 3))}

LONG_LINE: Any = {"color": "#606060", "linewidth": 1.0, "linestyle": ":"}

STYLE: Any = {
    "svg.hashsalt": "oicsr",
    "pdf.fonttype": 42,
    "font.size": FONT,
    "axes.titlesize": FONT,
    "figure.labelsize": FONT,
    "axes.labelsize": FONT,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
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

LEAST_SEEDS = 3  # of an interval that is drawn: over two seeds it is 13 standard errors wide

SCATTER_MARK = 36.0  # square points; of a cloud's marks in a legend

TITLE_SHARE = 0.98  # of the figure's width, at most


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
    """Return how a method is drawn, the same in every figure."""
    title = find_method(method).title
    if method in MAIN_METHODS:
        position = MAIN_METHODS.index(method)
        return Look(COLOURS[position], MARKERS[position], LINES[position], title)
    chance = zlib.crc32(method.encode())  # of the name alone: a new method changes no other's looks
    colour = MORE_COLOURS[chance % len(MORE_COLOURS)]
    return Look(colour, MORE_MARKERS[chance // 8 % len(MORE_MARKERS)], (0, (3, 1, 1, 1)), title)


@contextmanager
def style() -> Iterator[None]:
    """Draw in the suite's style."""
    with mpl.rc_context(STYLE):
        yield


def headline(figure: Figure, text: str) -> None:
    """Write the title above a figure, in more lines where it is wider than the figure.

    The lines are broken here: the room that a layout keeps for a title of `wrap=True` is that of the unbroken one.
    """
    lines = [
        part
        for line in for_figure(text).replace(" %", "\N{NO-BREAK SPACE}%").split("\n")
        for part in _fit(figure, line)
    ]
    figure.suptitle("\n".join(lines), fontsize=FONT)


def _fit(figure: Figure, line: str) -> list[str]:
    """Break a line of a title at spaces where it is wider than the figure, into pieces of about the same width."""
    words = line.split(" ")
    pieces = min(len(words), math.ceil(_width(figure, line) / (TITLE_SHARE * figure.bbox.width)))
    while pieces < len(words):
        broken = textwrap.wrap(line, math.ceil(len(line) / pieces) + 4, break_long_words=False, break_on_hyphens=False)
        if all(_width(figure, part) <= TITLE_SHARE * figure.bbox.width for part in broken):
            return broken
        pieces += 1
    return words if pieces > 1 else [line]


def _width(figure: Figure, text: str) -> float:
    drawn = figure.text(0, 0, text, fontsize=FONT)
    width = drawn.get_window_extent().width
    drawn.remove()
    return float(width)


def render(figure: Figure) -> Files:
    """Return a figure as SVG, PNG and PDF, without dates and versions in them; the layout is solved once."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)  # "none" leaves a placeholder, for which every file is drawn twice
        round_places(figure)
    svg, png, pdf = io.BytesIO(), io.BytesIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    figure.savefig(png, format="png", metadata={"Software": None})
    figure.savefig(pdf, format="pdf", metadata=dict.fromkeys(("CreationDate", "Creator", "Producer")))
    return {"svg": svg.getvalue(), "png": png.getvalue(), "pdf": pdf.getvalue()}


def round_places(figure: Figure) -> None:
    """Round where axes are: the solver's last bits differ from call to call, and names in an SVG are hashes of them."""
    for axes in figure.axes:
        left, bottom, width, height = (round(float(part), 6) for part in axes.get_position(original=True).bounds)
        axes.set_position((left, bottom, width, height))


def seeds_text(comparison: Comparison, *, bars: bool = True) -> str:
    """Return profile and number of seeds, for a title; `bars` says whether the figure has any."""
    low, high = int(comparison.table["n"].min()), int(comparison.table["n"].max())
    count = str(low) if low == high else f"{low} to {high}"
    quick = ", says nothing about the claim" if comparison.profile == "quick" else ""
    seeds = "one seed only: its spread is not known" if high == 1 else f"n = {count} seeds"
    mixed = f"; *: fewer than {LEAST_SEEDS}{', without bars' if bars else ''}" if low < LEAST_SEEDS <= high else ""
    return f"profile {comparison.profile}{quick}, {seeds}{mixed}"


def label_of(comparison: Comparison, method: str) -> str:
    """Return a method's name in legends, marked where at a target it has too few seeds for a spread, others enough."""
    table = comparison.table
    few = int(table["n"].max()) >= LEAST_SEEDS > int(table.loc[table["method"] == method, "n"].min())
    return f"{find_method(method).title}{' *' if few else ''}"


def drawn_methods(comparison: Comparison) -> list[str]:
    """Return the methods that figures draw as lines and that were run, in their order."""
    there = set(comparison.table["method"])
    return [method for method in DRAWN_METHODS if method in there]


def plain_log_axis(axis: Axis) -> None:
    """Label the powers of ten of a logarithmic axis as plain text, which takes a tenth of the time of formulas."""
    axis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def legend_below(figure: Figure, *panels: Axes) -> None:
    """Put one legend for some panels below them, in as many columns as the figure is wide enough for."""
    entries: dict[str, Artist] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    labels, handles = list(entries), list(entries.values())
    for columns in range(min(LEGEND_COLUMNS, len(labels)), 0, -1):
        legend = _legend(figure, handles, labels, columns)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def _legend(figure: Figure, handles: Sequence[Artist], labels: Sequence[str], columns: int) -> Legend:
    legend = figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, columnspacing=1.2, handlelength=2.2
    )
    for handle in legend.legend_handles:
        if isinstance(handle, PathCollection):  # points as small as those of a cloud are no mark
            handle.set_sizes([SCATTER_MARK])
    return legend


def legend_in(panel: Axes, axes: Axes) -> None:
    """Put the legend of other axes into an empty panel."""
    panel.set_axis_off()
    handles, labels = axes.get_legend_handles_labels()
    panel.legend(handles, labels, loc="center", handlelength=2.2, labelspacing=0.35, borderaxespad=0)


def dodge(position: int, count: int, span: float) -> float:
    """Return how far the points of one method of `count` are moved aside: no error bar covers another."""
    return (position - (count - 1) / 2) * 0.007 * span
