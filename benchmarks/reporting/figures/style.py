"""The looks that all figures share: colours, markers, legends, and how a figure becomes files."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.analysis.comparison import MAIN_METHODS, Comparison
from benchmarks.escape import for_figure
from benchmarks.methods.registry import find_method

# Okabe and Ito's palette, told apart in every kind of colour blindness
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7F7F7F")

OTHERS, BEST_OTHER = "#C4C4C4", "#7A5C3E"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

LINES: tuple[Any, ...] = ("-", "--", "-.", "-", "--", ":", (0, (1, 1)), (0, (5, 1, 1, 1)))

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
    figure.suptitle(for_figure(text), fontsize=10, wrap=True)


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
    FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, "Creator": None})  # type: ignore[no-untyped-call]
    figure.set_dpi(mpl.rcParams["savefig.dpi"])  # print_svg leaves its own behind
    FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})  # type: ignore[no-untyped-call]
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


def _others_label(others: Sequence[str]) -> str:
    return find_method(others[0]).title if len(others) == 1 else f"{len(others)} other methods"
