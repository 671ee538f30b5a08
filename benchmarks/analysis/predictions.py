"""The predictions of docs/anatomy.md as data, and what records say about each.

Networks with and without normalisation are judged separately. "Equal" is tested in both directions: neither method
may be worse than the other by as much as the margin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.analysis.claims import BALANCE, FIRST_EPOCH, RECALIBRATED, Arm, Claim
from benchmarks.analysis.evidence import TIERS
from benchmarks.analysis.verdicts import INCONCLUSIVE, NOT_RUN, REFUTED, SUPPORTED, Finding, Verdict, judge
from benchmarks.records.histories import Details
from benchmarks.records.record import Record

PLAIN_ENDING = "-plain"  # how the names of networks without normalisation end

# transformers normalise the residual stream: between the filters that go and what reads them there is no norm
TRANSFORMERS = ("digits-vit", "vit")

SOURCE = "docs/anatomy.md"


@dataclass(frozen=True)
class Prediction:
    """A comparison of two methods, or of one with and without rescaling, that the theory decides.

    Attributes:
        id: Number in docs/anatomy.md.
        ours: Method that the theory favours, or one of two equal ones.
        rival: The other method, or the same one as it is where `rescaling`.
        kind: What the theory says about ours.
        plain: Whether it is about networks with no normalisation between a filter and its readers.
        rescaling: Whether ours has its filters rescaled before fine-tuning and the rival has not.
        measure: Key of `MEASURES`.
        matters: The smallest effect that matters, or the margin; in the measure's unit.
    """

    id: str
    ours: str
    rival: str
    kind: Literal["more", "not worse", "equal"]
    plain: bool = False
    rescaling: bool = False
    measure: str = RECALIBRATED
    matters: float = 0.01

    @property
    def claims(self) -> tuple[Claim, ...]:
        """The claims that it is tested by."""
        kind: Literal["more", "not worse"] = "more" if self.kind == "more" else "not worse"
        ours, rival = Arm(self.ours), Arm(self.rival, rescale="none" if self.rescaling else "dense-norm")
        pairs = [(ours, rival)] + ([(rival, ours)] if self.kind == "equal" else [])
        varies = ("rescale",) if self.rescaling else ()
        return tuple(
            Claim(self.id, text, text, SOURCE, ((a, b),), self.measure, kind, self.matters, varies=varies)
            for a, b in pairs
            for text in (f"{a.method}, {b.method}",)
        )


PREDICTIONS = (
    Prediction("A1", "oicsr-gl-norm", "oicsr-gl", "more"),
    Prediction("A1", "oicsr-gl-norm-prox", "oicsr-gl-prox", "more"),
    Prediction("A2", "gl-in-norm", "oicsr-gl-norm", "equal"),
    Prediction("A3", "seen", "gl-out+seen", "not worse"),
    Prediction("A4", "oicsr-gl", "gl-out", "more", plain=True),
    Prediction("A4", "oicsr-gl", "gl-in", "more", plain=True),
    Prediction("A5", "oicsr-gl-norm", "oicsr-gl", "equal", plain=True),
    Prediction("A5", "depgraph", "depgraph-noscale", "equal", plain=True),
    Prediction("A6", "gl-in-norm", "gl-separate-in-norm", "equal"),
    Prediction("A6", "oicsr-gl", "gl-separate", "equal", plain=True),
    Prediction("A7", "depgraph", "depgraph-noscale", "more"),
    Prediction("A8", "seen", "none", "more"),
    Prediction("A8", "scale-in", "none", "more"),
    Prediction("A8", "seen", "none", "equal", plain=True),
    Prediction("A8", "scale-in", "none", "equal", plain=True),
    Prediction("A9", "oicsr-gl", "oicsr-gl", "more", rescaling=True, measure=FIRST_EPOCH),
    Prediction("A9", "gl-out", "gl-out", "more", rescaling=True, measure=FIRST_EPOCH),
    Prediction("A9", "gl-in-norm", "gl-in-norm", "equal", rescaling=True, measure=FIRST_EPOCH),
    Prediction("A10", "gl-in-norm", "none", "more", measure=BALANCE, matters=0.1),
)


@dataclass(frozen=True)
class Outcome:
    """What the records of one tier say about a prediction.

    Attributes:
        prediction: The prediction.
        verdict: One of `VERDICTS`.
        claim: Ours against rival.
        finding: What was found on it: effect, interval and networks.
    """

    prediction: Prediction
    verdict: str
    claim: Claim
    finding: Finding


def is_plain(model: str) -> bool:
    """Return whether a network has no normalisation between a filter and its readers."""
    return model.endswith(PLAIN_ENDING) or model in TRANSFORMERS


def outcomes(
    records: Sequence[Record], details: Details, predictions: Sequence[Prediction] = PREDICTIONS
) -> list[Outcome]:
    """Return the outcomes of each prediction, one for each tier with records, the weakest tier first.

    P values are adjusted over the predictions for the same kind of network.
    """
    found: dict[Prediction, list[Outcome]] = {}
    for plain in (False, True):
        own = [prediction for prediction in predictions if prediction.plain == plain]
        used = [r for r in records if is_plain(str(r.config.get("model"))) == plain]
        verdicts = iter(judge(used, details, [claim for prediction in own for claim in prediction.claims]))
        for prediction in own:
            found[prediction] = _by_tier(prediction, [next(verdicts) for _ in prediction.claims])
    return [outcome for prediction in predictions for outcome in found[prediction]]


def _by_tier(prediction: Prediction, tested: Sequence[Verdict]) -> list[Outcome]:
    claim = tested[0].claim
    told = []
    for tier in TIERS:
        findings = [finding for verdict in tested if (finding := verdict.at(tier)) is not None]
        if findings:
            verdicts = {finding.verdict for finding in findings}
            together = next((verdict for verdict in (REFUTED, INCONCLUSIVE) if verdict in verdicts), SUPPORTED)
            told.append(Outcome(prediction, together, claim, findings[0]))
    return told or [Outcome(prediction, NOT_RUN, claim, tested[0].best)]
