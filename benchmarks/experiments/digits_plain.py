"""Handwritten digits, a chain with no normalisation: which sides of a channel a penalty needs (docs/anatomy.md).

Command: `make digits-plain`. Claim: under BatchNorm, filters are scale-free, so the scale or the columns must be in
the group; without it, filters say as much as columns. The networks `digits-batchnorm`, `digits-groupnorm` and
`digits-plain` differ only in their normalisation, and are trained in the same way.
"""

from benchmarks.config import Experiment
from benchmarks.experiments.shared_profiles import DIGITS_ANATOMY

EXPERIMENT = Experiment(
    name="digits-plain",
    title="Digits, chain with no normalisation",
    claim="Which sides of a channel a group must hold depends on the normalisation.",
    model="digits-plain",
    dataset="digits",
    profiles={"cpu": DIGITS_ANATOMY},
    priority=55,
)
