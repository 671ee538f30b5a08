"""Network Slimming: L1 on the scales of BatchNorm, and the scale as importance.

Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017: `λ Σ |γ|` by sub-gradient
(`grad += λ sign(γ)`), then one global threshold on |γ|. Here the scales of prunable channels are penalised; the
authors' networks have no others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from baselines.channels import add_to_gradient, channel_sums, over_mean
from baselines.method import ImportanceSpec, RegularizerSpec, Scoring, grid_around
from oicsr import Coupling, channel_energy
from oicsr.fast.layout import Layout
from oicsr.penalties import check_penalised, check_strength


class ScalePenalty:
    """`strength` times the summed |γ| of the normalisation layers of prunable channels; 0 if there are none.

    Raises:
        ValueError: `strength` is negative or not finite.
    """

    def __init__(self, couplings: Sequence[Coupling], strength: float) -> None:
        check_penalised(couplings)
        self.strength = check_strength(strength)
        self._layout = Layout.of(couplings, ("norm",))

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the penalty on the scales of `model`, a scalar."""
        return self.strength * sum((s.abs().sum() for s in self._layout.weights(model)), start=torch.zeros(()))

    @torch.no_grad()
    def add_gradient(self, model: nn.Module) -> None:
        """Add `strength * sign(γ)` to the gradients."""
        for scale in self._layout.weights(model):
            add_to_gradient(scale, scale.sign(), self.strength)


@torch.no_grad()
def batchnorm_scale(model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> list[Tensor]:
    """Return |γ| of every channel, the mean if it passes several normalisation layers.

    A coupling without one is scored by the L2 norm of its filters over their mean, times the mean |γ| of the network
    (1 where it has none at all): the same scale, so that the global sort remains meaningful.
    """
    scales = channel_sums(model, couplings, ("norm",), lambda name, weight: weight.abs())
    counts = channel_sums(model, couplings, ("norm",), lambda name, weight: torch.ones_like(weight))
    scaled = [bool(count.gt(0).all()) for count in counts]
    means = [scale / count.clamp(min=1) for scale, count in zip(scales, counts, strict=True)]
    known = [mean for mean, has_scale in zip(means, scaled, strict=True) if has_scale]
    typical = torch.cat(known).mean() if known else 1.0
    norms = over_mean(energy.sqrt() for energy in channel_energy(model, couplings, ("out",)))
    return [mean if has_scale else norm * typical for mean, norm, has_scale in zip(means, norms, scaled, strict=True)]


LIU = "liuzhuang13/slimming: train.lua, models/vgg.lua; Eric-mingjie/network-slimming: main.py, vggprune.py"

SLIMMING = RegularizerSpec(
    name="slimming",
    title="Network Slimming",
    make=ScalePenalty,
    formula="λ Σ |γ|",
    source="Liu et al. 2017",
    compared=LIU,
    differs="all BatchNorm layers are penalised; γ starts at 0.5",
    penalised="the scales of the normalisation layers (BatchNorm, GroupNorm) of prunable channels; no weights",
    normalisation="none",
    sides=("norm",),
    weight_decay_note="the experiment's own (the authors': 1e-4)",
    grid=grid_around(1e-4),  # the authors': 1e-4 for VGG, 1e-5 for deep ResNets
)

BATCHNORM_SCALE = ImportanceSpec(
    name="bn-scale",
    title="BatchNorm scale",
    score=batchnorm_scale,
    formula="|γ_i|; without a normalisation layer, ‖W^l_{i,:}‖₂ divided by its layer's mean, times the network's "
    "mean |γ|",
    source="Liu et al. 2017; the fallback is this suite's",
    compared=LIU,
    differs="nothing where a channel passes one BatchNorm layer; where it passes several, their mean is taken here",
    normalisation="none",
    sides=("norm",),
    degree=1,
)
