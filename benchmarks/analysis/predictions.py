"""The predictions of docs/anatomy.md as data, and what records say about each.

Networks without normalisation and those with it are judged apart. "Equal" is tested in both directions: neither method
may be worse than the other by as much as the margin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.analysis.claims import RECALIBRATED, Arm, Claim
from benchmarks.analysis.verdicts import INCONCLUSIVE, NOT_RUN, REFUTED, SUPPORTED, Verdict, judge
from benchmarks.records.histories import Details
from benchmarks.records.record import Record

WITHOUT_NORMALISATION = "-plain"  # how the names of networks without normalisation end

SOURCE = "docs/anatomy.md"


@dataclass(frozen=True)
class Prediction:
    """A comparison of two methods that the theory decides.

    Attributes:
        id: Number in docs/anatomy.md.
        ours: Method that the theory favours, or one of two equal ones.
        rival: The other method.
        kind: What the theory says about ours.
        plain: Whether it is about networks without normalisation.
    """

    id: str
    ours: str
    rival: str
    kind: Literal["more", "not worse", "equal"]
    plain: bool = False

    @property
    def claims(self) -> tuple[Claim, ...]:
        """The claims that it is tested by."""
        kind: Literal["more", "not worse"] = "more" if self.kind == "more" else "not worse"
        pairs = [(self.ours, self.rival)] + ([(self.rival, self.ours)] if self.kind == "equal" else [])
        return tuple(
            Claim(self.id, f"{a}, {b}", f"{a}, {b}", SOURCE, ((Arm(a), Arm(b)),), RECALIBRATED, kind) for a, b in pairs
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
)

NOT_TESTED = {
    "A9": "needs the first epoch of fine-tuning with and without rescaling",
    "A10": "needs the scales and columns of every remaining channel, which records do not hold",
}


@dataclass(frozen=True)
class Outcome:
    """What records say about a prediction.

    Attributes:
        prediction: The prediction.
        verdict: One of `VERDICTS`.
        tested: The verdict on ours against rival, with effect, interval and networks.
    """

    prediction: Prediction
    verdict: str
    tested: Verdict


def outcomes(
    records: Sequence[Record], details: Details, predictions: Sequence[Prediction] = PREDICTIONS
) -> list[Outcome]:
    """Return the outcome of each prediction; p values are adjusted over those of the same kind of network."""
    found: dict[Prediction, Outcome] = {}
    for plain in (False, True):
        own = [prediction for prediction in predictions if prediction.plain == plain]
        used = [r for r in records if str(r.config.get("model")).endswith(WITHOUT_NORMALISATION) == plain]
        verdicts = iter(judge(used, details, [claim for prediction in own for claim in prediction.claims]))
        for prediction in own:
            tested = [next(verdicts) for _ in prediction.claims]
            found[prediction] = Outcome(prediction, _together([v.verdict for v in tested]), tested[0])
    return [found[prediction] for prediction in predictions]


def _together(verdicts: Sequence[str]) -> str:
    """Return the verdict of tests that must all hold."""
    for verdict in (NOT_RUN, REFUTED, INCONCLUSIVE):
        if verdict in verdicts:
            return verdict
    return SUPPORTED
