"""Polarization: separates the scales of BatchNorm into zeros and others, instead of shrinking all of them.

Zhuang et al., "Neuron-level Structured Pruning using Polarization Regularizer", NeurIPS 2020:

    λ (t Σ|γ_i| - Σ|γ_i - α γ_mean|),

with the mean over all scales, so that scales far from it on either side cost least: small ones fall to zero, large
ones stay. After each step the authors clamp the scales to [0, 1]; their networks start from 0.5. Here networks
start trained, from about 1, so the upper bound is omitted. t and α are 1, their code's defaults. The value may be
negative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from baselines.method import RegularizerSpec, grid_around
from oicsr import Coupling
from oicsr.fast.layout import Layout
from oicsr.penalties import check_penalised, check_strength


class Polarization:
    """`strength` times `t Σ|γ| - Σ|γ - α mean(γ)|` over the scales of prunable channels; 0 if there are none.

    `advance`, called before each step, keeps the scales non-negative.

    Args:
        couplings: The couplings of the model.
        strength: λ, not negative.
        shrinkage: t.
        centre: α.

    Raises:
        ValueError: `strength` is negative or not finite.
    """

    def __init__(
        self, couplings: Sequence[Coupling], strength: float, *, shrinkage: float = 1.0, centre: float = 1.0
    ) -> None:
        check_penalised(couplings)
        self.strength = check_strength(strength)
        self.shrinkage, self.centre = shrinkage, centre
        self._layout = Layout.of(couplings, ("norm",))

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the penalty on the scales of `model`, a scalar."""
        scales = self._layout.weights(model)
        if not scales:
            return torch.zeros(())
        scale = torch.cat(scales)
        distance = (scale - self.centre * scale.mean()).abs().sum()
        return self.strength * (self.shrinkage * scale.abs().sum() - distance)

    @torch.no_grad()
    def advance(self, model: nn.Module) -> None:
        """Set negative scales to zero."""
        for scale in self._layout.weights(model):
            if scale.requires_grad:
                scale.clamp_(min=0)

    def state_dict(self) -> dict[str, Tensor]:
        """Return nothing: the scales themselves are the only state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore nothing."""


POLARIZATION = RegularizerSpec(
    name="polarization",
    title="Polarization",
    make=Polarization,
    formula="λ (Σ|γ_i| − Σ|γ_i − mean(γ)|), then γ ← max(0, γ)",
    source="Zhuang et al. 2020 (Polarization), t = α = 1; without its upper bound on γ",
    compared="polarizationpruning/PolarizationPruning: cifar/main.py, cifar/README.md",
    differs="t is 1.4 for ResNet-56 and 1.5 for VGG-16; γ starts at 0.5 and is kept below 1",
    weight_decay_note="the experiment's own (the authors': 5e-4)",
    penalised="the scales of the normalisation layers (BatchNorm, GroupNorm) of prunable channels; no weights",
    normalisation="none: one mean for all layers",
    sides=("norm",),
    reach="some channels",  # a large scale has zero gradient if as many scales are above the mean as below it
    signed=True,
    grid=grid_around(1e-4),  # the authors' default
)
