"""The README's first words on results: whether the paper's claim holds, what was lost, and on what evidence."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from benchmarks.analysis.claims import FINETUNED, POINTS, PRUNED, RECALIBRATED, Claim
from benchmarks.analysis.evidence import TIER_WORDS
from benchmarks.analysis.verdicts import INCONCLUSIVE, REFUTED, SUPPORTED, Verdict
from benchmarks.escape import for_markdown
from benchmarks.methods.registry import find_method
from benchmarks.reporting.ledger import TITLES, amount, highest_tier, hinge_text, key_pair, of_tier
from benchmarks.reporting.numbers import signed

# README answers the paper's question before anything else: ours against these, in each state.
# The last one stands beside them for the size of what a penalty does at all, and has no say in the answer.
QUESTION, QUESTION_RIVALS = "Does OICSR-GL beat separated regularisation?", ("gl-out", "gl-separate", "none")
SEPARATED = QUESTION_RIVALS[:2]
YES, IN_PART, NO = "Yes.", "In part.", "Not on this evidence."
IN_STATE = {PRUNED: "before fine-tuning", RECALIBRATED: "recalibrated", FINETUNED: "fine-tuned"}

# Of what README tells next: in this order, and no more of each kind.
HEADLINE_ORDER = ("11", "11f", "12f", "11r")
HEADLINE_CLAIMS = 4
HEADLINE_KINDS = (
    ("Tested and lost", REFUTED, True),
    ("Tested, does not hold", REFUTED, False),
    ("Tested, and holds", SUPPORTED, False),
    ("Tested, undecided", INCONCLUSIVE, False),
)


def readme_headline(verdicts: Sequence[Verdict]) -> str:
    """Return the README's first words on results: what the highest tier says, losses first, and on what evidence."""
    tier = highest_tier(verdicts)
    judged = [verdict for verdict in verdicts if tier and (own := verdict.at(tier)) and own.effect]
    if tier is None or not judged:
        return "**Results so far:** none that carries a verdict."
    where = for_markdown(of_tier(verdicts, tier))
    lines = [f"**Results so far.** {where}: {TIER_WORDS[tier]}. [More](#results).", ""]
    answers = _answers(judged)
    if answers:
        told = [in_a_word(answers, tier), *(_answer(rival, answers[rival], tier) for rival in answers)]
        lines += [f"**{QUESTION}** {' '.join(filter(None, told))}", ""]
    answering = [verdict for found in answers.values() for verdict in found]
    others = [verdict for verdict in judged if verdict not in answering]
    for title, kind, lost in HEADLINE_KINDS:
        found = [verdict for verdict in others if _is(verdict, tier, kind, lost=lost)]
        if found:
            lines.append(f"- **{title}:** {_listed(found, tier)}.")
    return "\n".join(lines).rstrip()


def _answers(verdicts: Sequence[Verdict]) -> dict[str, list[Verdict]]:
    """Return the verdicts that answer the README's question, by rival and in the order of the states."""
    states = list(IN_STATE)
    ordered = sorted(
        verdicts, key=lambda v: states.index(v.claim.measure) if v.claim.measure in states else len(states)
    )
    found = {rival: [v for v in ordered if key_pair(v.claim) == ("oicsr-gl", rival)] for rival in QUESTION_RIVALS}
    return {rival: own for rival, own in found.items() if own}


def in_a_word(answers: Mapping[str, Sequence[Verdict]], tier: str) -> str:
    """Return what the verdicts against the separated rivals come to; nothing where none was judged.

    To beat is a claim of *more*; a claim of *not worse* that holds beats nothing, and one that does not hold stands
    against a plain yes. "Yes": every claim of more holds, each separated rival has one, and no claim fails. "In part":
    some claim of more holds. "Not on this evidence": none does, be it refuted or only not shown.
    """
    found = [
        (rival, verdict.claim.kind, finding.verdict)
        for rival in SEPARATED
        for verdict in answers.get(rival, ())
        if (finding := verdict.at(tier))
    ]
    if not found:
        return ""
    beaten = {rival for rival, kind, verdict in found if kind == "more" and verdict == SUPPORTED}
    short_of = any(verdict == REFUTED or (kind == "more" and verdict != SUPPORTED) for _, kind, verdict in found)
    return NO if not beaten else YES if beaten == {*SEPARATED} and not short_of else IN_PART


def _answer(rival: str, verdicts: Sequence[Verdict], tier: str) -> str:
    """Return what was found against a rival, such as "Against Random channels: +1.2 points recalibrated (holds)."."""
    parts: list[str] = []
    for verdict in verdicts:
        finding = verdict.at(tier)
        assert finding is not None and finding.effect is not None
        points = "" if parts else " points"
        word = "**loss**" if finding.lost else TITLES[finding.verdict].lower()
        told = "; ".join(filter(None, (word, for_markdown(hinge_text(verdict.claim, finding, 1)))))
        parts.append(f"{signed(100 * finding.effect.mean, 1)}{points} {IN_STATE[verdict.claim.measure]} ({told})")
    return f"Against {for_markdown(find_method(rival).title)}: {', '.join(parts)}."


def _is(verdict: Verdict, tier: str, kind: str, *, lost: bool) -> bool:
    finding = verdict.at(tier)
    return finding is not None and finding.verdict == kind and finding.lost == lost


def _listed(verdicts: Sequence[Verdict], tier: str) -> str:
    """Return claims in a few words, the most important ones first, and how many others there are."""

    def order(verdict: Verdict) -> tuple[int, int]:
        name = verdict.claim.id
        return HEADLINE_ORDER.index(name) if name in HEADLINE_ORDER else len(HEADLINE_ORDER), verdicts.index(verdict)

    chosen = sorted(verdicts, key=order)[:HEADLINE_CLAIMS]
    more = len(verdicts) - len(chosen)
    return "; ".join(_in_words(verdict, tier) for verdict in chosen) + (f"; and {more} more" if more else "")


def _in_words(verdict: Verdict, tier: str) -> str:
    claim, finding = verdict.claim, verdict.at(tier)
    assert finding is not None and finding.effect is not None
    said = claim.short if finding.verdict == SUPPORTED else contest(claim)
    hinge = for_markdown(hinge_text(claim, finding))
    told = [amount(claim, finding.effect.mean) if claim.measure in POINTS else "", hinge]
    return f"{said} ({'; '.join(filter(None, told))})" if any(told) else said


def contest(claim: Claim) -> str:
    """Return who stands against whom, without who was said to win: for claims that are not shown to hold."""
    said, count = re.subn(r" (beats?|is as good as) ", " against ", claim.short, count=1)
    return said if count else f"whether {said}"
