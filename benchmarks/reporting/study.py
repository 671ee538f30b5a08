"""What a report is made of: the records, their comparisons and verdicts, and which figures were drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.analysis.comparison import Comparison
from benchmarks.analysis.verdicts import Verdict
from benchmarks.experiments import EXPERIMENTS
from benchmarks.records.histories import Details
from benchmarks.records.record import Record

LATENCY = "latency-"  # how names of figures begin


@dataclass
class Study:
    """What the report is made from.

    Attributes:
        results: Folder of the results.
        records: All of them.
        details: Histories and channels.
        comparisons: One per experiment and profile.
        verdicts: One per claim.
        drawn: Kinds of the figures that were drawn, by name of the comparison.
        left_out: Why records are left out, by path.
    """

    results: Path
    records: Sequence[Record]
    details: Details
    comparisons: Sequence[Comparison]
    verdicts: Sequence[Verdict]
    drawn: dict[str, list[str]] = field(default_factory=dict)
    left_out: dict[Path, str] = field(default_factory=dict)

    @property
    def experiments(self) -> list[str]:
        """Names of the experiments that were run, each with a page of its own."""
        return sorted({comparison.experiment for comparison in self.comparisons})


def seeds_in_words(comparison: Comparison) -> str:
    """Return over how many seeds the rows of a comparison are, such as "3" or "1 to 3"."""
    return range_in_words(map(int, comparison.table["n"]))


def range_in_words(numbers: Iterable[int]) -> str:
    """Return the smallest and the largest of some numbers, such as "3" or "1 to 3"."""
    found = sorted(numbers)
    return str(found[0]) if found[0] == found[-1] else f"{found[0]} to {found[-1]}"


def title_of(experiment: str) -> str:
    """Return the title of an experiment; an ad-hoc one is called by its name."""
    return EXPERIMENTS[experiment].title if experiment in EXPERIMENTS else experiment
