"""Which sides of a channel a penalty needs: recalibrated accuracy of every group of sides against OICSR-GL's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from baselines.anatomy import GROUPS
from benchmarks.analysis.comparison import Comparison
from benchmarks.analysis.evidence import TOY
from benchmarks.analysis.statistics import SMALLEST_SD, Effect, paired_effect
from benchmarks.analysis.strata import is_enough, over_targets, pooled
from benchmarks.reporting.figures.style import COLOURS, WIDTH, Files, headline, legend_below, render, style
from benchmarks.reporting.study import title_of

BASE = "oicsr-gl"

SIDES = {"out": "out", "in": "in", "norm": "scale"}

# (sides, whether they are one group) by name of the penalty; OICSR-GL itself is defined with the method
PENALTIES: dict[str, tuple[str, bool]] = {
    BASE: ("out + in", True),
    **{group.name: (" + ".join(SIDES[side] for side in group.sides), group.joint) for group in GROUPS},
}

ROWS = ("out", "in", "scale", "out + scale", "in + scale", "out + in", "out + in + scale")  # the first at the top

# label, colour and marker by (one group, proximal)
MARKS: dict[tuple[bool, bool], tuple[str, Any]] = {
    (True, False): ("one group", {"color": COLOURS[0], "marker": "o"}),
    (False, False): ("one group per side", {"color": COLOURS[2], "marker": "^"}),
    (True, True): ("one group, proximal", {"color": COLOURS[0], "marker": "o", "markerfacecolor": "white"}),
    (False, True): ("one group per side, proximal", {"color": COLOURS[2], "marker": "^", "markerfacecolor": "white"}),
}

ASIDE = 0.2  # of a row, between its marks

TITLE = "Which sides a penalty needs:\nrecalibrated top-1 minus that of OICSR-GL"


def sides_figure(comparisons: Sequence[Comparison], *, toy: bool = False) -> Files | None:
    """Draw a panel per experiment that compares sides; None where there is none.

    Shown are means over the targets, paired by network, with 95 % intervals. Toys have a figure of their own (`toy`):
    all panels in one would be longer than a page, and weak evidence would stand beside strong.
    """
    of_kind = [comparison for comparison in comparisons if (comparison.evidence.tier == TOY) == toy]
    panels = [(comparison, found) for comparison in of_kind if len(found := side_effects(comparison)) > 1]
    if not panels:
        return None
    with style():
        figure = Figure(
            figsize=(WIDTH, 1.4 + sum(1.0 + 0.36 * _rows(found) for _, found in panels)), layout="constrained"
        )
        heights = [1.0 + _rows(found) for _, found in panels]
        axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
        for panel, (comparison, found) in zip(axes, panels, strict=True):
            _draw(panel, comparison, found)
        axes[-1].set_xlabel("difference in percentage points")
        kinds = {_kind(method) for _, found in panels for method in found}
        for label, mark in (MARKS[kind] for kind in MARKS if kind in kinds):  # one of each, in one panel
            axes[0].errorbar([], [], linestyle="none", label=label, **mark)
        legend_below(figure, axes[0])
        headline(figure, TITLE)
        return render(figure)


def side_effects(comparison: Comparison) -> dict[str, Effect]:
    """Return by method the difference to OICSR-GL, averaged over the targets; none without tier or enough seeds."""
    as_it_is = comparison.records[0].config.get("rescale") == "none"  # the same networks stand in another experiment
    if not comparison.current or comparison.evidence.tier is None or as_it_is:
        return {}
    found = {}
    for name in PENALTIES:
        for method in (name, f"{name}-prox"):
            cells = {("", target): _differences(comparison, method, target) for target in comparison.targets}
            groups = over_targets(cells)
            if method != BASE and is_enough(groups):
                found[method] = paired_effect(*pooled([(groups, SMALLEST_SD)]))
    return found


def _differences(comparison: Comparison, method: str, target: float) -> dict[str, float]:
    """Return how much more recalibrated top-1 a method keeps than OICSR-GL, by dense network."""
    ours, base = (comparison.by_network(name, target) for name in (method, BASE))
    return {
        network: ours[network].states["recalibrated"]["top1"] - base[network].states["recalibrated"]["top1"]
        for network in base
        if network in ours
    }


def _kind(method: str) -> tuple[bool, bool]:
    return PENALTIES[method.removesuffix("-prox")][1], method.endswith("-prox")


def _rows(found: dict[str, Effect]) -> int:
    return len(set(map(_sides, found)))


def _sides(method: str) -> str:
    return PENALTIES[method.removesuffix("-prox")][0]


def _draw(axes: Axes, comparison: Comparison, found: dict[str, Effect]) -> None:
    there = [row for row in ROWS if row in map(_sides, found)]
    axes.axvline(0, color="black", linewidth=1.0)
    for method, effect in found.items():
        sides = _sides(method)
        _, mark = MARKS[_kind(method)]
        beside = [kind for kind in MARKS if kind in {_kind(m) for m in found if _sides(m) == sides}]
        y = there.index(sides) + ASIDE * (beside.index(_kind(method)) - (len(beside) - 1) / 2)
        half = 100 * (effect.interval[1] - effect.mean)
        axes.errorbar(100 * effect.mean, y, xerr=half, linestyle="none", markersize=6.5, capsize=2.5, **mark)
    axes.set_yticks(range(len(there)), there)
    axes.set_ylim(len(there) - 0.5, -0.5)
    axes.margins(x=0.05)
    tier = comparison.evidence.tier
    axes.set_title(f"{title_of(comparison.experiment)}\n{tier} evidence, n = {_seeds(found)}")


def _seeds(found: dict[str, Effect]) -> str:
    counts = sorted({sum(effect.seeds) for effect in found.values()})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
