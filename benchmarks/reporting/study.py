"""What a report is made of: the records, their comparisons and verdicts, and which figures were drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.analysis.comparison import Comparison
from benchmarks.analysis.verdicts import Verdict
from benchmarks.experiments import EXPERIMENTS
from benchmarks.records.histories import Details
from benchmarks.records.record import Record

LATENCY = "latency-"  # how names of figures begin

FIGURES: dict[str, str] = {
    "": "Accuracy against MACs",
    "methods": "All methods",
    "energy": "Channel energy, cumulative and per layer",
    "joint": "Out- and in-energy of every channel",
    "kept": "Channels kept per layer",
    "iterations": "Accuracy along the iterations",
    "finetuning": "Fine-tuning curves",
    "strengths": "Strength search",
}


@dataclass
class Study:
    """What the report is made from.

    Attributes:
        results: Folder of the results.
        records: All of them.
        details: Histories and channels.
        comparisons: One per experiment and profile.
        verdicts: One per claim.
        drawn: Figure kinds that were drawn, by name of the comparison.
        left_out: Why records are left out, by path.
    """

    results: Path
    records: Sequence[Record]
    details: Details
    comparisons: Sequence[Comparison]
    verdicts: Sequence[Verdict]
    drawn: dict[str, list[str]] = field(default_factory=dict)
    left_out: dict[Path, str] = field(default_factory=dict)


def title_of(experiment: str) -> str:
    """Return the title of an experiment; an ad-hoc one is called by its name."""
    return EXPERIMENTS[experiment].title if experiment in EXPERIMENTS else experiment
