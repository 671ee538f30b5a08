"""The paper's claims as data, and what the records say about each.

A claim is tested on differences paired by seed, within one experiment and profile, averaged over its targets; every
experiment has the same say. `"more"` claims are supported where the effect is above zero and at least as large as the
smallest that matters, and refuted where an effect that large is excluded. `"not worse"` claims are supported where a
loss as large as the margin is excluded, and refuted where there is a loss of at least that size. Both directions are
tested at 2.5 %, and p values are adjusted over the whole ledger by Holm's method. What was run in profile `quick`,
with strengths that were not tuned, or with fewer than three seeds carries no verdict.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.records.histories import Details
from benchmarks.records.record import Record

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
        "The gain comes from joining both sides in one group: OICSR-GL keeps more than separate out and in groups.",
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
