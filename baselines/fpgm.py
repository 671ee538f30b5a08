"""FPGM: the filters nearest to the others of their layer are removed, since the others can replace them.

He et al., "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration", CVPR 2019: the
score of a filter is the sum of its Euclidean distances to all filters of the layer. The authors set one ratio for all
layers; for the global sort the sums are divided by their layer's mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from baselines.channels import channel_vectors, over_mean
from baselines.filter_norm import MASKS
from baselines.method import ImportanceSpec, Scoring
from oicsr import Coupling


@torch.no_grad()
def distances(model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> list[Tensor]:
    """Return the summed distance of every channel's filters to the others', over the coupling's mean."""
    filters = (channel_vectors(model, coupling, ("out",)) for coupling in couplings)
    return over_mean(torch.cdist(each, each, compute_mode="donot_use_mm_for_euclid_dist").sum(1) for each in filters)


FPGM = ImportanceSpec(
    name="fpgm",
    title="FPGM",
    score=distances,
    formula="Σ_j ‖W^l_{i,:} − W^l_{j,:}‖₂",
    source="He et al. 2019 (FPGM)",
    normalisation="divided by the mean of the layer's channels",
    sides=("out",),
    compared="he-y/filter-pruning-geometric-median: pruning_cifar10.py",
    differs=f"{MASKS}; a variant masks a tenth of the filters by their L2 norm first",
)
