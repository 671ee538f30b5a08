"""The paper's claims as data, and what the records say about each.

A claim is tested on differences paired by seed, within one experiment and profile, averaged over its targets; every
experiment has the same say. `"more"` claims are supported where the effect is above zero and at least as large as the
smallest that matters, and refuted where an effect that large is excluded. `"not worse"` claims are supported where a
loss as large as the margin is excluded, and refuted where there is a loss of at least that size. Both directions are
tested at 2.5 %, and p values are adjusted over the whole ledger by Holm's method. What was run in profile `quick`,
with strengths that were not tuned, or with fewer than three seeds carries no verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from benchmarks.details import Details
from benchmarks.records import Record
from benchmarks.statistics import (
    CONFIDENCE,
    ENOUGH_SEEDS,
    Effect,
    bootstrap_interval,
    holm,
    paired_effect,
)

NOT_RUN, SUPPORTED, REFUTED, INCONCLUSIVE = "not run", "supported", "refuted", "inconclusive"
VERDICTS = (SUPPORTED, REFUTED, INCONCLUSIVE, NOT_RUN)
ABSTRACT = "Li et al. 2019, abstract"
NEAR_END = 0.005  # fine-tuning has recovered where validation top-1 is this close to its last value

Measure = Callable[[Record, Details], float | None]


def _state(name: str) -> Measure:
    return lambda record, details: float(record.states[name]["top1"])


def _concentration(record: Record, details: Details) -> float | None:
    value = record.structure.get("regularized", {}).get("concentration")
    return None if value is None else float(value)


def _recovery(record: Record, details: Details) -> float | None:
    """Return minus the share of fine-tuning that passes until validation top-1 is near its last value."""
    curve = details.finetuning(record)
    if len(curve) < 2:
        return None
    reached = next(epoch for epoch, top1 in enumerate(curve) if top1 >= curve[-1] - NEAR_END)
    return -reached / (len(curve) - 1)


def _change(record: Record, details: Details) -> float | None:
    return float(record.states["finetuned"]["top1"] - record.states["dense"]["top1"])


MEASURES: dict[str, Measure] = {
    "top-1 before fine-tuning": _state("pruned"),
    "top-1 after fine-tuning": _state("finetuned"),
    "top-1 after fine-tuning less dense": _change,
    "concentration of energy": _concentration,
    "share of fine-tuning saved": _recovery,
}
POINTS = {name for name in MEASURES if name.startswith("top-1")}


@dataclass(frozen=True)
class Claim:
    """A statement that records can support or refute.

    Attributes:
        id: Number in the ledger.
        statement: In words.
        source: Where it is made.
        pairs: Methods (ours, rival); the difference is ours less rival's. No rival: the measure itself.
        measure: Key of `MEASURES`.
        kind: `"more"` or `"not worse"`.
        matters: The smallest effect that matters, or the margin; in the measure's unit (top-1 in [0, 1]).
        same_weights: Only pairs that were trained with the same strength count.
        model: Only this network.
        highest_macs_kept: Only targets up to here.
        removals: Ours in several removals, the rival in one, at equal epochs in all.
    """

    id: str
    statement: str
    source: str
    pairs: tuple[tuple[str, str | None], ...]
    measure: str = "top-1 before fine-tuning"
    kind: Literal["more", "not worse"] = "more"
    matters: float = 0.01
    same_weights: bool = False
    model: str | None = None
    highest_macs_kept: float = 1.0
    removals: bool = False

    @property
    def comparison(self) -> str:
        """The methods that are compared, in words."""
        names = [f"{ours} − {rival or 'dense'}" for ours, rival in self.pairs]
        return ", ".join(names) + (" (several removals − one)" if self.removals else "")


AFTER: Any = {"measure": "top-1 after fine-tuning", "kind": "not worse", "matters": 0.003}
SAME_WEIGHTS = (
    ("gl-out-oi", "gl-out"),
    ("oicsr-gl", "oicsr-gl+out"),
    ("none", "none+out"),
    ("none", "l2"),
    ("oicsr-gl", "oicsr-gl+in"),
    ("gl-separate", "gl-separate+out"),
)

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "1",
        "Before fine-tuning, OICSR-GL keeps more accuracy than Group Lasso on out-channels at equal MACs.",
        ABSTRACT,
        (("oicsr-gl", "gl-out"),),
    ),
    Claim(
        "1b",
        "The gain comes from joining both sides in one group: OICSR-GL keeps more than out and in as groups apart.",
        "this suite: the control of claim 1",
        (("oicsr-gl", "gl-separate"),),
    ),
    Claim(
        "2a",
        "Before fine-tuning, OICSR-GL keeps more accuracy than non-structured L1.",
        ABSTRACT,
        (("oicsr-gl", "l1-weights"),),
    ),
    Claim(
        "2b",
        "Before fine-tuning, OICSR-GL keeps more accuracy than non-structured L2.",
        ABSTRACT,
        (("oicsr-gl", "l2-weights"),),
    ),
    Claim(
        "2c",
        "Before fine-tuning, OICSR-GL keeps more accuracy than no regulariser.",
        ABSTRACT,
        (("oicsr-gl", "none"),),
    ),
    Claim(
        "3a",
        "After fine-tuning, OICSR-GL is at least as good as Group Lasso on out-channels.",
        ABSTRACT,
        (("oicsr-gl", "gl-out"),),
        **AFTER,
    ),
    Claim(
        "3b",
        "After fine-tuning, OICSR-GL is at least as good as non-structured L1.",
        ABSTRACT,
        (("oicsr-gl", "l1-weights"),),
        **AFTER,
    ),
    Claim(
        "3c",
        "After fine-tuning, OICSR-GL is at least as good as no regulariser.",
        "this suite: the control of claim 3",
        (("oicsr-gl", "none"),),
        **AFTER,
    ),
    Claim(
        "4a",
        "Before fine-tuning, OICSR-GrOWL keeps more accuracy than GrOWL on one side.",
        "Li et al. 2019, the general form",
        (("oicsr-growl", "growl"),),
    ),
    Claim(
        "4b",
        "After fine-tuning, OICSR-GrOWL is at least as good as GrOWL on one side.",
        "Li et al. 2019, the general form",
        (("oicsr-growl", "growl"),),
        **AFTER,
    ),
    Claim(
        "5",
        "For the same weights, importance from two layers keeps more accuracy than importance from one.",
        ABSTRACT,
        SAME_WEIGHTS,
        same_weights=True,
    ),
    Claim(
        "6",
        "OICSR-GL concentrates energy in fewer out-in-channels than Group Lasso on out-channels.",
        ABSTRACT,
        (("oicsr-gl", "gl-out"),),
        "concentration of energy",
        matters=0.02,
    ),
    Claim(
        "7",
        "Before fine-tuning, global greedy selection keeps more accuracy than the same share of every layer.",
        "Li et al. 2019, Algorithm 1",
        (("oicsr-gl", "oicsr-gl-uniform"),),
    ),
    Claim(
        "8",
        "At high ratios (at most 35 % of the MACs kept), several removals leave more accuracy than one.",
        "Li et al. 2019, Fig. 2",
        (("oicsr-gl", "oicsr-gl"),),
        "top-1 after fine-tuning",
        matters=0.003,
        highest_macs_kept=0.35,
        removals=True,
    ),
    Claim(
        "9",
        "Fine-tuning recovers faster after OICSR-GL than after Group Lasso on out-channels.",
        "a reader's summary of Li et al. 2019",
        (("oicsr-gl", "gl-out"),),
        "share of fine-tuning saved",
        matters=0.05,
    ),
    Claim(
        "10",
        "On ImageNet, ResNet-50 with 37 % fewer MACs is not worse than the dense network.",
        ABSTRACT,
        (("oicsr-gl", None),),
        "top-1 after fine-tuning less dense",
        "not worse",
        0.003,
        model="resnet50",
        highest_macs_kept=0.64,
    ),
)


@dataclass(frozen=True)
class Stratum:
    """The differences of one experiment in one profile.

    Attributes:
        where: Experiment and profile.
        model: The network.
        dataset: The data.
        by_seed: Difference of each seed, averaged over pairs and targets.
        by_target: The same for each target.
        runs: The records behind them.
    """

    where: str
    model: str
    dataset: str
    by_seed: dict[int, float]
    by_target: dict[float, dict[int, float]]
    runs: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """What the records say about a claim; numbers in the measure's unit."""

    claim: Claim
    verdict: str
    reason: str
    effect: Effect | None = None
    bootstrap: tuple[float, float] | None = None
    p: float | None = None
    p_holm: float | None = None
    strata: tuple[Stratum, ...] = field(default=())

    @property
    def n(self) -> int:
        """Seeds, over all experiments."""
        return sum(len(stratum.by_seed) for stratum in self.strata)


def judge(records: Sequence[Record], details: Details, claims: Sequence[Claim] = CLAIMS) -> list[Verdict]:
    """Return a verdict on each claim, from records alone."""
    usable = [record for record in records if carries_verdicts(record)]
    drafts = [_draft(claim, strata_of(claim, usable, details), records) for claim in claims]
    tested = [position for position, draft in enumerate(drafts) if draft.p is not None]
    adjusted = holm([drafts[position].p or 0.0 for position in tested])
    for position, p_holm in zip(tested, adjusted, strict=True):
        drafts[position] = _decide(replace(drafts[position], p_holm=p_holm))
    return drafts


def carries_verdicts(record: Record) -> bool:
    """Whether verdicts may rest on a record: complete, not quick, and its strength tuned where it has one."""
    tuned = record.strength_source.startswith(("tuned", "none needed"))
    return record.complete and record.profile != "quick" and tuned


def strata_of(claim: Claim, records: Sequence[Record], details: Details) -> tuple[Stratum, ...]:
    """Return the paired differences that a claim rests on, one stratum per experiment (claim 8: per protocol)."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        if record.macs_kept <= claim.highest_macs_kept and claim.model in (None, record.config.get("model")):
            groups.setdefault(_group(claim, record), []).append(record)
    strata = [_stratum(claim, group, details) for _, group in sorted(groups.items())]
    return tuple(stratum for stratum in strata if stratum.by_seed)


def _group(claim: Claim, record: Record) -> tuple[str, ...]:
    if not claim.removals:
        return record.experiment, record.profile
    config = record.config
    return str(config.get("model")), str(config.get("dataset")), record.profile, str(sum(record.epochs.values()))


def _stratum(claim: Claim, records: Sequence[Record], details: Details) -> Stratum:
    differences: dict[tuple[float, int], list[float]] = {}
    runs: list[str] = []
    for ours_name, rival_name in claim.pairs:
        ours = _arm(records, ours_name, several=True if claim.removals else None)
        rivals = _arm(records, rival_name, several=False if claim.removals else None)
        for key, record in ours.items():
            rival = rivals.get(key)
            value = _difference(claim, record, rival if rival_name else None, details)
            if (rival_name and rival is None) or value is None:
                continue
            differences.setdefault(key, []).append(value)
            runs += [f"{r.experiment}/{r.run_id}" for r in (record, rival) if r is not None]
    by_target: dict[float, dict[int, float]] = {}
    for (target, seed), values in sorted(differences.items(), reverse=True):
        by_target.setdefault(target, {})[seed] = sum(values) / len(values)
    first = records[0]
    places = sorted({f"{r.experiment} ({r.profile})" for r in records}) if claim.removals else []
    return Stratum(
        ", ".join(places) or f"{first.experiment} ({first.profile})",
        str(first.config.get("model")),
        str(first.config.get("dataset")),
        _mean_over_targets(by_target),
        by_target,
        tuple(sorted(set(runs))),
    )


def _arm(records: Sequence[Record], method: str | None, several: bool | None) -> dict[tuple[float, int], Record]:
    return {
        (record.macs_kept, record.seed): record
        for record in records
        if record.method == method and several in (None, int(record.config.get("steps", 1)) > 1)
    }


def _difference(claim: Claim, ours: Record, rival: Record | None, details: Details) -> float | None:
    if rival is not None and claim.same_weights and ours.strength != rival.strength:
        return None
    measure = MEASURES[claim.measure]
    first = measure(ours, details)
    second = 0.0 if rival is None else measure(rival, details)
    return None if first is None or second is None else first - second


def _mean_over_targets(by_target: dict[float, dict[int, float]]) -> dict[int, float]:
    """Average over the targets; only seeds that were run at all of them count."""
    if not by_target:
        return {}
    seeds = set.intersection(*(set(values) for values in by_target.values()))
    return {seed: sum(values[seed] for values in by_target.values()) / len(by_target) for seed in sorted(seeds)}


def _draft(claim: Claim, strata: tuple[Stratum, ...], records: Sequence[Record]) -> Verdict:
    """Return the verdict as far as it can be said before p values are adjusted."""
    if not strata:
        return Verdict(claim, NOT_RUN, _why_not_run(claim, records))
    enough = tuple(stratum for stratum in strata if len(stratum.by_seed) >= ENOUGH_SEEDS)
    if not enough:
        return Verdict(claim, INCONCLUSIVE, f"fewer than {ENOUGH_SEEDS} seeds", strata=strata)
    values = [list(stratum.by_seed.values()) for stratum in enough]
    effect = paired_effect(values)
    side = _side(claim, effect)
    draft = Verdict(claim, INCONCLUSIVE, "", effect, bootstrap_interval(values), min(1.0, 2 * side), strata=enough)
    return draft


def _why_not_run(claim: Claim, records: Sequence[Record]) -> str:
    names = {name for pair in claim.pairs for name in pair if name}
    there = [r for r in records if r.complete and r.method in names and claim.model in (None, r.config.get("model"))]
    if not there:
        return "no records"
    if all(record.profile == "quick" for record in there):
        return "quick runs only"
    if not any(carries_verdicts(record) for record in there):
        return "strengths not tuned"
    return "no pair of comparable records"


def _side(claim: Claim, effect: Effect) -> float:
    """Return the one-sided p value in the direction that the estimate points to."""
    if claim.kind == "more":
        return effect.p_above(0.0) if effect.mean >= claim.matters else effect.p_below(claim.matters)
    return effect.p_below(0.0) if effect.mean <= -claim.matters else effect.p_above(-claim.matters)


def _decide(draft: Verdict) -> Verdict:
    claim, effect = draft.claim, draft.effect
    assert effect is not None and draft.p_holm is not None
    significant = draft.p_holm <= 1 - CONFIDENCE
    more = claim.kind == "more"
    positive = effect.mean >= claim.matters if more else effect.mean > -claim.matters
    if not significant:
        return replace(draft, reason="the interval allows for both answers, all comparisons considered")
    if positive:
        reason = "above zero, and as large as matters" if more else "a loss that matters is excluded"
        return replace(draft, verdict=SUPPORTED, reason=reason)
    reason = "an effect that matters is excluded" if more else "a loss that matters is there"
    return replace(draft, verdict=REFUTED, reason=reason)


def to_plain(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as values for JSON; numbers with six significant digits."""
    claim, effect = verdict.claim, verdict.effect
    return {
        **{name: value for name, value in asdict(claim).items() if name != "pairs"},
        "pairs": [list(pair) for pair in claim.pairs],
        "verdict": verdict.verdict,
        "reason": verdict.reason,
        "effect": _round(effect.mean) if effect else None,
        "interval_95": [_round(value) for value in effect.interval] if effect else None,
        "bootstrap_95": [_round(value) for value in verdict.bootstrap] if verdict.bootstrap else None,
        "p": _round(verdict.p),
        "p_holm": _round(verdict.p_holm),
        "n": verdict.n,
        "experiments": [_plain_stratum(stratum) for stratum in verdict.strata],
        "records": sorted({run for stratum in verdict.strata for run in stratum.runs}),
    }


def _plain_stratum(stratum: Stratum) -> dict[str, Any]:
    return {
        "where": stratum.where,
        "model": stratum.model,
        "dataset": stratum.dataset,
        "n": len(stratum.by_seed),
        **_plain_effect(stratum.by_seed),
        "targets": [{"macs_kept": t, "n": len(v), **_plain_effect(v)} for t, v in stratum.by_target.items()],
    }


def _plain_effect(by_seed: dict[int, float]) -> dict[str, Any]:
    values = list(by_seed.values())
    if not values:
        return {"effect": None, "interval_95": None}
    if len(values) < 2:
        return {"effect": _round(values[0]), "interval_95": None}
    effect = paired_effect([values])
    return {"effect": _round(effect.mean), "interval_95": [_round(value) for value in effect.interval]}


def _round(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
