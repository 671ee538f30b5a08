"""Verdicts in words: one line for the README, and the ledger as a table."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.analysis.claims import POINTS, Claim
from benchmarks.analysis.verdicts import NOT_RUN, VERDICTS, Verdict

EXPLANATION = (
    "Each claim is tested on differences paired by seed, averaged over the targets of an experiment; every experiment "
    "has the same say. Effect: mean, with its 95 % interval by Student's t, which covers as it says with 3 to 10 seeds "
    "where a percentile bootstrap does not (that one is in `claims.json` too). A claim of *more* is supported where "
    "the effect is above zero and at least the smallest that matters, refuted where an effect that large is excluded; "
    "a claim of *not worse* is supported where a loss as large as the margin is excluded, refuted where there is one. "
    "Many claims are tested at once: p is adjusted by Holm's method over all that were, so that the chance of any "
    "false verdict stays at 5 %. Quick runs, strengths that were not tuned on validation data, and fewer than three "
    "seeds carry no verdict. A verdict holds for the networks and data it names, and for no others."
)

HEADER = "| | Claim | Verdict | Effect | 95 % interval | Matters from | n | p (Holm) | On |"


def headline(verdicts: Sequence[Verdict]) -> str:
    """Return how many claims got which verdict, and which."""
    parts = []
    for kind in VERDICTS:
        ids = [verdict.claim.id for verdict in verdicts if verdict.verdict == kind]
        if ids:
            parts.append(f"{len(ids)} {kind} ({', '.join(ids)})")
    return f"**Verdicts on {len(verdicts)} claims**: {'; '.join(parts)}."


def ledger_lines(verdicts: Sequence[Verdict]) -> list[str]:
    """Return the ledger as Markdown lines."""
    rows = [_row(verdict) for verdict in verdicts]
    return [headline(verdicts), "", HEADER, "|---|---|---|---:|---:|---:|---:|---:|---|", *rows, "", EXPLANATION, ""]


def _row(verdict: Verdict) -> str:
    claim, effect = verdict.claim, verdict.effect
    matters = amount(claim, claim.matters).lstrip("+") if claim.kind == "more" else f"loss of {_plain(claim)}"
    cells = [
        claim.id,
        f"{claim.statement} ({claim.comparison})",
        f"**{verdict.verdict}**" + (f": {verdict.reason}" if verdict.reason else ""),
        amount(claim, effect.mean) if effect else NOT_RUN,
        interval_text(verdict) or NOT_RUN,
        matters,
        str(verdict.n),
        p_text(verdict.p_holm) or NOT_RUN,
        "; ".join(stratum.where for stratum in verdict.strata) or NOT_RUN,
    ]
    return f"| {' | '.join(cells)} |"


def _plain(claim: Claim) -> str:
    return amount(claim, claim.matters).lstrip("+")


def amount(claim: Claim, value: float) -> str:
    """Return an effect in its unit: points for top-1, else the number."""
    return f"{100 * value:+.2f} points" if claim.measure in POINTS else f"{value:+.3f}"


def interval_text(verdict: Verdict) -> str:
    """Return the 95 % interval in the claim's unit, or nothing."""
    if verdict.effect is None:
        return ""
    scale, digits = (100, 2) if verdict.claim.measure in POINTS else (1, 3)
    low, high = (f"{scale * value:+.{digits}f}" for value in verdict.effect.interval)
    return f"{low} to {high}"


def p_text(p: float | None) -> str:
    """Return a p value as it is printed, or nothing."""
    if p is None:
        return ""
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}"
