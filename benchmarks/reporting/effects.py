"""What single steps do, such as recalibration or rescaling: differences paired by seed, with intervals, a table each.

A row is a method in an experiment, a column a target. Experiments without a tier of evidence have no rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from benchmarks.analysis.claims import FIRST_EPOCH, MEASURES
from benchmarks.analysis.comparison import AFTER_SURGERY, MAIN_METHODS, Comparison, rank
from benchmarks.analysis.statistics import ENOUGH_SEEDS, paired_effect, summarize
from benchmarks.analysis.strata import dense_scores
from benchmarks.methods.registry import find_method
from benchmarks.records.histories import Details
from benchmarks.records.record import Record
from benchmarks.reporting.columns import STATE_TITLES
from benchmarks.reporting.comparison_table import MARK, MARKED, marked_place
from benchmarks.reporting.numbers import NONE, NOT_RUN, change, share
from benchmarks.reporting.table_files import Sheet

RECALIBRATION, RESCALING, ABSORPTION, ROUNDING = "recalibration", "rescaling", "absorption", "rounding"
SEARCH = "search"

UNIT = (
    "Difference in top-1 that the step makes, paired by seed, in percentage points (± half its 95 % interval, from "
    f"{ENOUGH_SEEDS} seeds on). n: seeds; one column per target, the share of the MACs that is kept. Quick runs, and "
    f"trials on networks that serve tuning, have no row. {MARKED}"
)

NOTES = {
    RECALIBRATION: "Top-1 of the recalibrated network minus that of the pruned one, of the same run. Networks without "
    f"statistics that could be estimated again have no row. {UNIT}",
    RESCALING: "Difference between runs whose rows are brought back to the dense network's norms before fine-tuning "
    "and runs that differ in that alone. After the first epoch: on validation images; fine-tuned: on test images, "
    f"after the last epoch. The pruned and recalibrated networks are the same ones in both. {UNIT}",
    ABSORPTION: "Effect of adding the constants that removed channels would still give to the layers that read them. "
    "Recalibration makes up for the same wherever BatchNorm follows. "
    f"{UNIT}",
    ROUNDING: "Difference between runs whose remaining widths are multiples of 8 and runs with any widths, from the "
    "same regularised networks and below the same target. What such widths gain in speed is among the measurements "
    f"of speed. {UNIT}",
    SEARCH: "Difference between runs whose strengths were chosen by validation loss after fine-tuning and runs whose "
    "strengths were chosen before it, from the same dense networks. Zero in every state: both searches chose "
    f"the same strength. {UNIT}",
}

IN_WORDS = {**{name: name for name in NOTES}, SEARCH: "choosing strengths after fine-tuning"}

EFFECTS = {name: f"Effect of {words}" for name, words in IN_WORDS.items()}

# Values of a profile that switch a step: with and without.
SWITCHES: Mapping[str, tuple[str, Any, Any]] = {
    "rescale": (RESCALING, "dense-norm", "none"),
    "absorb": (ABSORPTION, True, False),
    "round_to": (ROUNDING, 8, 1),
}

ABSORBING = "-absorb"  # how the names of methods end that differ from another in absorption alone

OWN = "regularizer_weight_decay"
PRECISION = "precision"  # may differ between the networks of an experiment: equal for each pair, not for all

FIRST = "first epoch"

MEASURED = {**{state: STATE_TITLES[state] for state in AFTER_SURGERY}, FIRST: "After the first epoch"}

Measure = Callable[[Record], float | None]


@dataclass(frozen=True)
class Effect:
    """The differences that a step makes to one method at one target, paired by seed.

    Attributes:
        place: Experiment and profile, marked as in other tables.
        method: Name of the method.
        target: Share of the MACs.
        measured: Key of `MEASURED`.
        values: A difference per seed, of top-1 in [0, 1].
    """

    place: str
    method: str
    target: float
    measured: str
    values: tuple[float, ...]


def points(values: Sequence[float]) -> str:
    """Return the mean of paired differences in points, with half its interval where seeds are enough."""
    return change(summarize(values).mean, half_width(values)) if values else NONE


def half_width(values: Sequence[float]) -> float:
    """Return half the 95 % interval of paired differences; NaN where seeds are too few for one."""
    if len(values) < ENOUGH_SEEDS:
        return math.nan
    low, high = paired_effect([values]).interval
    return (high - low) / 2


def effect_sheets(comparisons: Sequence[Comparison], details: Details) -> list[Sheet]:
    """Return a table for each step of `NOTES`."""
    used = [comparison for comparison in comparisons if comparison.evidence.tier]
    pairs = [(switch, a, b) for a in used for b in used if (switch := switched(a, b))]
    # rescaling comes after recalibration: the same networks again
    repeated = {id(second) for switch, _, second in pairs if switch == RESCALING}
    found: dict[str, list[Effect]] = {step: [] for step in NOTES}
    for comparison in used:
        if id(comparison) not in repeated:
            found[RECALIBRATION] += _recalibration(comparison)
    for switch, first, second in pairs:
        found[switch] += _between(switch, first, second, _measures(details, rescaling=switch == RESCALING))
    for comparison in used:
        found[ABSORPTION] += _absorption(comparison, _measures(details, rescaling=False))
    return [_sheet(step, effects) for step, effects in found.items()]


def _sheet(step: str, effects: Sequence[Effect]) -> Sheet:
    targets = sorted({effect.target for effect in effects}, reverse=True)
    with_measure = step != RECALIBRATION
    header = ["Experiment (profile)", "Method", *(["Measured"] if with_measure else []), "n", *map(share, targets)]
    rows: dict[tuple[str, str, str], dict[float, Effect]] = {}
    for effect in effects:
        rows.setdefault((effect.place, effect.method, effect.measured), {})[effect.target] = effect
    lines = []
    for (place, method, measured), by_target in rows.items():
        counts = sorted({len(effect.values) for effect in by_target.values()})
        n = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        cells = [points(by_target[target].values) if target in by_target else NONE for target in targets]
        named = [MEASURED[measured]] if with_measure else []
        lines.append([place, find_method(method).title, *named, n, *cells])
    return Sheet(
        f"effect-{step}",
        EFFECTS[step],
        tuple(header),
        lines or [[NOT_RUN] * len(header)],
        NOTES[step],
        _numbers(effects),
        texts=3 if with_measure else 2,
    )


def _numbers(effects: Sequence[Effect]) -> pd.DataFrame:
    rows = [
        {
            "experiment": effect.place.replace(MARK, ""),
            "method": effect.method,
            "macs_kept": effect.target,
            "measured": effect.measured,
            "n": len(effect.values),
            "effect": summarize(effect.values).mean,
            "ci95": half_width(effect.values),
        }
        for effect in effects
    ]
    columns = ["experiment", "method", "macs_kept", "measured", "n", "effect", "ci95"]
    return pd.DataFrame(rows, columns=columns)


def _recalibration(comparison: Comparison) -> list[Effect]:
    if not all("recalibrated" in record.states for record in comparison.records):
        return []
    found = []
    for method, target in _cells(comparison):
        if method in MAIN_METHODS:
            group = comparison.by_seed(method, target).values()
            values = tuple(r.states["recalibrated"]["top1"] - r.states["pruned"]["top1"] for r in group)
            found.append(Effect(marked_place(comparison), method, target, "recalibrated", values))
    # nothing to estimate again: what is the same network twice shows no effect, and no interval of one
    return found if any(value for effect in found for value in effect.values) else []


def _cells(comparison: Comparison) -> list[tuple[str, float]]:
    cells = {(record.method, record.macs_kept) for record in comparison.records if record.macs_kept < 1}
    return sorted(cells, key=lambda cell: (rank(cell[0]), -cell[1]))


def switched(first: Comparison, second: Comparison) -> str | None:
    """Return the step that the first comparison takes and the second leaves out, where they differ in that alone.

    The step may be `SEARCH`: strengths chosen after fine-tuning, by the first, and before it, by the second.
    """
    if first.profile != second.profile or first.protocol != second.protocol:
        return None
    ours, theirs = first.records[0].config, second.records[0].config
    names = (ours.keys() | theirs.keys()) - {OWN, PRECISION}
    differing = [name for name in names if ours.get(name) != theirs.get(name)]
    late, early = first.chosen_late, second.chosen_late
    if not differing:
        return SEARCH if late and not early else None
    if late != early or len(differing) != 1 or differing[0] not in SWITCHES:
        return None
    step, with_it, without = SWITCHES[differing[0]]
    values = ours.get(differing[0], with_it), theirs.get(differing[0], with_it)
    return step if values == (with_it, without) else None


def _measures(details: Details, *, rescaling: bool) -> dict[str, Measure]:
    """Return what can differ: rescaling comes after recalibration, so that both earlier states are the same."""

    def of_state(state: str) -> Measure:
        return lambda record: record.states[state]["top1"] if state in record.states else None

    if rescaling:
        return {FIRST: lambda record: MEASURES[FIRST_EPOCH](record, details), "finetuned": of_state("finetuned")}
    return {state: of_state(state) for state in AFTER_SURGERY}


def _between(switch: str, first: Comparison, second: Comparison, measures: Mapping[str, Measure]) -> list[Effect]:
    place = f"{marked_place(first)}, {marked_place(second)}"
    found = []
    for method, target in _cells(second):
        if switch == SEARCH and not find_method(method).has_strength:
            continue
        pair = first.by_seed(method, target), second.by_seed(method, target)
        found += _paired(place, method, target, pair, measures)
    return found


def _absorption(comparison: Comparison, measures: Mapping[str, Measure]) -> list[Effect]:
    found = []
    for method, target in _cells(comparison):
        plain = method.removesuffix(ABSORBING)
        if plain != method:
            pair = comparison.by_seed(method, target), comparison.by_seed(plain, target)
            found += _paired(marked_place(comparison), plain, target, pair, measures)
    return found


def _same_network(ours: Record, theirs: Record) -> bool:
    return dense_scores(ours) == dense_scores(theirs) and ours.config.get(PRECISION) == theirs.config.get(PRECISION)


def _paired(
    place: str,
    method: str,
    target: float,
    pair: tuple[Mapping[int, Record], Mapping[int, Record]],
    measures: Mapping[str, Measure],
) -> list[Effect]:
    """Return the differences of each measure, over the dense networks that both start from."""
    ours, theirs = pair
    shared = [seed for seed in sorted(ours.keys() & theirs.keys()) if _same_network(ours[seed], theirs[seed])]
    found = []
    for name, measure in measures.items():
        both = [(measure(ours[seed]), measure(theirs[seed])) for seed in shared]
        values = tuple(a - b for a, b in both if a is not None and b is not None)
        if values:
            found.append(Effect(place, method, target, name, values))
    return found
