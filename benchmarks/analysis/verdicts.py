"""Verdicts: what the records say about each claim, with effect, interval and multiplicity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from benchmarks.analysis.claims import CLAIMS, MEASURES, Claim
from benchmarks.analysis.statistics import CONFIDENCE, ENOUGH_SEEDS, Effect, bootstrap_interval, holm, paired_effect
from benchmarks.records.histories import Details
from benchmarks.records.record import Record

NOT_RUN, SUPPORTED, REFUTED, INCONCLUSIVE = "not run", "supported", "refuted", "inconclusive"

VERDICTS = (SUPPORTED, REFUTED, INCONCLUSIVE, NOT_RUN)


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
