"""Every method of the arena: OICSR beside its rivals. The paper's claim is the one line in which they differ."""

from __future__ import annotations

from collections.abc import Sequence

import baselines
from baselines.group_lasso import out_in_importance
from baselines.method import Method
from oicsr import Coupling, GroupLasso


def out_in(couplings: Sequence[Coupling], strength: float) -> GroupLasso:
    """Build OICSR-GL: an out-channel and the in-channel that reads it are one group."""
    return GroupLasso(couplings, sides=("out", "in"), strength=strength)


OICSR_GL = Method(
    name="oicsr-gl",
    title="OICSR-GL",
    regularizer="oicsr-gl",
    make_regularizer=out_in,
    importance=out_in_importance,
    formula="λ Σ_l Σ_i √(‖W^l_{i,:}‖₂² + ‖W^{l+1}_{:,i}‖₂²); importance the same energy over the layer's mean",
    source="Li et al. 2019, Eq. 4 and 8 as reconstructed in PAPER.md",
)

METHODS: dict[str, Method] = {OICSR_GL.name: OICSR_GL, **baselines.METHODS}
