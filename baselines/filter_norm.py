"""Norms of filters: the plainest importance.

Li et al., "Pruning Filters for Efficient ConvNets" (PFEC), ICLR 2017, remove the filters with the smallest sum of
absolute weights. There the ratio of each layer is set by hand; here it follows from the selection that all methods
share, which needs norms that can be compared across layers: each is divided by its layer's mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from baselines.channels import channel_sums, over_mean
from baselines.method import ImportanceSpec, Scoring
from oicsr import Coupling, channel_energy


@torch.no_grad()
def l1_norm(model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> list[Tensor]:
    """Return the L1 norm of every channel's filters, over its coupling's mean."""
    return over_mean(channel_sums(model, couplings, ("out",), lambda name, weight: weight.abs()))


@torch.no_grad()
def l2_norm(model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> list[Tensor]:
    """Return the L2 norm of every channel's filters, over its coupling's mean."""
    return over_mean(energy.sqrt() for energy in channel_energy(model, couplings, ("out",)))


LIU = "Eric-mingjie/rethinking-network-pruning, a later reimplementation"
MASKS = "filters are masked while the network trains, and chosen again after each epoch"

L1_NORM = ImportanceSpec(
    name="l1",
    title="L1 filter norm",
    score=l1_norm,
    formula="‖W^l_{i,:}‖₁",
    source="Li et al. 2017 (PFEC)",
    normalisation="divided by the mean of the layer's channels",
    sides=("out",),
    compared=f"{LIU}: cifar/l1-norm-pruning/",
    differs="nothing",
)

L2_NORM = ImportanceSpec(
    name="l2",
    title="L2 filter norm",
    score=l2_norm,
    formula="‖W^l_{i,:}‖₂",
    source="He et al. 2018 (SFP), with hard removal",
    normalisation="divided by the mean of the layer's channels",
    sides=("out",),
    compared=f"{LIU}: cifar/soft-filter-pruning/",
    differs=f"{MASKS}; masked filters go on training",
)
