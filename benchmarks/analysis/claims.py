"""The paper's claims, and those of this suite, as data: one row each.

A claim compares two arms. An arm is a predicate on records; the difference is ours less rival's, paired by network and
target. `"more"` claims hold where the effect is above zero and at least as large as the smallest that matters, and do
not hold where an effect that large is excluded. `"not worse"` claims hold where a loss as large as the margin is
excluded, and do not hold where the effect is below zero and at least that large. `verdicts.py` tests them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from benchmarks.records.histories import Details
from benchmarks.records.record import Record

ABSTRACT = "Li et al. 2019, abstract"

SUMMARY = "a reader's summary of Li et al. 2019"

SUITE = "this suite"

RECOVERED = 0.01  # fine-tuning has recovered where validation top-1 stays this close to its last value, or above

Measure = Callable[[Record, Details], float | None]

PRUNED, RECALIBRATED, FINETUNED = "top-1 before fine-tuning", "top-1 recalibrated", "top-1 after fine-tuning"

RECOVERY = "share of fine-tuning saved"

BALANCE = "balance of scales and columns"

FIRST_EPOCH = "top-1 on validation images after the first epoch of fine-tuning"


def _state(name: str) -> Measure:
    return lambda record, details: float(record.states[name]["top1"]) if name in record.states else None


def _concentration(record: Record, details: Details) -> float | None:
    value = record.structure.get("regularized", {}).get("concentration")
    return None if value is None else float(value)


def _balance(record: Record, details: Details) -> float | None:
    """Return minus the mean of |ln(s/c)| over the channels that stay: 0 where scales and columns are equal."""
    value = record.structure.get("regularized", {}).get("imbalance")
    return None if value is None else -float(value)


def _recovery(record: Record, details: Details) -> float | None:
    """Return minus the share of fine-tuning that passes until validation top-1 has recovered for good."""
    curve = details.finetuning(record)
    if len(curve) < 2:
        return None
    return -recovered_after(curve) / (len(curve) - 1)


def resolution(measure: str, record: Record) -> float:
    """Return the step in which a measure counts, where that is coarse: recovery in whole epochs of fine-tuning."""
    return 1 / record.epochs["finetune"] if measure == RECOVERY and record.epochs.get("finetune") else 0.0


def recovered_after(curve: list[float]) -> int:
    """Return the epoch from which validation top-1 stays within one point of its last value, or above it."""
    below = [epoch for epoch, top1 in enumerate(curve) if top1 < curve[-1] - RECOVERED - 1e-9]
    return below[-1] + 1 if below else 0


def _first_epoch(record: Record, details: Details) -> float | None:
    """Return validation top-1 after the first epoch of fine-tuning."""
    curve = details.finetuning(record)
    return curve[1] if len(curve) > 1 else None


def _change(record: Record, details: Details) -> float | None:
    return float(record.states["finetuned"]["top1"] - record.states["dense"]["top1"])


MEASURES: dict[str, Measure] = {
    PRUNED: _state("pruned"),
    RECALIBRATED: _state("recalibrated"),
    FINETUNED: _state("finetuned"),
    FIRST_EPOCH: _first_epoch,
    "top-1 after fine-tuning less dense": _change,
    "concentration of energy": _concentration,
    BALANCE: _balance,
    RECOVERY: _recovery,
}

POINTS = {name for name in MEASURES if name.startswith("top-1")}


@dataclass(frozen=True)
class Arm:
    """Which records a claim takes for one side of its comparison.

    Attributes:
        method: Name of the method.
        removals: Runs that remove channels once, several times, or either.
        rescale: Value of the profile's `rescale`; None where it does not matter which.
    """

    method: str
    removals: Literal["one", "several", "any"] = "any"
    rescale: str | None = "dense-norm"

    def takes(self, record: Record) -> bool:
        """Return whether a record is of this arm."""
        several = int(record.config.get("steps", 1)) > 1
        return (
            record.method == self.method
            and (self.removals == "any" or several == (self.removals == "several"))
            and (self.rescale is None or record.config.get("rescale", self.rescale) == self.rescale)
        )

    @property
    def text(self) -> str:
        """The arm in a few words."""
        words = {"any": "", "one": " (one removal)", "several": " (several removals)"}
        return self.method + words[self.removals]


@dataclass(frozen=True)
class Claim:
    """A statement that records can support or refute.

    Attributes:
        id: Number in the ledger.
        short: In a few words, for lists.
        statement: In a sentence.
        source: Where it is made.
        pairs: Ours and rival. No rival: the measure itself.
        measure: Key of `MEASURES`.
        kind: `"more"` or `"not worse"`.
        matters: The smallest effect that matters, or the margin; in the measure's unit (top-1 in [0, 1]).
        same_weights: Only pairs that were trained with the same strength count.
        model: Only this network.
        highest_macs_kept: Only targets up to here.
        varies: Values of the configuration in which the arms differ. Where there are any, the arms come from different
            experiments on the same networks, equal in everything else and in the number of epochs.
    """

    id: str
    short: str
    statement: str
    source: str
    pairs: tuple[tuple[Arm, Arm | None], ...]
    measure: str = PRUNED
    kind: Literal["more", "not worse"] = "more"
    matters: float = 0.01
    same_weights: bool = False
    model: str | None = None
    highest_macs_kept: float = 1.0
    varies: tuple[str, ...] = ()

    @property
    def comparison(self) -> str:
        """The arms that are compared, in words."""
        return ", ".join(f"{ours.text} − {rival.text if rival else 'dense'}" for ours, rival in self.pairs)


def _pair(ours: str, rival: str | None) -> tuple[tuple[Arm, Arm | None], ...]:
    return ((Arm(ours), Arm(rival) if rival else None),)


def _both_states(number: str, short: str, what: str, source: str, ours: str, rival: str) -> tuple[Claim, Claim]:
    """Return a claim about accuracy before fine-tuning: as pruned, and with recalibrated statistics."""
    pair = _pair(ours, rival)
    return (
        Claim(number, f"{short}, before fine-tuning", f"Before fine-tuning, {what}.", source, pair),
        Claim(
            f"{number}r",
            f"{short}, recalibrated",
            f"Before fine-tuning and with recalibrated BatchNorm statistics, {what}.",
            source if source == SUITE else f"{SUITE}: the control of claim {number}",
            pair,
            RECALIBRATED,
        ),
    )


def _after(number: str, short: str, what: str, source: str, ours: str, rival: str) -> Claim:
    """Return a claim of "not worse" after fine-tuning."""
    name, sentence = f"{short}, fine-tuned", f"After fine-tuning, {what}."
    return Claim(number, name, sentence, source, _pair(ours, rival), FINETUNED, "not worse", 0.003)


SAME_WEIGHTS = (
    ("gl-out-oi", "gl-out"),
    ("oicsr-gl", "oicsr-gl+out"),
    ("none", "l2"),  # the same score as `none+out`, and nearly always the same network
    ("oicsr-gl", "oicsr-gl+in"),
    ("gl-separate", "gl-separate+out"),
)

GENERAL_FORM = "what is told of the general form of Li et al. 2019"

PAPER: tuple[Claim, ...] = (
    *_both_states(
        "1",
        "OICSR-GL beats Group Lasso (out)",
        "OICSR-GL keeps more accuracy than Group Lasso on out-channels at equal MACs",
        ABSTRACT,
        "oicsr-gl",
        "gl-out",
    ),
    *_both_states(
        "1b",
        "OICSR-GL beats separate out and in groups",
        "OICSR-GL keeps more accuracy than Group Lasso on separate out and in groups",
        f"{SUITE}: the control of claim 1",
        "oicsr-gl",
        "gl-separate",
    ),
    *_both_states(
        "2a",
        "OICSR-GL beats a non-structured L1 penalty",
        "OICSR-GL keeps more accuracy than non-structured L1",
        SUMMARY,
        "oicsr-gl",
        "l1-weights",
    ),
    *_both_states(
        "2b",
        "OICSR-GL beats a non-structured L2 penalty",
        "OICSR-GL keeps more accuracy than non-structured L2",
        SUMMARY,
        "oicsr-gl",
        "l2-weights",
    ),
    *_both_states(
        "2c",
        "OICSR-GL beats no regulariser",
        "OICSR-GL keeps more accuracy than no regulariser",
        SUMMARY,
        "oicsr-gl",
        "none",
    ),
    _after(
        "3a",
        "OICSR-GL is as good as Group Lasso (out)",
        "OICSR-GL is at least as good as Group Lasso on out-channels",
        SUMMARY,
        "oicsr-gl",
        "gl-out",
    ),
    _after(
        "3b",
        "OICSR-GL is as good as a non-structured L1 penalty",
        "OICSR-GL is at least as good as non-structured L1",
        SUMMARY,
        "oicsr-gl",
        "l1-weights",
    ),
    _after(
        "3c",
        "OICSR-GL is as good as no regulariser",
        "OICSR-GL is at least as good as no regulariser",
        f"{SUITE}: the control of claim 3",
        "oicsr-gl",
        "none",
    ),
    Claim(
        "4a",
        "OICSR-GrOWL beats GrOWL, before fine-tuning",
        "Before fine-tuning, OICSR-GrOWL keeps more accuracy than GrOWL on one side.",
        GENERAL_FORM,
        _pair("oicsr-growl", "growl"),
    ),
    _after(
        "4b",
        "OICSR-GrOWL is as good as GrOWL",
        "OICSR-GrOWL is at least as good as GrOWL on one side",
        GENERAL_FORM,
        "oicsr-growl",
        "growl",
    ),
    Claim(
        "5",
        "importance from two layers beats that from one, same weights",
        "For the same weights, importance from two layers keeps more accuracy than importance from one.",
        ABSTRACT,
        tuple(pair for names in SAME_WEIGHTS for pair in _pair(*names)),
        same_weights=True,
    ),
    Claim(
        "6",
        "OICSR-GL concentrates energy more than Group Lasso (out)",
        "OICSR-GL concentrates energy in fewer out-in-channels than Group Lasso on out-channels.",
        ABSTRACT,
        _pair("oicsr-gl", "gl-out"),
        "concentration of energy",
        matters=0.02,
    ),
    Claim(
        "7",
        "global greedy beats layer-uniform selection, before fine-tuning",
        "Before fine-tuning, global greedy selection keeps more accuracy than the same share of every layer.",
        "what is told of Algorithm 1 of Li et al. 2019",
        _pair("oicsr-gl", "oicsr-gl-uniform"),
    ),
    Claim(
        "8",
        "several removals beat one where little stays, fine-tuned",
        "With at most 35 % of the MACs kept, several removals leave more accuracy than one.",
        "what is told of Fig. 2 of Li et al. 2019",
        ((Arm("oicsr-gl", "several"), Arm("oicsr-gl", "one")),),
        FINETUNED,
        matters=0.003,
        highest_macs_kept=0.35,
        varies=("steps", "regularized", "pruning_schedule"),
    ),
    Claim(
        "9",
        "fine-tuning recovers faster after OICSR-GL than after Group Lasso (out)",
        "Fine-tuning recovers faster after OICSR-GL than after Group Lasso on out-channels: validation accuracy is "
        "sooner within one point of its last value, from then on.",
        SUMMARY,
        _pair("oicsr-gl", "gl-out"),
        RECOVERY,
        matters=0.05,
    ),
    Claim(
        "10",
        "ResNet-50 with 37 % fewer MACs is as good as dense",
        "On ImageNet, ResNet-50 with 37 % fewer MACs is not worse than the dense network.",
        ABSTRACT,
        _pair("oicsr-gl", None),
        "top-1 after fine-tuning less dense",
        "not worse",
        0.003,
        model="imagenet-resnet50",
        highest_macs_kept=0.64,
    ),
)

RIVALS: tuple[Claim, ...] = (
    *_both_states(
        "11", "OICSR-GL beats DepGraph", "OICSR-GL keeps more accuracy than DepGraph", SUITE, "oicsr-gl", "depgraph"
    ),
    _after(
        "11f",
        "OICSR-GL is as good as DepGraph",
        "OICSR-GL is at least as good as DepGraph",
        SUITE,
        "oicsr-gl",
        "depgraph",
    ),
    *_both_states(
        "12",
        "OICSR-GL with the scale beats DepGraph",
        "OICSR-GL with the BatchNorm scale in its groups keeps more accuracy than DepGraph",
        SUITE,
        "oicsr-gl-norm",
        "depgraph",
    ),
    _after(
        "12f",
        "OICSR-GL with the scale is as good as DepGraph",
        "OICSR-GL with the BatchNorm scale in its groups is at least as good as DepGraph",
        SUITE,
        "oicsr-gl-norm",
        "depgraph",
    ),
    *_both_states(
        "13a",
        "OICSR-GL beats proximal Group Lasso (out)",
        "OICSR-GL keeps more accuracy than proximal Group Lasso on out-channels",
        SUITE,
        "oicsr-gl",
        "gl-out-prox",
    ),
    *_both_states(
        "13b",
        "OICSR-GL beats proximal Group Lasso (in)",
        "OICSR-GL keeps more accuracy than proximal Group Lasso on in-channels",
        SUITE,
        "oicsr-gl",
        "gl-in-prox",
    ),
    *_both_states(
        "13c",
        "proximal OICSR-GL beats proximal Group Lasso (out)",
        "proximal OICSR-GL keeps more accuracy than proximal Group Lasso on out-channels",
        SUITE,
        "oicsr-gl-prox",
        "gl-out-prox",
    ),
    *_both_states(
        "14",
        "OICSR-GL with the scale beats OICSR-GL without it",
        "OICSR-GL with the BatchNorm scale in its groups keeps more accuracy than without",
        SUITE,
        "oicsr-gl-norm",
        "oicsr-gl",
    ),
    _after(
        "14f",
        "OICSR-GL with the scale is as good as without it",
        "OICSR-GL with the BatchNorm scale in its groups is at least as good as without",
        SUITE,
        "oicsr-gl-norm",
        "oicsr-gl",
    ),
    *_both_states(
        "15a",
        "joint groups beat the in-side alone",
        "OICSR-GL keeps more accuracy than Group Lasso on in-channels alone",
        SUITE,
        "oicsr-gl",
        "gl-in",
    ),
    *_both_states(
        "15b",
        "joint groups beat the in-side alone, both with the scale",
        "with the BatchNorm scale in the groups, joining out and in keeps more accuracy than the in-side alone",
        SUITE,
        "oicsr-gl-norm",
        "gl-in-norm",
    ),
    Claim(
        "16",
        "fine-tuning OICSR-GL's network beats training its shape from scratch",
        "Fine-tuning the network that OICSR-GL leaves gives more accuracy than training its shape from scratch for as "
        "many epochs.",
        f"{SUITE}, after Liu et al. 2019",
        _pair("oicsr-gl", "scratch-e"),
        FINETUNED,
        matters=0.003,
    ),
)

CLAIMS: tuple[Claim, ...] = (*PAPER, *RIVALS)
