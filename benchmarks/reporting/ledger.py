"""Verdicts in words: lines for the README, and the ledger as tables. Losses stand first, and every tier by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.analysis.claims import FINETUNED, POINTS, PRUNED, RECALIBRATED, SUITE, Claim
from benchmarks.analysis.evidence import TIER_WORDS, TIERS, TOY, dataset_title
from benchmarks.analysis.statistics import ENOUGH_SEEDS
from benchmarks.analysis.strata import Stratum
from benchmarks.analysis.verdicts import (
    INCONCLUSIVE,
    NOT_RUN,
    REFUTED,
    SUPPORTED,
    VERDICTS,
    Finding,
    Verdict,
    datasets_of,
)
from benchmarks.escape import for_markdown
from benchmarks.methods.registry import find_method
from benchmarks.reporting.comparison_table import NO_VERDICT
from benchmarks.reporting.numbers import NONE, share, signed

EXPLANATION = (
    "Each claim is tested on paired differences, one for each trained dense network, averaged over its targets; "
    "experiments that start from the same networks count once. Every pair of network and data set has the same say, "
    "within one every recipe (experiments of one recipe differ in their networks alone), and within a recipe every "
    "target, however many networks were run there; runs that came out the same to the bit under two recipes count "
    "once. Networks that were run at other targets than others form a group: the spread is measured within groups of "
    "at least three. A target counts once three networks were run at it. "
    "Strengths were chosen by validation loss before fine-tuning, with several networks the middle of those that tie "
    "with the lowest within a standard error; a weaker one may end higher after it. Effect: mean, with Student's t "
    "interval, which keeps its nominal coverage with 3 to 10 networks; the percentile bootstrap does not (it is in "
    "`claims.json` too). Recovery is counted in whole epochs, so its interval is never narrower than one epoch "
    "allows. A claim of *more* holds where the effect is above zero and at least the margin, and does not hold where "
    "an effect that large is excluded; a claim of *not worse* holds where a loss as large as the margin is excluded, "
    "and does not hold where the effect is below zero and the loss at least the margin. Many claims are tested at "
    "once: within each tier of evidence, p is adjusted by Holm's method over all of them, so that the chance of any "
    "false verdict in the tier stays at 5 %, given the strengths (on CIFAR most come from one network each) and the "
    "present runs: networks, targets and claims were added after earlier verdicts, for which p is not corrected. What "
    "does not hold is a *loss* where ours is shown to be worse than its rival: for a claim of *more* by any amount, "
    "which is tested and adjusted in the same way; for one of *not worse* where it is so by the margin or more on "
    "average. A run that diverged has no accuracy; a verdict that "
    "its absence favours is left open. Tiers are computed from the records: *toy* is "
    "digits; *small* is all images of a natural-image data set, with dense networks within five points of their "
    "published accuracy; *full* is that, at the field's recipe and length. Quick runs, strengths that were not tuned "
    "on validation data for this network and training, records of an older protocol, and fewer than three networks "
    "carry no verdict. A verdict is about the mean over the networks and data that it names, not about each of them, "
    "and about no others; where it would be another without one of the networks, the row says so."
)

TITLES = {
    REFUTED: "Does not hold",
    INCONCLUSIVE: "Not shown",
    SUPPORTED: "Holds",
    NOT_RUN: "Not run",
}

# What README tells: the paper's claim and its controls, the strongest rival, and what this suite adds to both.
KEY_PAIRS = (
    ("oicsr-gl", "depgraph"),
    ("oicsr-gl-norm", "depgraph"),
    ("oicsr-gl-norm", "oicsr-gl"),
    ("oicsr-gl", "scratch-e"),
    ("oicsr-gl", "gl-separate"),
    ("oicsr-gl", "gl-out"),
    ("oicsr-gl", "none"),
)

ONLY_BEGUN = f"only begun, fewer than {ENOUGH_SEEDS} networks"

FIRST_CLAIMS = ("1", "11", "11f")  # the paper's own, and the strongest rival before and after fine-tuning

Column = tuple[str, str, float]  # data set, network and target
Cells = dict[Column, dict[str, float]]  # a difference per trained network

BY_NETWORK, BY_NETWORK_TITLE = (RECALIBRATED, FINETUNED), "By network and share of the MACs"

KEY_MEASURES = {PRUNED: "Before fine-tuning", RECALIBRATED: "Recalibrated", FINETUNED: "Fine-tuned"}

HEADER = "| | Claim | Verdict | Effect | 95 % interval | Margin | n | p (Holm) | On |"


def headline(verdicts: Sequence[Verdict]) -> str:
    """Return in one line what the highest tier says, and how much lower tiers say."""
    highest = highest_tier(verdicts)
    if highest is None:
        return f"None of {len(verdicts)} claims carries a verdict yet."
    tiers = [tier for tier in reversed(TIERS) if any(verdict.at(tier) for verdict in verdicts)]
    return " ".join(f"{for_markdown(of_tier(verdicts, tier))}: {_said(verdicts, tier)}." for tier in tiers)


def _judges(verdicts: Sequence[Verdict], tier: str) -> bool:
    return any((own := verdict.at(tier)) and own.effect for verdict in verdicts)


def _said(verdicts: Sequence[Verdict], tier: str) -> str:
    return counts(verdicts, tier) if _judges(verdicts, tier) else ONLY_BEGUN


KEY_NOTE = (
    "Percentage points, averaged over targets, trained networks, and pairs of network and data set. Before "
    "fine-tuning, *holds* means shown to be better, and by a point or more on average; a *loss* is one by any amount, "
    "so the rule is stricter with what is claimed than with what stands against it. Fine-tuned, *holds* means shown "
    "not to be worse by 0.3 points or more{scratch}, and a *loss* is as large as that on average. All claims are "
    "tested at once (Holm), so a claim may be *not shown* although its own interval excludes zero.{hinges} RESULTS.md "
    "has the intervals."
)

HINGE_MARK = "†"
HINGE_NOTE = (
    f" {HINGE_MARK}: the verdict would be another without one of the networks; [the ledger](results/verdicts.md) says "
    "which."
)

OVERVIEW_NOTE = (
    "Mean difference, its own 95 % interval, and n trained networks. All claims of a column are tested at once (Holm), "
    "so a claim may be *not shown* although its own interval excludes zero, and a mean below zero *does not hold* "
    "without being shown to be a *loss*. *Paper*: its abstract says so, which is all of it that was at hand; "
    "*summary*: others report it of the paper, or it follows from what they report; *control*: it is there to tell "
    "what makes the difference; *ours*: the question is this suite's."
)

BY_NETWORK_NOTE = (
    "Recalibrated / fine-tuned, in percentage points: the means behind the table above, for each network and share of "
    "the MACs that is kept. n is the number of trained networks; a cell that rests on fewer gives its own number in "
    "brackets. The verdicts apply to this mix of networks and targets only."
)


def first_findings(verdicts: Sequence[Verdict]) -> list[tuple[Verdict, Finding | None]]:
    """Return what is told first, from the highest tier that judges; losses first, and last what it does not judge."""
    tier = highest_tier(verdicts)
    chosen = [verdict for verdict in verdicts if verdict.claim.id in FIRST_CLAIMS]
    ordered = in_order(chosen, tier) if tier else []
    ordered += [verdict for verdict in chosen if verdict not in ordered]
    return [(verdict, verdict.at(tier) if tier else None) for verdict in ordered]


def _word(finding: Finding) -> str:
    return "**loss**" if finding.lost else f"**{TITLES[finding.verdict].lower()}**"


def highest_tier(verdicts: Sequence[Verdict]) -> str | None:
    """Return the highest tier that judged a claim on enough networks; without one, the highest that has any run."""
    judged = (tier for tier in reversed(TIERS) if _judges(verdicts, tier))
    begun = (tier for tier in reversed(TIERS) if any(verdict.at(tier) for verdict in verdicts))
    return next(judged, None) or next(begun, None)


def of_tier(verdicts: Sequence[Verdict], tier: str) -> str:
    """Return a tier with what it rests on, such as "Small evidence, on CIFAR-10 (resnet20; 3 networks)"."""
    strata = _strata(verdicts, tier)
    models = ", ".join(dict.fromkeys(stratum.model for stratum in strata))
    networks = len({(s.model, s.dataset, network) for s in strata for network in s.by_network})
    count = f"{networks} trained {'network' if networks == 1 else 'networks'}"
    return f"{tier.capitalize()} evidence, on {datasets_of(strata)} ({models}; {count})"


def _strata(verdicts: Sequence[Verdict], tier: str) -> list[Stratum]:
    """Return what a tier's judgements rest on; where it judges nothing, what was run."""
    found = [finding for verdict in verdicts if (finding := verdict.at(tier))]
    judged = [finding for finding in found if finding.effect]
    return [stratum for finding in judged or found for stratum in finding.strata]


def counts(verdicts: Sequence[Verdict], tier: str) -> str:
    """Return how many verdicts of each kind a tier has."""
    parts = []
    for kind in VERDICTS:
        found = [verdict for verdict in verdicts if (own := verdict.at(tier)) and own.verdict == kind]
        lost = sum(verdict.at(tier).lost for verdict in found)  # type: ignore[union-attr]
        if found:
            losses = "" if not lost else " (all of them losses)" if lost == len(found) else f" ({lost} of them losses)"
            parts.append(f"{TITLES[kind].lower()}: {len(found)}{losses}")
    text = "; ".join(parts)
    return text[0].upper() + text[1:]


def readme_lines(verdicts: Sequence[Verdict]) -> list[str]:
    """Return the README's verdicts: the key claims in the highest judged tier, losses first; others in one line."""
    tier = highest_tier(verdicts)
    if tier is None:
        return ["**No verdicts yet**: no records of the present protocol carry one.", ""]
    about = "a toy shows how methods work, not how they do elsewhere" if tier == TOY else TIER_WORDS[tier]
    lines = [f"**{for_markdown(of_tier(verdicts, tier))}** ({about}):", ""]
    lines += [*_key_table(verdicts, tier), *by_network_lines(verdicts, tier)]
    others = [other for other in reversed(TIERS) if other != tier and any(verdict.at(other) for verdict in verdicts)]
    for other in others:
        lines += ["", f"{for_markdown(of_tier(verdicts, other))}: {_said(verdicts, other)}."]
    return [*lines, ""]


def _key_table(verdicts: Sequence[Verdict], tier: str) -> list[str]:
    """Return a row per pair of methods with a column per state, the pairs with losses first."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for verdict in in_order(verdicts, tier):
        pair, finding = key_pair(verdict.claim), verdict.at(tier)
        if pair and finding:
            rows.setdefault(pair, {})[verdict.claim.measure] = _brief(verdict.claim, finding)
    if not rows:
        return []
    lines = [f"| Difference in top-1 | {' | '.join(KEY_MEASURES.values())} |", "|---|" + "---:|" * len(KEY_MEASURES)]
    for pair, cells in rows.items():
        ours, rival = (for_markdown(find_method(name).title) for name in pair)
        lines.append(f"| {ours} against {rival} | {' | '.join(cells.get(name, NONE) for name in KEY_MEASURES)} |")
    scratch = " (against Scratch-E: better)" if any(rival == "scratch-e" for _, rival in rows) else ""
    marked = any(HINGE_MARK in cell for cells in rows.values() for cell in cells.values())
    return [*lines, "", KEY_NOTE.format(scratch=scratch, hinges=HINGE_NOTE if marked else "")]


def by_network_lines(verdicts: Sequence[Verdict], tier: str) -> list[str]:
    """Return the key pairs' differences after recalibration and fine-tuning, a column per network and target.

    Nothing where a tier rests on one network and one target: its table says it all then.
    """
    found: dict[tuple[str, str], dict[str, Cells]] = {}
    networks: dict[Column, set[str]] = {}
    for verdict in in_order(verdicts, tier):
        pair, finding = key_pair(verdict.claim), verdict.at(tier)
        if pair and finding and finding.effect and verdict.claim.measure in BY_NETWORK:
            cells = found.setdefault(pair, {}).setdefault(verdict.claim.measure, _cells(finding))
            for column, values in cells.items():
                networks.setdefault(column, set()).update(values)
    columns = sorted(networks, key=lambda column: (*column[:2], -column[2]))
    if len(columns) < 2:
        return []
    titled = len({dataset for dataset, _, _ in columns}) > 1
    heads = [f"{_head(column, titled=titled)} (n = {len(networks[column])})" for column in columns]
    lines = ["", f"| {BY_NETWORK_TITLE} | {' | '.join(heads)} |", "|---|" + "---:|" * len(columns)]
    for pair, by_measure in found.items():
        ours, rival = (for_markdown(find_method(name).title) for name in pair)
        both = [[by_measure.get(measure, {}).get(column, {}) for measure in BY_NETWORK] for column in columns]
        texts = [_means(values, len(networks[column])) for values, column in zip(both, columns, strict=True)]
        lines.append(f"| {ours} minus {rival} | {' | '.join(texts)} |")
    return [*lines, "", BY_NETWORK_NOTE]


def _head(column: Column, *, titled: bool) -> str:
    """Return network and target in words, with the data set where it is not the only one."""
    dataset, model, kept = column
    of = f"{dataset_title(dataset)}, " if titled else ""
    return for_markdown(f"{of}{model}, {share(kept, 0)}")


def _cells(finding: Finding) -> Cells:
    """Return the differences by data set, network and target, of the trained networks that the verdict counts."""
    cells: dict[Column, dict[str, list[float]]] = {}
    for stratum in finding.strata:
        for (place, target), values in stratum.by_target.items():
            counted = stratum.by_network.keys() if (place, target) in stratum.counted else set()
            for network in values.keys() & counted:
                own = cells.setdefault((stratum.dataset, stratum.model, target), {})
                own.setdefault(network, []).append(values[network])
    return {
        column: {network: sum(each) / len(each) for network, each in sorted(values.items())}
        for column, values in cells.items()
    }


def _means(by_measure: Sequence[Mapping[str, float]], usual: int) -> str:
    """Return the mean of each measure, and over how many networks where that is not the usual number."""
    if not any(by_measure):
        return NONE
    means = [signed(100 * sum(v.values()) / len(v), 1) if v else NONE for v in by_measure]
    counts = list(dict.fromkeys(len(values) for values in by_measure if values))
    fewer = "" if counts == [usual] else f" ({', '.join(map(str, counts))})"
    return " / ".join(means) + fewer


def key_pair(claim: Claim) -> tuple[str, str] | None:
    """Return the methods of a claim that README tells, or None."""
    if claim.measure not in KEY_MEASURES or len(claim.pairs) != 1 or claim.pairs[0][1] is None or claim.varies:
        return None
    pair = claim.pairs[0][0].method, claim.pairs[0][1].method
    return pair if pair in KEY_PAIRS else None


def _brief(claim: Claim, finding: Finding) -> str:
    if finding.effect is None:
        return for_markdown(finding.reason)
    word = "**loss**" if finding.lost else TITLES[finding.verdict].lower()
    return f"{word}, {signed(100 * finding.effect.mean, 1)}{_mark(finding)}"


def _mark(finding: Finding) -> str:
    """Return a mark where a verdict that says something rests on one of several networks."""
    return f" {HINGE_MARK}" if finding.hinges and finding.verdict != INCONCLUSIVE else ""


def hinge_text(claim: Claim, finding: Finding, digits: int = 2) -> str:
    """Return what a verdict that says something would be without the network that it rests on; else nothing."""
    if not _mark(finding):
        return ""
    names = []
    for stratum, _ in finding.hinges:
        alike = {other.dataset for other in finding.strata if other.model == stratum.model}
        names.append(stratum.model if len(alike) == 1 else f"{stratum.model} on {dataset_title(stratum.dataset)}")
    if len(names) > 1:
        return f"another verdict without {', '.join(names[:-1])} or {names[-1]}"
    (name,), ((_, without),) = names, finding.hinges
    word = "a loss" if without.lost else TITLES[without.verdict].lower()
    if without.effect is None:
        return f"without {name}: {word}"
    points = claim.measure in POINTS
    return f"without {name}: {signed((100 if points else 1) * without.effect.mean, digits if points else 3)}, {word}"


def in_order(verdicts: Sequence[Verdict], tier: str) -> list[Verdict]:
    """Return the verdicts of a tier: losses, other refutations, what is open, what holds; as in the ledger within."""

    def order(verdict: Verdict) -> tuple[int, bool]:
        finding = verdict.at(tier)
        assert finding is not None
        return VERDICTS.index(finding.verdict), not finding.lost

    return sorted((verdict for verdict in verdicts if verdict.at(tier)), key=order)


def overview_lines(verdicts: Sequence[Verdict]) -> list[str]:
    """Return one row per claim with a column per tier that judges, losses first."""
    tiers = [tier for tier in reversed(TIERS) if any(verdict.at(tier) for verdict in verdicts)]
    judging = [tier for tier in tiers if _judges(verdicts, tier)] or tiers
    if not tiers:
        return _without(verdicts)
    listed: list[Verdict] = []
    for tier in tiers:
        judged = [verdict for verdict in in_order(verdicts, tier) if (own := verdict.at(tier)) and own.effect]
        listed += [verdict for verdict in judged if verdict not in listed]
    listed += [verdict for tier in tiers for verdict in in_order(verdicts, tier)]
    heads = [f"{tier.capitalize()}: {for_markdown(datasets_of(_strata(verdicts, tier)))}" for tier in judging]
    lines = [f"| | Claim | Source | {' | '.join(heads)} |", "|---|---|---|" + "---|" * len(judging)]
    for verdict in {verdict.claim.id: verdict for verdict in listed}.values():
        cells = [_cell(verdict.claim, verdict.at(tier)) for tier in judging]
        source = source_word(verdict.claim)
        lines.append(f"| {verdict.claim.id} | {verdict.claim.short} | {source} | {' | '.join(cells)} |")
    return [*lines, "", OVERVIEW_NOTE, "", *_without(verdicts)]


def _cell(claim: Claim, finding: Finding | None) -> str:
    if finding is None:  # what was run, if anything, carries no verdict
        return NO_VERDICT
    if finding.effect is None:
        return f"{_word(finding)}: {for_markdown(finding.reason)}"
    told = f"{_word(finding)} {amount(claim, finding.effect.mean)} ({interval_text(claim, finding)}), n = {finding.n}"
    hinge = hinge_text(claim, finding)
    return f"{told}; {for_markdown(hinge)}" if hinge else told


def _without(verdicts: Sequence[Verdict]) -> list[str]:
    """Return the claims without any finding, grouped by why."""
    reasons: dict[str, list[str]] = {}
    for verdict in verdicts:
        if verdict.best.tier is None:
            reasons.setdefault(for_markdown(verdict.reason), []).append(verdict.claim.id)
    parts = [f"{', '.join(ids)} ({reason})" for reason, ids in reasons.items()]
    return [f"Not run: {'; '.join(parts)}.", ""] if parts else []


def ledger_lines(verdicts: Sequence[Verdict]) -> list[str]:
    """Return the ledger as Markdown lines: a table per tier, the highest first, then what was not run."""
    lines = [headline(verdicts), "", EXPLANATION, ""]
    for tier in reversed(TIERS):
        found = in_order(verdicts, tier)
        if found:
            lines += [f"## {tier.capitalize()} evidence: {TIER_WORDS[tier]}", "", HEADER]
            lines += ["|---|---|---|---:|---:|---:|---:|---:|---|", *(_row(verdict, tier) for verdict in found), ""]
    absent = [verdict for verdict in verdicts if verdict.best.tier is None]
    if absent:
        lines += ["## Not run", ""]
        lines += [
            f"- {v.claim.id}: {v.claim.statement} ({v.claim.comparison}): {for_markdown(v.reason)}" for v in absent
        ]
        lines.append("")
    return lines


def _row(verdict: Verdict, tier: str) -> str:
    claim, finding = verdict.claim, verdict.at(tier)
    assert finding is not None
    margin, hinge = amount(claim, claim.matters).lstrip("+"), hinge_text(claim, finding)
    cells = [
        claim.id,
        f"{claim.statement} ({claim.comparison})",
        f"**{for_markdown(finding.words)}**{' (a loss)' if finding.lost else ''}"
        + "".join(f"{mark} {for_markdown(text)}" for mark, text in ((":", finding.reason), (";", hinge)) if text),
        amount(claim, finding.effect.mean) if finding.effect else NONE,
        interval_text(claim, finding) or NONE,
        margin if claim.kind == "more" else f"loss of {margin}",
        str(finding.n),
        p_text(finding.p_holm) or NONE,
        "; ".join(f"{for_markdown(stratum.model)}: {stratum.where}" for stratum in finding.strata),
    ]
    return f"| {' | '.join(cells)} |"


def source_word(claim: Claim) -> str:
    """Return who makes a claim: the paper, or this suite, as a control of one of the paper's or for itself."""
    if not claim.source.startswith(SUITE):
        return "paper" if claim.source.startswith("Li et al.") else "summary"
    return "control" if "control" in claim.source else "ours"


def amount(claim: Claim, value: float) -> str:
    """Return an effect in its unit: points for top-1, else the number."""
    return f"{signed(100 * value)} points" if claim.measure in POINTS else signed(value, 3)


def interval_text(claim: Claim, finding: Finding) -> str:
    """Return the 95 % interval in the claim's unit, or nothing."""
    if finding.effect is None:
        return ""
    scale, digits = (100, 2) if claim.measure in POINTS else (1, 3)
    low, high = (signed(scale * value, digits) for value in finding.effect.interval)
    return f"{low} to {high}"


def p_text(p: float | None) -> str:
    """Return a p value as it is printed, or nothing."""
    if p is None:
        return ""
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}"
