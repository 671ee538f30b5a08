"""Which comparison stands first, in the README and in the HTML report."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.analysis.comparison import Comparison
from benchmarks.analysis.evidence import TIERS
from benchmarks.reporting.paper_tables import PROFILE_ORDER

HEADLINE_EXPERIMENTS = ("cifar10-resnet56", "cifar10-resnet20", "digits", "demo")


def headline_comparison(comparisons: Sequence[Comparison]) -> Comparison | None:
    """Return the comparison with the best evidence under the present protocol; of equals the most important one.

    One that has just begun, without OICSR-GL or without anything beside it, comes last.
    """

    def order(comparison: Comparison) -> tuple[bool, int, int, int]:
        tier, profile = comparison.evidence.tier, comparison.profile
        methods = set(comparison.table["method"])
        return (
            "oicsr-gl" not in methods or len(methods) < 2,
            -TIERS.index(tier) if tier else 1,
            HEADLINE_EXPERIMENTS.index(comparison.experiment),
            PROFILE_ORDER.index(profile) if profile in PROFILE_ORDER else len(PROFILE_ORDER),
        )

    known = [c for c in comparisons if c.current and c.experiment in HEADLINE_EXPERIMENTS]
    return min(known, key=order, default=None)
