"""The paired differences that a claim rests on: one stratum per network and data set, one value per trained network.

Records become rows, an arm picks its rows, and two arms meet where their keys are equal. Experiments that start from
the same dense networks are not independent: they are one stratum, in which each dense network counts once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.analysis.claims import MEASURES, Arm, Claim, resolution
from benchmarks.analysis.evidence import CURRENT_PROTOCOL, evidence_of
from benchmarks.analysis.statistics import ENOUGH_SEEDS, SMALLEST_SD
from benchmarks.analysis.tuned import is_tuned, searched_state
from benchmarks.config import digest
from benchmarks.records.histories import Details
from benchmarks.records.record import Record
from benchmarks.records.strengths import DENSE_DEPENDS_ON, FIRST_TUNING_SEED

METHODS_OWN = "regularizer_weight_decay"


@dataclass(frozen=True)
class Row:
    """A record that carries verdicts, with what it is grouped and paired by.

    Attributes:
        record: The record.
        tier: Of its evidence.
        network: Names the trained dense network that it starts from.
        place: Its experiment and profile.
    """

    record: Record
    tier: str
    network: str
    place: str

    @property
    def run(self) -> str:
        """Experiment and run."""
        return f"{self.record.experiment}/{self.record.run_id}"

    @property
    def recipe(self) -> str:
        """Names how it was run: experiments that differ in their networks alone have the same."""
        usual = {name: value for name, value in self.record.config.items() if name != METHODS_OWN}
        return digest([self.record.profile, usual])

    def key(self, varies: Sequence[str]) -> tuple[object, ...]:
        """Return what must be equal in both arms of a claim."""
        record = self.record
        if not varies:
            return self.place, record.macs_kept, self.network
        equal = {name: value for name, value in record.config.items() if name not in (*varies, METHODS_OWN)}
        return record.profile, record.macs_kept, self.network, sum(record.epochs.values()), digest(equal)


@dataclass(frozen=True)
class Alike:
    """Trained networks that were run at the same targets.

    Attributes:
        by_network: Difference for each of them, a weighted mean over its targets.
        weight: Of their mean in that of all networks.
        targets: The recipes and targets.
    """

    by_network: dict[str, float]
    weight: float
    targets: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Stratum:
    """The differences of one network on one data set.

    Attributes:
        model: The network.
        dataset: The data.
        where: Experiments and profiles.
        groups: Difference for each trained network, those apart that were run at other targets.
        by_target: The differences for each experiment and target.
        runs: The records behind them.
        smallest_sd: Standard deviation that the differences have at least, whatever a few equal ones suggest.
        counted: The keys of `by_target` that the groups rest on.
    """

    model: str
    dataset: str
    where: str
    groups: tuple[Alike, ...]
    by_target: dict[tuple[str, float], dict[str, float]]
    runs: tuple[str, ...]
    smallest_sd: float = SMALLEST_SD
    counted: frozenset[tuple[str, float]] = frozenset()

    @property
    def by_network(self) -> dict[str, float]:
        """Difference for each trained network."""
        return {network: value for group in self.groups for network, value in group.by_network.items()}


def carries_verdicts(record: Record) -> bool:
    """Return whether verdicts may rest on a record of any tier.

    It must be complete, of the present protocol, not quick, its strength tuned where it has one, and its network none
    that strengths or learning rates were chosen on. The claims are about strengths that were chosen before fine-tuning:
    what was searched for the fine-tuned network is no evidence for them.
    """
    current = record.protocol == CURRENT_PROTOCOL
    apart = record.seed < FIRST_TUNING_SEED
    early = searched_state(record) == "recalibrated"
    return record.complete and current and record.profile != "quick" and apart and is_tuned(record) and early


def rows_of(records: Iterable[Record]) -> list[Row]:
    """Return the records that carry verdicts, each with its tier."""
    places: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if carries_verdicts(record):
            places.setdefault((record.experiment, record.profile), []).append(record)
    found = []
    for _, group in sorted(places.items()):
        tier = evidence_of(group).tier
        if tier is not None:
            found += [Row(record, tier, network_of(record), place_of(record)) for record in group]
    return found


def place_of(record: Record) -> str:
    """Return experiment and profile of a run."""
    return f"{record.experiment} ({record.profile})"


def dense_scores(record: Record) -> tuple[float | None, ...]:
    """Return what tells dense networks of one seed apart.

    Trained on two devices, or twice on a GPU, they are not the same network: they differ as much as those of two seeds
    do (docs/reproducibility.md).
    """
    found = (record.states["dense"].get(name) for name in ("loss", "top1"))  # no reader demands a loss
    return tuple(None if score is None else float(score) for score in found)


def network_of(record: Record) -> str:
    """Return what names the trained dense network of a run: a GPU makes another one of the same seed."""
    depends_on = {name: record.config.get(name) for name in DENSE_DEPENDS_ON}
    return f"{digest(depends_on, 8)}-{record.seed}-{digest(dense_scores(record), 8)}"


def strata_of(claim: Claim, rows: Iterable[Row], details: Details) -> dict[str, tuple[Stratum, ...]]:
    """Return by tier the strata that a claim rests on."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        model, dataset = str(row.record.config.get("model")), str(row.record.config.get("dataset"))
        if row.record.macs_kept <= claim.highest_macs_kept and claim.model in (None, model):
            groups.setdefault((row.tier, model, dataset), []).append(row)
    found: dict[str, tuple[Stratum, ...]] = {}
    for (tier, model, dataset), group in sorted(groups.items()):
        stratum = _stratum(claim, model, dataset, group, details)
        if stratum.by_network:
            found[tier] = (*found.get(tier, ()), stratum)
    return found


def _stratum(claim: Claim, model: str, dataset: str, rows: Sequence[Row], details: Details) -> Stratum:
    differences: dict[tuple[str, float], dict[str, list[float]]] = {}
    recipes: dict[str, set[str]] = {}
    met: dict[str, Row] = {}
    for ours, rival in claim.pairs:
        for own, other in _meet(rows, ours, rival, claim.varies):
            value = _difference(claim, own.record, other.record if other else None, details)
            if value is not None:
                cell = differences.setdefault((own.recipe, own.record.macs_kept), {})
                cell.setdefault(own.network, []).append(value)
                recipes.setdefault(own.recipe, set()).add(own.place)
                met |= {row.run: row for row in (own, other) if row is not None}
    places = {recipe: "; ".join(sorted(names)) for recipe, names in recipes.items()}
    cells = {
        key: {network: _mean(values) for network, values in sorted(differences[key].items())}
        for key in sorted(differences, key=lambda key: (places[key[0]], key[0], -key[1]))
    }
    by_target: dict[tuple[str, float], dict[str, float]] = {}
    for (recipe, target), found in cells.items():
        by_target.setdefault((places[recipe], target), {}).update(found)
    groups = over_targets(_once(cells))
    return Stratum(
        model,
        dataset,
        "; ".join(sorted({row.place for row in met.values()})),
        groups,
        by_target,
        tuple(sorted(met)),
        # of a difference between two values that are each rounded to a step: the step over the root of six
        max([SMALLEST_SD, *(resolution(claim.measure, row.record) / math.sqrt(6) for row in met.values())]),
        frozenset((places[recipe], target) for group in groups for recipe, target in group.targets),
    )


def _once(cells: Mapping[tuple[str, float], Mapping[str, float]]) -> dict[tuple[str, float], Mapping[str, float]]:
    """Return differences without those that another recipe has at the same target, of the same networks, to the bit.

    Such a recipe changed nothing there, as a cap does that no layer reaches: the runs are the same ones.
    """
    found: dict[tuple[str, float], Mapping[str, float]] = {}
    for (recipe, target), values in cells.items():
        if not any(other == target and values == known for (_, other), known in found.items()):
            found[recipe, target] = values
    return found


def _meet(rows: Sequence[Row], ours: Arm, rival: Arm | None, varies: Sequence[str]) -> list[tuple[Row, Row | None]]:
    """Return the rows of both arms that have equal keys, or ours alone where there is no rival."""
    own = [row for row in rows if ours.takes(row.record)]
    if rival is None:
        return [(row, None) for row in own]
    others = {row.key(varies): row for row in rows if rival.takes(row.record)}
    return [(row, others[key]) for row in own if (key := row.key(varies)) in others]


def _difference(claim: Claim, ours: Record, rival: Record | None, details: Details) -> float | None:
    if rival is not None and claim.same_weights and ours.strength != rival.strength:
        return None
    measure = MEASURES[claim.measure]
    first = measure(ours, details)
    second = 0.0 if rival is None else measure(rival, details)
    return None if first is None or second is None else first - second


def over_targets(cells: Mapping[tuple[str, float], Mapping[str, float]]) -> tuple[Alike, ...]:
    """Gather differences by which targets a network was run at.

    Every target of a recipe has the same weight, and so has every recipe, however many networks were run there. That
    differences at a mild target are others than at a hard one is then no luck of the networks: it stands between
    groups, and within a group, where the spread is measured, all were run at the same.

    A target counts if enough networks were run there, and a network if enough others were run at exactly the same
    targets of these. So a target that was run on networks of its own takes none away, nor does one that is half done.
    Where no group is large enough for a verdict, those count that were run at all targets.

    Args:
        cells: Differences by network, for each recipe and target.
    """
    cells = {cell: values for cell, values in cells.items() if len(values) >= ENOUGH_SEEDS} or cells
    run_at: dict[str, tuple[tuple[str, float], ...]] = {}
    for cell, values in cells.items():
        for network in values:
            run_at[network] = (*run_at.get(network, ()), cell)
    alike = Counter(run_at.values())
    sets = [found for found, count in alike.items() if count >= ENOUGH_SEEDS] or [tuple(cells)]
    counted = {cell: sum(alike[found] for found in sets if cell in found) for cell in cells}
    there = [cell for cell, count in counted.items() if count]
    targets = Counter(recipe for recipe, _ in there)
    of_one = {cell: 1 / (len(targets) * targets[cell[0]] * counted[cell]) for cell in there}  # a network's share
    groups = []
    for found in sets:
        share = sum(of_one[cell] for cell in found if cell in of_one)
        by_network = {
            network: sum(of_one[cell] * cells[cell][network] for cell in found) / share
            for network, where in sorted(run_at.items())
            if where == found
        }
        if by_network:
            groups.append(Alike(by_network, len(by_network) * share, tuple(cell for cell in found if cell in of_one)))
    return tuple(groups)


def pooled(parts: Sequence[tuple[Sequence[Alike], float]]) -> tuple[list[list[float]], list[float], list[float]]:
    """Return what `paired_effect` takes: differences, smallest deviation and weight of each group of some strata.

    Every stratum has the same say.

    Args:
        parts: Of each stratum the groups, and the standard deviation that their differences have at least.
    """
    found = [(group, smallest_sd) for groups, smallest_sd in parts for group in groups]
    values = [list(group.by_network.values()) for group, _ in found]
    return values, [sd for _, sd in found], [group.weight / len(parts) for group, _ in found]


def is_enough(groups: Sequence[Alike]) -> bool:
    """Return whether there are groups, all with the networks that a verdict needs."""
    return bool(groups) and all(len(group.by_network) >= ENOUGH_SEEDS for group in groups)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
