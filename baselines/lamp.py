"""LAMP over channels: a channel's share of what would remain of its layer.

Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021, score a weight by its square over the
sum of the squares of all weights of the layer that are at least as large. Here a group of weights takes the place of a
weight, as in torch-pruning: the energy of a channel over all its sides. The most important channel of each layer
scores 1, so no layer can be emptied.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from baselines.depgraph import TORCH_PRUNING
from baselines.method import ImportanceSpec, Scoring
from oicsr import Coupling, channel_energy
from oicsr.coupling import SIDES


@torch.no_grad()
def lamp(model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> list[Tensor]:
    """Return each channel's energy over that of all channels of its coupling that are no less important."""
    return [share_of_the_rest(energy) for energy in channel_energy(model, couplings, SIDES)]


def share_of_the_rest(energy: Tensor) -> Tensor:
    """Return `E_i / Σ_{j: E_j >= E_i} E_j`; of equal energies, the first counts as the smaller. Zero stays zero."""
    ordered, order = energy.sort(stable=True)
    rest = ordered.flip(0).cumsum(0).flip(0)
    return torch.empty_like(energy).scatter_(0, order, ordered / torch.where(rest > 0, rest, 1))


LAMP = ImportanceSpec(
    name="lamp",
    title="LAMP",
    score=lamp,
    formula="E_i / Σ_{j: E_j ≥ E_i} E_j over the layer, where E_i = ‖W^l_{i,:}‖₂² + ‖W^{l+1}_{:,i}‖₂² + γ_i²",
    source="Lee et al. 2021 (LAMP), over groups as in torch-pruning",
    compared=f"jaeho-lee/layer-adaptive-sparsity: tools/pruners.py; {TORCH_PRUNING}: importance.py",
    differs="the authors score single weights; torch-pruning leaves depthwise filters out",
    normalisation="divided by the total energy of the layer's channels that are at least as important",
    sides=SIDES,
)
