"""No regulariser: ordinary training. Shows what a penalty contributes."""

from __future__ import annotations

from collections.abc import Sequence

from baselines.method import RegularizerSpec
from oicsr import Coupling, Regularizer


def no_regularizer(couplings: Sequence[Coupling], strength: float) -> Regularizer | None:
    """Return None: training without a penalty."""
    return None


NO_REGULARIZER = RegularizerSpec(
    name="none",
    title="No regulariser",
    make=no_regularizer,
    formula="0",
    source="control",
    penalised="nothing",
    normalisation="none",
    has_strength=False,
)
