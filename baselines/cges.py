"""CGES: combined group and exclusive sparsity.

Yoon and Hwang, "Combined Group and Exclusive Sparsity for Deep Neural Networks", ICML 2017:

    λ Σ_l [ (1 - μ_l) Σ_i ||w_i||_2 + (μ_l / 2) Σ_i ||w_i||_1² ],    μ_l = m + (1 - 2m) l / (L - 1),

so that channels are shared near the input and compete for weights near the output. With m = 0.2 the authors' μ goes
from 0.2 to 0.8. Their groups are the weights that leave one input: columns, and for convolutions each position of the
kernel by itself; here a column is the whole in-channel. The factors that they set by hand for each layer of one
network are left out. They train by proximal steps, here it is the sub-gradient of the same penalty. Any `sides` may
form the group: with both it is the OICSR form.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from baselines.channels import channel_sums
from baselines.method import RegularizerSpec, grid_around
from oicsr import Coupling
from oicsr.coupling import Side
from oicsr.energy import Layout, energy_vector
from oicsr.penalties import check_strength, safe_sqrt

MARGIN = 0.2  # m


class Cges:
    """Combined group and exclusive sparsity over channels.

    Args:
        couplings: The couplings of the model, in the order of its layers.
        sides: Which weights of a channel are in its group.
        strength: λ, not negative.
        margin: m: the share of the exclusive part in the first coupling, 1 - m in the last; in [0, 0.5].

    Raises:
        ValueError: `strength` is negative or not finite, `margin` is out of range, or a side is unknown.
    """

    def __init__(
        self, couplings: Sequence[Coupling], sides: Sequence[Side], strength: float, margin: float = MARGIN
    ) -> None:
        if not 0 <= margin <= 0.5:
            raise ValueError(f"margin is {margin!r}; it must be in [0, 0.5]")
        self.strength = check_strength(strength)
        self.sides = tuple(sides)
        self._couplings = list(couplings)
        self._layout = Layout.of(couplings, self.sides)
        depth = torch.linspace(0, 1, len(self._couplings), dtype=torch.float64)
        self._exclusive = (margin + (1 - 2 * margin) * depth).repeat_interleave(torch.tensor(self._layout.sizes))

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the penalty on the weights of `model`, a scalar."""
        group = safe_sqrt(energy_vector(model, self._layout))
        absolute = torch.cat(channel_sums(model, self._couplings, self.sides, lambda name, weight: weight.abs()))
        exclusive = self._exclusive.to(group.device, group.dtype)
        return self.strength * ((1 - exclusive) * group + exclusive / 2 * absolute.square()).sum()


def in_channels(couplings: Sequence[Coupling], strength: float) -> Cges:
    """Build CGES over in-channels, as its authors group."""
    return Cges(couplings, ("in",), strength)


YOON = "Yoon and Hwang 2017 (CGES)"
MU = "μ from 0.2 (first coupling) to 0.8 (last)"
NORMALISATION = "none; the exclusive part grows with the square of the group's size"
DECAY = "the experiment's own"

CGES = RegularizerSpec(
    name="cges",
    title="CGES (in)",
    make=in_channels,
    formula=f"λ Σ_l Σ_i ((1 − μ_l) ‖W^{{l+1}}_{{:,i}}‖₂ + (μ_l/2) ‖W^{{l+1}}_{{:,i}}‖₁²); {MU}",
    source=f"{YOON}, by sub-gradient and without its hand-set factors per layer",
    penalised="the columns of the convolutions and linear layers that read prunable channels",
    normalisation=NORMALISATION,
    weight_decay_note=DECAY,
    sides=("in",),
    degree=None,  # a sum of degrees 1 and 2
    grid=grid_around(6e-6),  # the exclusive part alone then pulls on a weight about as l1-weights does
)
