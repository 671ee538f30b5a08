"""DepGraph's group norm: sparse learning with a shrinkage that grows as a channel's importance falls.

Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023. At every step

    grad += λ γ_k w,    γ_k = 2^(4 (I_max - I_k) / (I_max - I_min)),

for all weights w of channel k: rows, columns and BatchNorm scales. I_k is the root of the group's squared norm,
averaged over its parameters, and the extremes are those of the coupling; a constant factor per coupling cancels, so
the root of the energy over all sides can be used. Where all channels are equal γ is 1 (the source divides 0 by 0).

As γ is held fixed while the gradient is taken, the rule follows no potential; the value reported is the quadratic
`(λ/2) Σ_k γ_k E_k` whose gradient it is at that step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from baselines.method import ImportanceSpec, RegularizerSpec, Scoring, grid_around
from oicsr import Coupling, out_in_energy
from oicsr.coupling import SIDES, Side
from oicsr.energy import add_energy_gradient, energy_vector
from oicsr.fast.layout import Layout
from oicsr.penalties import check_penalised, check_strength

OCTAVES = 4.0  # γ is between 1 and 2^4


class GroupNormPenalty:
    """Weight decay per channel, from `strength` for the most important of a coupling to 16 times that for the least.

    Args:
        couplings: The couplings of the model.
        strength: λ, not negative.
        sides: Which weights of a channel are in its group: all, as in the source.

    Raises:
        ValueError: `strength` is negative or not finite, or a side is unknown.
    """

    def __init__(self, couplings: Sequence[Coupling], strength: float, sides: Sequence[Side] = SIDES) -> None:
        check_penalised(couplings)
        self.strength = check_strength(strength)
        self.last_value: Tensor | None = None
        self._layout = Layout.of(couplings, sides)
        sizes = torch.tensor(self._layout.sizes, dtype=torch.int64)
        self._owner = torch.arange(len(sizes)).repeat_interleave(sizes)

    def __call__(self, model: nn.Module) -> Tensor:
        """Return `(λ/2) Σ γ E` with γ held fixed, a scalar."""
        energies = energy_vector(model, self._layout)
        return self.strength / 2 * (self.pressure(energies.detach()) * energies).sum()

    @torch.no_grad()
    def add_gradient(self, model: nn.Module) -> None:
        """Add `λ γ w` to the gradients."""
        energies = energy_vector(model, self._layout)
        by_energy = self.strength / 2 * self.pressure(energies)
        add_energy_gradient(model, self._layout, by_energy)
        self.last_value = (by_energy * energies).sum()

    def pressure(self, energies: Tensor) -> Tensor:
        """Return γ of every channel, `(channels of all couplings,)`."""
        self._owner = self._owner.to(energies.device)
        importance = energies.sqrt()
        extremes = importance.new_zeros(len(self._layout.sizes))
        high = extremes.scatter_reduce(0, self._owner, importance, "amax", include_self=False)[self._owner]
        low = extremes.scatter_reduce(0, self._owner, importance, "amin", include_self=False)[self._owner]
        spread = high - low
        return 2 ** (OCTAVES * (high - importance) / torch.where(spread > 0, spread, 1))


def group_norm(model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> list[Tensor]:
    """Return the energy over all sides, BatchNorm scales included, over the layer's maximum."""
    return out_in_energy(model, couplings, "layer_max", sides=SIDES)


FANG = "Fang et al. 2023 (DepGraph)"
TORCH_PRUNING = "VainF/Torch-Pruning 1.6.1"
STEPS = "channels are removed in up to 400 steps, and rescored before each step"

DEPGRAPH = RegularizerSpec(
    name="depgraph",
    title="DepGraph group norm",
    make=GroupNormPenalty,
    formula="grad += λ γ_k w; γ_k = 2^(4 (I_max − I_k)/(I_max − I_min)), "
    "I_k = √(‖W^l_{k,:}‖² + ‖W^{l+1}_{:,k}‖² + γ_BN²)",
    source=f"{FANG}, group sparse learning",
    compared=f"{TORCH_PRUNING}: group_norm_pruner.py, reproduce/main.py",
    differs="nothing but depthwise filters, which are left alone",
    penalised="filters, columns and BatchNorm scales of prunable channels, and depthwise filters (added by this suite)",
    normalisation="γ_k by the extremes of the coupling",
    weight_decay_note="0 while the penalty is on, as its authors train",
    weight_decay=0.0,
    grid=grid_around(5e-4),  # the authors' for CIFAR
    sides=SIDES,
    degree=2,
    potential=False,
)

DEPGRAPH_NOSCALE = replace(
    DEPGRAPH,
    name="depgraph-noscale",
    title="DepGraph group norm without scale",
    make=partial(GroupNormPenalty, sides=("out", "in")),
    formula="grad += λ γ_k w; γ_k = 2^(4 (I_max − I_k)/(I_max − I_min)), I_k = √(‖W^l_{k,:}‖² + ‖W^{l+1}_{:,k}‖²)",
    source=f"control for {FANG}: its group without the BatchNorm scale",
    compared="",
    differs="",
    penalised="filters and columns of prunable channels, and depthwise filters; no scales",
    sides=("out", "in"),
)

GROUP_NORM = ImportanceSpec(
    name="group-norm",
    title="DepGraph group norm",
    score=group_norm,
    formula="‖W^l_{k,:}‖² + ‖W^{l+1}_{:,k}‖² + γ_BN²",
    source=f"{FANG}, with the normalisation of its CIFAR sparse learning",
    compared=f"{TORCH_PRUNING}: importance.py, reproduce/main.py",
    differs=f"{STEPS}; depthwise filters do not count",
    normalisation="divided by the largest of the layer's channels",
    sides=SIDES,
)
