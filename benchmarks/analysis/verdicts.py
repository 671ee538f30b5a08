"""Verdicts: what the records say about each claim, with effect, interval and multiplicity, for each tier of evidence.

Both directions are tested at 2.5 %, on one difference per trained network, every network-and-data-set pair with the
same weight. Within a tier, p values are adjusted over all claims by Holm's method. A run that diverged has no accuracy,
and leaving it out favours its method: such a claim is open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from benchmarks.analysis.claims import CLAIMS, Claim
from benchmarks.analysis.evidence import CURRENT_PROTOCOL, TIERS, dataset_title, evidence_of
from benchmarks.analysis.statistics import CONFIDENCE, ENOUGH_SEEDS, Effect, bootstrap_interval, holm, paired_effect
from benchmarks.analysis.strata import Stratum, carries_verdicts, is_enough, place_of, pooled, rows_of, strata_of
from benchmarks.records.histories import Details
from benchmarks.records.record import Record
from benchmarks.records.strengths import FIRST_TUNING_SEED

NOT_RUN, SUPPORTED, REFUTED, INCONCLUSIVE = "not run", "supported", "refuted", "inconclusive"

VERDICTS = (REFUTED, INCONCLUSIVE, SUPPORTED, NOT_RUN)  # in the order of reports: losses first

WORDS = {SUPPORTED: "holds on {}", REFUTED: "does not hold on {}", INCONCLUSIVE: "not shown on {}"}

DIVERGED = "DivergedError"  # kind of failure of a run whose loss was no longer finite

OPEN = "undecided, with all claims tested at once"


def datasets_of(strata: Sequence[Stratum]) -> str:
    """Return the data sets of some strata in words."""
    return " and ".join(dict.fromkeys(dataset_title(stratum.dataset) for stratum in strata))


@dataclass(frozen=True)
class Finding:
    """What the records of one tier say about a claim; numbers in the measure's unit.

    Attributes:
        verdict: One of `VERDICTS`.
        reason: Why, in a few words.
        tier: Of the evidence; None where nothing was run.
        effect: Mean difference.
        bootstrap: 95 % percentile interval.
        p: Two-sided, of the direction that the estimate points to.
        p_holm: The same, adjusted over the claims of the tier.
        strata: What it rests on.
        lost: Whether ours is significantly worse than its rival, adjusted over the claims of the tier as well.
        hinges: The strata without any one of which the verdict would be another, with what it would be then.
        diverged: How many runs of ours and of the rival diverged, in the experiments that it rests on.
    """

    verdict: str
    reason: str
    tier: str | None = None
    effect: Effect | None = None
    bootstrap: tuple[float, float] | None = None
    p: float | None = None
    p_holm: float | None = None
    strata: tuple[Stratum, ...] = field(default=())
    lost: bool = False
    diverged: tuple[int, int] = (0, 0)
    hinges: tuple[tuple[Stratum, Finding], ...] = field(default=())

    @property
    def n(self) -> int:
        """Trained networks, over all strata."""
        return sum(len(stratum.by_network) for stratum in self.strata)

    @property
    def datasets(self) -> str:
        """The data sets that it rests on, in words."""
        return datasets_of(self.strata)

    @property
    def words(self) -> str:
        """The verdict with what it holds for."""
        return WORDS[self.verdict].format(self.datasets) if self.verdict in WORDS else NOT_RUN


@dataclass(frozen=True)
class Verdict:
    """What the records say about a claim, tier by tier."""

    claim: Claim
    findings: tuple[Finding, ...]

    @property
    def best(self) -> Finding:
        """The finding of the highest tier that was run."""
        return self.findings[-1]

    @property
    def sentence(self) -> str:
        """The verdict in words that carry its evidence, the weakest tier first."""
        return "; ".join(finding.words for finding in self.findings)

    @property
    def verdict(self) -> str:
        """The verdict of the highest tier that was run."""
        return self.best.verdict

    @property
    def reason(self) -> str:
        """Why it is that of the highest tier."""
        return self.best.reason

    @property
    def effect(self) -> Effect | None:
        """The effect in the highest tier."""
        return self.best.effect

    @property
    def p_holm(self) -> float | None:
        """The adjusted p value of the highest tier."""
        return self.best.p_holm

    @property
    def n(self) -> int:
        """Trained networks of the highest tier."""
        return self.best.n

    @property
    def strata(self) -> tuple[Stratum, ...]:
        """The strata of the highest tier."""
        return self.best.strata

    def at(self, tier: str) -> Finding | None:
        """Return the finding of a tier, or None where nothing of it was run."""
        return next((finding for finding in self.findings if finding.tier == tier), None)


def judge(records: Sequence[Record], details: Details, claims: Sequence[Claim] = CLAIMS) -> list[Verdict]:
    """Return a verdict on each claim, from records alone."""
    rows = rows_of(records)
    strata = [strata_of(claim, rows, details) for claim in claims]
    findings: list[list[Finding]] = [[] for _ in claims]
    for tier in TIERS:
        drafts = [
            _draft(claim, tier, found.get(tier, ()), records) for claim, found in zip(claims, strata, strict=True)
        ]
        for position, finding in enumerate(_adjusted(claims, drafts)):
            if finding is not None:
                hinges = _hinges(claims, drafts, position, finding, records)
                findings[position].append(replace(finding, hinges=hinges))
    return [
        Verdict(claim, tuple(found) or (Finding(NOT_RUN, _why_not_run(claim, records)),))
        for claim, found in zip(claims, findings, strict=True)
    ]


def _draft(claim: Claim, tier: str, strata: tuple[Stratum, ...], records: Sequence[Record]) -> Finding | None:
    """Return the finding before p values are adjusted."""
    if not strata:
        return None
    enough = tuple(stratum for stratum in strata if is_enough(stratum.groups))
    if not enough:
        return Finding(INCONCLUSIVE, f"fewer than {ENOUGH_SEEDS} networks at one target", tier, strata=strata)
    values, smallest, weights = pooled([(stratum.groups, stratum.smallest_sd) for stratum in enough])
    effect, bootstrap = paired_effect(values, smallest, weights), bootstrap_interval(values, weights)
    p = min(1.0, 2 * _side(claim, effect))
    diverged = _diverged(claim, enough, records)
    return Finding(INCONCLUSIVE, "", tier, effect, bootstrap, p, strata=enough, diverged=diverged)


def _diverged(claim: Claim, strata: Sequence[Stratum], records: Sequence[Record]) -> tuple[int, int]:
    """Return how many runs of ours and of the rival diverged in the experiments of some strata, and the other's not."""
    places = {place for stratum in strata for place in stratum.where.split("; ")}
    found = [
        record
        for record in records
        if (record.failure or {}).get("kind") == DIVERGED
        and (record.protocol == CURRENT_PROTOCOL and record.seed < FIRST_TUNING_SEED)
        and (record.macs_kept <= claim.highest_macs_kept and place_of(record) in places)
    ]
    ours, rivals = (
        {  # arms of a claim that varies something meet across experiments
            ("" if claim.varies else r.experiment, r.profile, r.seed, r.macs_kept)
            for r in found
            if any(arm and arm.takes(r) for arm in side)
        }
        for side in zip(*claim.pairs, strict=True)
    )
    return len(ours - rivals), len(rivals - ours)


def _adjusted(claims: Sequence[Claim], drafts: Sequence[Finding | None]) -> list[Finding | None]:
    """Adjust the p values of one tier, and decide."""
    decided = list(drafts)
    tested = [(position, draft, draft.p) for position, draft in enumerate(drafts) if draft and draft.p is not None]
    adjusted = holm([p for _, _, p in tested])
    of_losses = holm([_p_of_loss(claims[position], draft, p) for position, draft, p in tested])
    for (position, draft, _), p_holm, p_loss in zip(tested, adjusted, of_losses, strict=True):
        decided[position] = _decide(claims[position], replace(draft, p_holm=p_holm), p_loss)
    return decided


def _hinges(
    claims: Sequence[Claim],
    drafts: Sequence[Finding | None],
    position: int,
    found: Finding,
    records: Sequence[Record],
) -> tuple[tuple[Stratum, Finding], ...]:
    """Return the strata without any one of which a claim's verdict would be another, all else being the same."""
    if found.effect is None or found.tier is None or len(found.strata) < 2:
        return ()
    hinges = []
    for stratum in found.strata:
        rest = _draft(claims[position], found.tier, tuple(s for s in found.strata if s is not stratum), records)
        without = _adjusted(claims, [*drafts[:position], rest, *drafts[position + 1 :]])[position]
        if without is not None and (without.verdict, without.lost) != (found.verdict, found.lost):
            hinges.append((stratum, without))
    return tuple(hinges)


def _p_of_loss(claim: Claim, draft: Finding, p: float) -> float:
    """Return the p value of what is claimed where the estimate is a loss: that there is one, however small."""
    effect = draft.effect
    return min(1.0, 2 * effect.p_below(0.0)) if effect and claim.kind == "more" and effect.mean < 0 else p


def _side(claim: Claim, effect: Effect) -> float:
    """Return the one-sided p value in the direction that the estimate points to."""
    if claim.kind == "more":
        return effect.p_above(0.0) if effect.mean >= claim.matters else effect.p_below(claim.matters)
    return effect.p_below(0.0) if effect.mean <= -claim.matters else effect.p_above(-claim.matters)


def _decide(claim: Claim, draft: Finding, p_loss: float) -> Finding:
    """Return the verdict, which is open where it may be owed to runs that are in no mean because they diverged."""
    found = _decided(claim, draft, p_loss)
    ours, rivals = draft.diverged
    favoured, of = (ours, "ours") if found.verdict == SUPPORTED else (rivals, "the rival")
    if found.verdict == INCONCLUSIVE or not favoured:
        return found
    reason = f"{favoured} {'run' if favoured == 1 else 'runs'} of {of} diverged, and {'is' if favoured == 1 else 'are'}"
    return replace(found, verdict=INCONCLUSIVE, reason=f"{reason} in no mean", lost=False)


def _decided(claim: Claim, draft: Finding, p_loss: float) -> Finding:
    effect, more = draft.effect, claim.kind == "more"
    assert effect is not None and draft.p_holm is not None
    if draft.p_holm > 1 - CONFIDENCE:
        return replace(draft, reason=OPEN)
    positive = effect.mean >= claim.matters if more else effect.mean > -claim.matters
    if positive:
        reason = "positive, and at least the margin" if more else "a loss as large as the margin is excluded"
        return replace(draft, verdict=SUPPORTED, reason=reason)
    if not more:
        return replace(draft, verdict=REFUTED, reason="negative, and at least as large as the margin", lost=True)
    if effect.mean < 0 and p_loss <= 1 - CONFIDENCE:
        return replace(draft, verdict=REFUTED, reason="the opposite: the interval is below zero", lost=True)
    return replace(draft, verdict=REFUTED, reason="an effect as large as the margin is excluded")


def _why_not_run(claim: Claim, records: Sequence[Record]) -> str:
    pairs = [[arm.method for arm in pair if arm] for pair in claim.pairs]
    there = [
        record
        for record in records
        if record.complete
        and claim.model in (None, record.config.get("model"))
        and any(record.method in pair for pair in pairs)
    ]
    if not there:
        return "no records"
    run = {record.method for record in there}
    absent = dict.fromkeys(method for pair in pairs for method in pair if method not in run)
    if not any(run.issuperset(pair) for pair in pairs):
        return f"no records of {', '.join(absent)}"
    thorough = [record for record in there if record.profile != "quick"]
    if not thorough:
        return "quick runs only"
    current = [record for record in thorough if record.protocol == CURRENT_PROTOCOL]
    if not current:
        return f"records of protocol {max(r.protocol for r in thorough)} only"
    usable = [record for record in current if carries_verdicts(record)]
    if not usable:
        return "strengths not tuned"
    places: dict[tuple[str, str], list[Record]] = {}
    for record in usable:
        places.setdefault((record.experiment, record.profile), []).append(record)
    found = [evidence_of(group) for group in places.values()]
    if all(evidence.tier is None for evidence in found):
        return "; ".join(dict.fromkeys(evidence.reason for evidence in found))
    return "no pair of comparable records"


def to_plain(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as values for JSON; numbers with six significant digits."""
    claim = verdict.claim
    return {
        **{name: value for name, value in asdict(claim).items() if name != "pairs"},
        "pairs": [[ours.text, rival.text if rival else None] for ours, rival in claim.pairs],
        "words": verdict.sentence,
        **_plain_finding(verdict.best),
        "tiers": [_plain_finding(finding) for finding in verdict.findings if finding.tier],
    }


def _plain_finding(finding: Finding) -> dict[str, Any]:
    effect = finding.effect
    return {
        "tier": finding.tier,
        "verdict": finding.verdict,
        "reason": finding.reason,
        "effect": _round(effect.mean) if effect else None,
        "interval_95": [_round(value) for value in effect.interval] if effect else None,
        "bootstrap_95": [_round(value) for value in finding.bootstrap] if finding.bootstrap else None,
        "p": _round(finding.p),
        "p_holm": _round(finding.p_holm),
        "n": finding.n,
        "hinges": [
            {
                "model": stratum.model,
                "dataset": stratum.dataset,
                "verdict": without.verdict,
                "lost": without.lost,
                "effect": _round(without.effect.mean) if without.effect else None,
            }
            for stratum, without in finding.hinges
        ],
        "strata": [_plain_stratum(stratum) for stratum in finding.strata],
        "records": sorted({run for stratum in finding.strata for run in stratum.runs}),
    }


def _plain_stratum(stratum: Stratum) -> dict[str, Any]:
    return {
        "model": stratum.model,
        "dataset": stratum.dataset,
        "where": stratum.where,
        "n": len(stratum.by_network),
        **_plain_mean(stratum),
        "targets": [
            {
                "where": place,
                "macs_kept": target,
                "n": len(values),
                "counts": (place, target) in stratum.counted,
                **_plain_effect(values, stratum.smallest_sd),
            }
            for (place, target), values in stratum.by_target.items()
        ],
    }


def _plain_mean(stratum: Stratum) -> dict[str, Any]:
    if len(stratum.groups) < 2:
        return _plain_effect(stratum.by_network, stratum.smallest_sd)
    return _plain(paired_effect(*pooled([(stratum.groups, stratum.smallest_sd)])))


def _plain_effect(by_network: Mapping[str, float], smallest_sd: float) -> dict[str, Any]:
    values = list(by_network.values())
    if not values:
        return {"effect": None, "interval_95": None}
    if len(values) < 2:
        return {"effect": _round(values[0]), "interval_95": None}
    return _plain(paired_effect([values], [smallest_sd]))


def _plain(effect: Effect) -> dict[str, Any]:
    return {"effect": _round(effect.mean), "interval_95": [_round(value) for value in effect.interval]}


def _round(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
