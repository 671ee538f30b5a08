"""Non-structured regularisation: individual weights, no channels.

L1 is `λ Σ |w|`, L2 is `(λ/2) Σ w²`, whose gradient is that of weight decay λ. Both act on the weights that OICSR acts
on, each once: all elements of the convolutions and linear layers that produce or read prunable channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from baselines.channels import add_to_gradient
from baselines.method import RegularizerSpec, grid_around
from oicsr import Coupling
from oicsr.fast.layout import Layout
from oicsr.penalties import check_penalised, check_strength


class ElementwisePenalty:
    """`strength` times the summed |w| (`power` 1) or w²/2 (`power` 2) of the weights around prunable channels.

    Raises:
        ValueError: `strength` is negative or not finite, or `power` is neither 1 nor 2.
    """

    def __init__(self, couplings: Sequence[Coupling], strength: float, *, power: int) -> None:
        check_penalised(couplings)
        if power not in (1, 2):
            raise ValueError(f"power is {power!r}; it must be 1 or 2")
        self.strength = check_strength(strength)
        self.power = power
        self._layout = Layout.of(couplings, ("out", "in"))

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the penalty on the weights of `model`, a scalar."""
        weights = self._layout.weights(model)
        sums = [w.abs().sum() if self.power == 1 else w.square().sum() / 2 for w in weights]
        return self.strength * sum(sums, start=torch.zeros(()))

    @torch.no_grad()
    def add_gradient(self, model: nn.Module) -> None:
        """Add `strength * sign(w)`, or `strength * w`, to the gradients."""
        for weight in self._layout.weights(model):
            add_to_gradient(weight, weight.sign() if self.power == 1 else weight, self.strength)


def l1(couplings: Sequence[Coupling], strength: float) -> ElementwisePenalty:
    """Build the L1 penalty."""
    return ElementwisePenalty(couplings, strength, power=1)


def l2(couplings: Sequence[Coupling], strength: float) -> ElementwisePenalty:
    """Build the L2 penalty."""
    return ElementwisePenalty(couplings, strength, power=2)


PENALISED = "all weights of the convolutions (depthwise too) and linear layers that produce or read prunable channels"
COMPARED = "Li et al. 2019 (OICSR), a non-structured baseline of its comparison"

L1_WEIGHTS = RegularizerSpec(
    name="l1-weights",
    title="L1 (non-structured)",
    make=l1,
    formula="λ Σ |w|",
    source=COMPARED,
    penalised=PENALISED,
    normalisation="none: all weights are treated equally",
    reach="whole tensors",
    grid=grid_around(1e-4),  # the gradient of a weight, as large as a usual weight decay makes it at |w| = 0.2
)

L2_WEIGHTS = RegularizerSpec(
    name="l2-weights",
    title="L2 (non-structured)",
    make=l2,
    formula="(λ/2) Σ w²",
    degree=2,
    source=COMPARED,
    penalised=PENALISED,
    normalisation="none: all weights are treated equally",
    reach="whole tensors",
    weight_decay_note="the experiment's own, plus λ for these weights",
    grid=grid_around(1e-3),  # from half a usual weight decay to eight times that
)
