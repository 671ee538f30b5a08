"""Separated Group Lasso: each layer is looked at by itself.

SSL (Wen et al., "Learning Structured Sparsity in Deep Neural Networks", NeurIPS 2016) penalises the filters of each
layer, `sum_l sum_i ||W^l_i||_2`, by plain sub-gradient and without a factor for the size of the group. The second
method here penalises the rows of a layer and the columns of the next as two groups: it sees as many weights as OICSR
does, without joining them, and so tells what the joining itself is worth. The literature lacks that control.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from baselines.method import Method, Scoring
from oicsr import Coupling, GroupLasso, out_in_energy


def out_in_importance(model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> list[Tensor]:
    """Return the paper's importance, out-in energy over its layer's mean."""
    return out_in_energy(model, couplings, "layer_mean")


def out_importance(model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> list[Tensor]:
    """Return the importance that fits the separated penalty: the energy of the filter alone, over its layer's mean."""
    return out_in_energy(model, couplings, "layer_mean", sides=("out",))


def separated(couplings: Sequence[Coupling], strength: float) -> GroupLasso:
    """Build the penalty on the filters of each layer."""
    return GroupLasso(couplings, sides=("out",), strength=strength)


def separate_sides(couplings: Sequence[Coupling], strength: float) -> GroupLasso:
    """Build the penalty on rows and columns as groups of their own."""
    return GroupLasso(couplings, sides=("out", "in"), strength=strength, joint=False)


GL_OUT = Method(
    name="gl-out",
    title="Group Lasso (out)",
    regularizer="gl-out",
    make_regularizer=separated,
    importance=out_importance,
    formula="λ Σ_l Σ_i ‖W^l_{i,:}‖₂; importance ‖W^l_{i,:}‖₂² over the layer's mean",
    source="Wen et al. 2016 (SSL), filter-wise groups",
)

GL_OUT_SCORED_OUT_IN = Method(
    name="gl-out-oi",
    title="Group Lasso (out), out-in importance",
    regularizer="gl-out",
    make_regularizer=separated,
    importance=out_in_importance,
    formula="λ Σ_l Σ_i ‖W^l_{i,:}‖₂; importance ‖W^l_{i,:}‖₂² + ‖W^{l+1}_{:,i}‖₂² over the layer's mean",
    source="Wen et al. 2016 (SSL), with the importance of Li et al. 2019",
)

GL_SEPARATE = Method(
    name="gl-separate",
    title="Group Lasso (out and in apart)",
    regularizer="gl-separate",
    make_regularizer=separate_sides,
    importance=out_in_importance,
    formula="λ Σ_l Σ_i (‖W^l_{i,:}‖₂ + ‖W^{l+1}_{:,i}‖₂); importance as OICSR-GL",
    source="control of this suite",
)
