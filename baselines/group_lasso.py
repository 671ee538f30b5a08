"""Separated Group Lasso: each layer is looked at by itself.

SSL (Wen et al., "Learning Structured Sparsity in Deep Neural Networks", NeurIPS 2016) penalises the filters of each
layer, `sum_l sum_i ||W^l_{i,:}||_2`, or its channels, `sum_l sum_i ||W^{l+1}_{:,i}||_2`, by plain sub-gradient and
without a factor for the size of the group. The control that penalises rows and columns as two groups each sees as many
weights as OICSR does, without joining them, and so tells what the joining itself is worth. The literature lacks it.
"""

from __future__ import annotations

from collections.abc import Sequence

from baselines.method import PROXIMAL_STRENGTH, RegularizerSpec, grid_around
from oicsr import Coupling, GroupLasso, ProximalGroupLasso


def out_channels(couplings: Sequence[Coupling], strength: float) -> GroupLasso:
    """Build the penalty on the filters (rows) of each layer."""
    return GroupLasso(couplings, sides=("out",), strength=strength)


def in_channels(couplings: Sequence[Coupling], strength: float) -> GroupLasso:
    """Build the penalty on the in-channels (columns) of each layer."""
    return GroupLasso(couplings, sides=("in",), strength=strength)


def separate_sides(couplings: Sequence[Coupling], strength: float) -> GroupLasso:
    """Build the penalty on rows and columns as groups of their own."""
    return GroupLasso(couplings, sides=("out", "in"), strength=strength, joint=False)


SSL = "Wen et al. 2016 (SSL)"
UNWEIGHTED = "none: groups are not weighted by their size, as in the authors' solver"
SSL_DECAY = "the experiment's own (SSL's CIFAR-10 example trains with 0, its ResNet-20 with 1e-4)"

GL_OUT = RegularizerSpec(
    name="gl-out",
    title="Group Lasso (out)",
    make=out_channels,
    formula="λ Σ_l Σ_i ‖W^l_{i,:}‖₂",
    source=f"{SSL}, filter-wise groups",
    penalised="the filters of prunable layers: convolutions (depthwise and grouped too) and linear layers",
    normalisation=UNWEIGHTED,
    weight_decay_note=SSL_DECAY,
)

GL_IN = RegularizerSpec(
    name="gl-in",
    title="Group Lasso (in)",
    make=in_channels,
    formula="λ Σ_l Σ_i ‖W^{l+1}_{:,i}‖₂",
    source=f"{SSL}, channel-wise groups",
    penalised="the columns of the convolutions and linear layers that read prunable channels",
    normalisation=UNWEIGHTED,
    weight_decay_note=SSL_DECAY,
)

GL_SEPARATE = RegularizerSpec(
    name="gl-separate",
    title="Group Lasso (out and in apart)",
    make=separate_sides,
    formula="λ Σ_l Σ_i (‖W^l_{i,:}‖₂ + ‖W^{l+1}_{:,i}‖₂)",
    source="control of this suite",
    penalised="the filters and the columns of prunable channels, each a group of its own",
    normalisation=UNWEIGHTED,
    weight_decay_note=SSL_DECAY,
)


def out_channels_proximal(couplings: Sequence[Coupling], strength: float) -> ProximalGroupLasso:
    """Build the proximal step on the filters of each layer."""
    return ProximalGroupLasso(couplings, sides=("out",), strength=strength)


GL_OUT_PROX = RegularizerSpec(
    name="gl-out-prox",
    title="Group Lasso (out), proximal",
    make=out_channels_proximal,
    formula="W^l_{i,:} ← max(0, 1 − ηλ/‖W^l_{i,:}‖₂) W^l_{i,:} after each step of size η",
    source=f"{SSL}, filter-wise groups, with the exact proximal operator in place of the sub-gradient",
    penalised=GL_OUT.penalised,
    normalisation=UNWEIGHTED,
    weight_decay_note=SSL_DECAY,
    grid=grid_around(PROXIMAL_STRENGTH),
)
