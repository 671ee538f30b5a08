"""L1-norm filters: no regulariser; the filters with the smallest sum of absolute weights go.

Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017. There the ratio of each layer is set by hand; here it
follows from the global selection that all methods share, which needs norms that compare between layers: each is
divided by its layer's mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from baselines.method import Method, Scoring, no_regularizer
from oicsr import Coupling


@torch.no_grad()
def l1_norm(model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> list[Tensor]:
    """Return the L1 norm of every channel's filters, over its coupling's mean."""
    return [_relative(_filter_norms(model, coupling)) for coupling in couplings]


def _filter_norms(model: nn.Module, coupling: Coupling) -> Tensor:
    device = model.get_parameter(coupling.members[0].parameter).device
    norms = torch.zeros(coupling.num_channels + 1, device=device)  # the last entry collects slices of other couplings
    for member in coupling.members:
        if member.side == "out" and member.counts:
            weight = model.get_parameter(member.parameter).movedim(member.dim, 0)
            index = (member.channels % (coupling.num_channels + 1)).to(device)
            norms.index_add_(0, index, weight.abs().flatten(1).sum(1).float())
    return norms[:-1]


def _relative(norms: Tensor) -> Tensor:
    mean = norms.mean()
    return norms / mean if float(mean) > 0 else norms


L1_NORM = Method(
    name="l1",
    title="L1-norm filters",
    regularizer="none",
    make_regularizer=no_regularizer,
    importance=l1_norm,
    formula="no penalty; importance ‖W^l_{i,:}‖₁ over the layer's mean",
    source="Li et al. 2017 (PFEC), with the shared global selection",
)
