"""CGES: combined group and exclusive sparsity.

Yoon and Hwang, "Combined Group and Exclusive Sparsity for Deep Neural Networks", ICML 2017:

    λ Σ_l [ (1 - μ_l) Σ_i ||w_i||_2 + (μ_l / 2) Σ_i ||w_i||_1² ],    μ_l = m + (1 - 2m) l / (L - 1),

so that channels are shared near the input and compete for weights near the output. With m = 0.2 the authors' μ goes
from 0.2 to 0.8. Their groups are the weights that leave one input: columns, and for convolutions each position of the
kernel separately; here a column is the complete in-channel. The factors that they set by hand for each layer of one
network are left out. They train by proximal steps: after each step of the optimiser each group is shrunk by its
2-norm, then each weight by the 1-norm of its group as it is then. The sub-gradient of the same penalty is offered too.
Any `sides` may form the group: with both it is the OICSR form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from baselines.channels import channel_sums, counted, per_slice
from baselines.method import RegularizerSpec, grid_around
from oicsr import Coupling
from oicsr.arguments import check_learning_rate
from oicsr.coupling import Side
from oicsr.energy import energy_vector
from oicsr.fast.layout import Layout
from oicsr.networks.wrapping import unwrap
from oicsr.penalties import OfPenalty, check_penalised, check_strength, safe_sqrt
from oicsr.proximal import shrink_groups_

MARGIN = 0.2  # m


class Cges:
    """Combined group and exclusive sparsity over channels.

    Args:
        couplings: The couplings of the model, in the order of its layers.
        sides: Which weights of a channel are in its group.
        strength: λ, not negative.
        margin: m: the share of the exclusive part in the first coupling, 1 - m in the last; in [0, 0.5].

    Attributes:
        exclusive_share: μ of every channel, `(channels of all couplings,)`.

    Raises:
        ValueError: `strength` is negative or not finite, `margin` is out of range, or a side is unknown.
    """

    def __init__(
        self, couplings: Sequence[Coupling], sides: Sequence[Side], strength: float, margin: float = MARGIN
    ) -> None:
        check_penalised(couplings)
        if not 0 <= margin <= 0.5:
            raise ValueError(f"margin is {margin!r}; it must be in [0, 0.5]")
        self.strength = check_strength(strength)
        self.sides = tuple(sides)
        self._couplings = list(couplings)
        self._layout = Layout.of(couplings, self.sides)
        depth = torch.linspace(0, 1, len(self._couplings), dtype=torch.float64)
        self.exclusive_share = (margin + (1 - 2 * margin) * depth).repeat_interleave(
            torch.tensor(self._layout.sizes, dtype=torch.int64)
        )

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the penalty on the weights of `model`, a scalar."""
        group = safe_sqrt(energy_vector(model, self._layout))
        absolute = torch.cat(channel_sums(model, self._couplings, self.sides, lambda name, weight: weight.abs()))
        exclusive = self.exclusive_share.to(group.device, group.dtype)
        return self.strength * ((1 - exclusive) * group + exclusive / 2 * absolute.square()).sum()


class ProximalCges(OfPenalty):
    """CGES by the steps of its authors: groups are soft-thresholded, then weights by the 1-norm of their group.

    The first is the proximal operator of the group part. The second is that of the exclusive part to first order in
    the step: the exact one uses the 1-norm after the step instead of the one before. A weight in two groups takes
    the factors, and the thresholds, of both. Arguments and errors are those of `Cges`.
    """

    def __init__(
        self, couplings: Sequence[Coupling], sides: Sequence[Side], strength: float, margin: float = MARGIN
    ) -> None:
        self._penalty = Cges(couplings, sides, strength, margin)
        self._couplings, self._layout = self._penalty._couplings, self._penalty._layout

    @torch.no_grad()
    def proximal_step(self, model: nn.Module, learning_rate: float | Tensor) -> None:
        """Shrink groups, then weights, in place; frozen weights count and are left as they are.

        Args:
            model: The network, after the optimiser's step.
            learning_rate: The learning rate of that step, not negative; a number or a scalar tensor.

        Raises:
            TypeError: `learning_rate` is not a number.
            ValueError: It is negative or not finite.
        """
        model, step = unwrap(model), self.strength * check_learning_rate(learning_rate)
        exclusive = self._penalty.exclusive_share
        shrink_groups_(model, self._layout, step * (1 - exclusive))
        sides = self._penalty.sides
        norms = channel_sums(model, self._couplings, sides, lambda name, weight: weight.abs())
        thresholds: dict[str, Tensor] = {}
        shares = exclusive.split(self._layout.sizes)
        for coupling, norm, share in zip(self._couplings, norms, shares, strict=True):
            for member in counted(coupling, sides):
                weight = model.get_parameter(member.parameter)
                threshold = per_slice(member, step * share.to(norm.device, norm.dtype) * norm, weight)
                thresholds[member.parameter] = thresholds.get(member.parameter, torch.zeros(())) + threshold
        for name, threshold in thresholds.items():
            weight = model.get_parameter(name)
            if weight.requires_grad:
                weight.copy_(weight.sign() * (weight.abs() - threshold).clamp(min=0))


def in_channels(couplings: Sequence[Coupling], strength: float) -> Cges:
    """Build CGES over in-channels, as its authors group."""
    return Cges(couplings, ("in",), strength)


def in_channels_proximal(couplings: Sequence[Coupling], strength: float) -> ProximalCges:
    """Build CGES over in-channels by its authors' steps."""
    return ProximalCges(couplings, ("in",), strength)


YOON = "Yoon and Hwang 2017 (CGES)"
MU = "μ from 0.2 (first coupling) to 0.8 (last)"
NORMALISATION = "none; the exclusive part grows with the square of the group's size"
DECAY = "the experiment's own (the authors': none)"

CGES = RegularizerSpec(
    name="cges",
    title="CGES (in)",
    make=in_channels,
    formula=f"λ Σ_l Σ_i ((1 − μ_l) ‖W^{{l+1}}_{{:,i}}‖₂ + (μ_l/2) ‖W^{{l+1}}_{{:,i}}‖₁²); {MU}",
    source=f"{YOON}, by sub-gradient, without its hand-set factors per layer",
    compared="jaehong31/CGES: main.py, utils.py, run.sh",
    differs="μ counts layers, and the first one is penalised too; each position of a kernel is a group of its own",
    penalised="the columns of the convolutions and linear layers that read prunable channels",
    normalisation=NORMALISATION,
    weight_decay_note=DECAY,
    sides=("in",),
    degree=None,  # a sum of degrees 1 and 2
    grid=grid_around(6e-6),  # the exclusive part alone then pulls on a weight about as l1-weights does
)

CGES_PROX = replace(
    CGES,
    name="cges-prox",
    title="CGES (in), proximal",
    make=in_channels_proximal,
    formula="after a step of size η: g ← max(0, 1 − ηλ(1 − μ_l)/‖g‖₂) g, then w ← sign(w) max(0, |w| − ηλ μ_l ‖g‖₁); "
    f"g = W^{{l+1}}_{{:,i}}; {MU}",
    source=f"{YOON}, with the authors' steps, without their hand-set factors per layer",
    grid=grid_around(6e-5),  # the authors'
)
