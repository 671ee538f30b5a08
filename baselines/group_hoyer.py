"""Group Hoyer: a measure of sparsity that does not change with the scale of the weights.

Yang, Wen, Li, "DeepHoyer: Learning Sparser Neural Network with Differentiable Scale-Invariant Sparsity Measures", ICLR
2020: for every layer `(Σ_g ||w_g||)² / Σ_g ||w_g||²`, which is between 1 (one group left) and the number of groups
(all equal); once for its filters and once for its input channels, as in the authors' code. Small groups are drawn to
zero, large ones grow. Here the two sums are over the filters and over the columns of each coupling.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from baselines.method import RegularizerSpec, grid_around
from oicsr import Coupling
from oicsr.coupling import Side
from oicsr.energy import energy_vector
from oicsr.networks.state import trainable
from oicsr.penalties import check_penalised, check_strength, group_layout, safe_sqrt


class GroupHoyer:
    """`strength` times the sum over couplings and sides of `(Σ_i ||w_i||)² / Σ_i ||w_i||²`; 0 for weights of zero.

    Args:
        couplings: The couplings of the model.
        strength: λ, not negative.
        sides: Which weights of a channel count, each side as separate groups.

    Raises:
        ValueError: `strength` is negative or not finite, or a side is unknown.
    """

    def __init__(self, couplings: Sequence[Coupling], strength: float, sides: Sequence[Side] = ("out", "in")) -> None:
        check_penalised(couplings)
        self.strength = check_strength(strength)
        self._layout = group_layout(couplings, sides, joint=False)
        sizes = torch.tensor(self._layout.sizes, dtype=torch.int64)
        self._owner = torch.arange(len(sizes)).repeat_interleave(sizes)

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the penalty on the weights of `model`, a scalar."""
        energies = energy_vector(model, self._layout)
        with trainable():  # it is kept for calls outside inference mode
            self._owner = self._owner.to(energies.device)
        zeros = energies.new_zeros(len(self._layout.sizes))
        norms = zeros.index_add(0, self._owner, safe_sqrt(energies))
        squares = zeros.index_add(0, self._owner, energies)
        found = squares > 0
        return self.strength * torch.where(found, norms.square() / torch.where(found, squares, 1), 0).sum()


GROUP_HOYER = RegularizerSpec(
    name="group-hoyer",
    title="Group-HS",
    make=GroupHoyer,
    formula="λ Σ_l ((Σ_i ‖W^l_{i,:}‖₂)² / Σ_i ‖W^l_{i,:}‖₂² + (Σ_i ‖W^{l+1}_{:,i}‖₂)² / Σ_i ‖W^{l+1}_{:,i}‖₂²)",
    source="Yang et al. 2020 (DeepHoyer), Group-HS over filters and over input channels",
    compared="yanghr/DeepHoyer: cifar/cifar_group.py, imagenet/main_group.py",
    differs="the inputs of the first layer and the outputs of the last count too; a threshold decides what goes",
    weight_decay_note="the experiment's own (the authors': 1e-4)",
    penalised="filters and columns of prunable channels, as separate groups",
    normalisation="divided by the squared norm of the layer: the value does not change with its scale",
    sides=("out", "in"),
    degree=0,
    grid=grid_around(1e-3),  # the authors' default
)
