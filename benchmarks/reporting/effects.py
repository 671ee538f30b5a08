"""What recalibration, rescaling and absorption do: differences paired by seed, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from benchmarks.analysis.comparison import AFTER_SURGERY, MAIN_METHODS, Comparison, rank
from benchmarks.analysis.statistics import ENOUGH_SEEDS, paired_effect, summarize
from benchmarks.methods.registry import find_method
from benchmarks.records.record import Record
from benchmarks.reporting.columns import STATE_TITLES
from benchmarks.reporting.numbers import NONE, NOT_RUN, change, share
from benchmarks.reporting.table_files import Sheet

HEADER = ("Step", "Experiment (profile)", "Method", "MACs kept", "n", *(STATE_TITLES[s] for s in AFTER_SURGERY))

NOTES = (
    "Difference in top-1 that a step makes, paired by seed, in percentage points (± half the 95 % interval). "
    "Recalibration: the recalibrated less the pruned network of the same run. Rescaling: runs that bring the rows back "
    "to the dense network's norm before fine-tuning, less runs of the same experiment that do not. Absorption: runs "
    "that add what removed channels still give to the layers that read them, less runs that do not."
)

# Values of a profile that switch a step: with and without.
SWITCHES: Mapping[str, tuple[str, Any, Any]] = {
    "rescale": ("Rescaling", "dense-norm", "none"),
    "absorb": ("Absorption", True, False),
}

ABSORBING = "-absorb"  # how the names of methods end that differ from another in absorption alone

OWN = "regularizer_weight_decay"

Differences = dict[str, list[float]]


def points(values: Sequence[float]) -> str:
    """Return the mean of paired differences in points, with half its interval where seeds are enough."""
    if not values:
        return NONE
    if len(values) < ENOUGH_SEEDS:
        return change(summarize(values).mean)
    effect = paired_effect([values])
    return change(effect.mean, (effect.interval[1] - effect.interval[0]) / 2)


def effects_sheet(comparisons: Sequence[Comparison]) -> Sheet:
    """Return the effect of each step on each method and target."""
    found: list[tuple[str, str, str, float, Differences]] = []
    for comparison in comparisons:
        if all("recalibrated" in record.states for record in comparison.records):
            found += [("Recalibration", *effect) for effect in _recalibration(comparison)]
    for first in comparisons:
        for second in comparisons:
            switch = switched(first, second)
            if switch:
                found += [(switch, *effect) for effect in _between(first, second)]
    for comparison in comparisons:
        found += [("Absorption", *effect) for effect in _absorption(comparison)]
    rows = [_row(*effect) for effect in found if effect[2] in MAIN_METHODS or effect[0] != "Recalibration"]
    return Sheet(
        "effects",
        "Effect of recalibration, rescaling and absorption",
        HEADER,
        rows or [[NOT_RUN] * len(HEADER)],
        NOTES,
        _numbers(found),
    )


def _row(step: str, place: str, method: str, target: float, differences: Differences) -> list[str]:
    n = max(len(values) for values in differences.values())
    cells = [points(differences.get(state, [])) for state in AFTER_SURGERY]
    return [step, place, find_method(method).title, share(target), str(n), *cells]


def _numbers(found: Sequence[tuple[str, str, str, float, Differences]]) -> pd.DataFrame:
    rows = [
        {
            "step": step,
            "experiment": place,
            "method": method,
            "macs_kept": target,
            "state": state,
            "n": len(values),
            "effect": summarize(values).mean,
            "ci95": summarize(values).half_width,
        }
        for step, place, method, target, differences in found
        for state, values in differences.items()
    ]
    columns = ["step", "experiment", "method", "macs_kept", "state", "n", "effect", "ci95"]
    return pd.DataFrame(rows, columns=columns)


def _place(comparison: Comparison) -> str:
    return f"{comparison.experiment} ({comparison.profile})"


Effect = tuple[str, str, float, Differences]


def _recalibration(comparison: Comparison) -> list[Effect]:
    found = []
    for method, target in _cells(comparison):
        group = comparison.by_seed(method, target).values()
        values = [r.states["recalibrated"]["top1"] - r.states["pruned"]["top1"] for r in group]
        found.append((_place(comparison), method, target, {"recalibrated": values}))
    return found


def _cells(comparison: Comparison) -> list[tuple[str, float]]:
    cells = {(record.method, record.macs_kept) for record in comparison.records if record.macs_kept < 1}
    return sorted(cells, key=lambda cell: (rank(cell[0]), -cell[1]))


def switched(first: Comparison, second: Comparison) -> str | None:
    """Return the step that the first comparison takes and the second leaves out, where they differ in that alone."""
    if first.profile != second.profile or first.protocol != second.protocol:
        return None
    ours, theirs = first.records[0].config, second.records[0].config
    names = (ours.keys() | theirs.keys()) - {OWN}
    differing = [name for name in names if ours.get(name) != theirs.get(name)]
    if len(differing) != 1 or differing[0] not in SWITCHES:
        return None
    step, with_it, without = SWITCHES[differing[0]]
    values = ours.get(differing[0], with_it), theirs.get(differing[0], with_it)
    return step if values == (with_it, without) else None


def _between(first: Comparison, second: Comparison) -> list[Effect]:
    place = f"{_place(first)}, {_place(second)}"
    return [
        (place, method, target, differences)
        for method, target in _cells(second)
        if (differences := _paired(first.by_seed(method, target), second.by_seed(method, target)))
    ]


def _absorption(comparison: Comparison) -> list[Effect]:
    found = []
    for method, target in _cells(comparison):
        plain = method.removesuffix(ABSORBING)
        if plain == method:
            continue
        pair = comparison.by_seed(method, target), comparison.by_seed(plain, target)
        differences = _paired(*pair)
        if differences:
            found.append((_place(comparison), plain, target, differences))
    return found


def _paired(ours: Mapping[int, Record], theirs: Mapping[int, Record]) -> Differences:
    """Return the differences of each state after surgery, over the seeds that both have."""
    seeds = sorted(ours.keys() & theirs.keys())
    found = {}
    for state in AFTER_SURGERY:
        values = [
            ours[seed].states[state]["top1"] - theirs[seed].states[state]["top1"]
            for seed in seeds
            if state in ours[seed].states and state in theirs[seed].states
        ]
        if values:
            found[state] = values
    return found
