r"""What the next layer sees of a channel, computed from the weights alone.

Under BatchNorm, the weights of a filter say nothing about how strong its channel is: multiplied by any factor, they
give the same output. The scale γ and the shift β do. The pre-activation of channel i is roughly `γ z + β` with standard
normal z, so its second moment after ReLU is

    m(γ, β) = E[max(0, γ z + β)²] = (β² + γ²) Φ(β/γ) + β γ φ(β/γ),   γ > 0,

and what the channel adds to the squares of the next layer's pre-activations is about `m(γ_i, β_i) ‖W^{l+1}_{:,i}‖²`.
No data is needed. Three scores follow, each divided by the mean of its layer.

Each reading layer is paired with the normalisation layer that comes last before it, in the order of the forward pass;
what a channel passes between the two (a gate, a filter without normalisation) is left out, and a sum of several
branches counts as its last branch. Without a normalisation layer, uncorrelated inputs of mean
zero and variance one are assumed: γ is then the norm of the channel's filter, and β its bias. Activations other
than ReLU are treated as ReLU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from baselines.channels import over_mean, sum_slices, zeros
from baselines.method import ImportanceSpec, Scoring
from oicsr import Coupling, Member
from oicsr.coupling import SIDES
from oicsr.networks.wrapping import unwrap


def rectified_moment(scale: Tensor, shift: Tensor) -> Tensor:
    """Return `E[max(0, scale z + shift)²]` for standard normal z, elementwise.

    Args:
        scale: Not negative; where it is zero the result is `max(0, shift)²`.
        shift: Of the same shape.
    """
    ratio = shift / torch.where(scale > 0, scale, 1)
    density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    spread = (shift.square() + scale.square()) * torch.special.ndtr(ratio) + shift * scale * density
    return torch.where(scale > 0, spread.clamp(min=0), shift.clamp(min=0).square())


@torch.no_grad()
def seen(model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> list[Tensor]:
    """Return the second moment of each channel's activation times its in-energy, over the layer's mean."""
    return over_mean(_Walk(model, coupling).seen for coupling in couplings)


@torch.no_grad()
def scale_in(model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> list[Tensor]:
    """Return the squared scale of each channel times its in-energy, over the layer's mean."""
    return over_mean(_Walk(model, coupling).scale_in for coupling in couplings)


@torch.no_grad()
def folded(model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> list[Tensor]:
    """Return the out-in energy that the network has once its BatchNorm layers are folded, over the layer's mean."""
    return over_mean(_Walk(model, coupling).folded for coupling in couplings)


class _Walk:
    """A walk over the layers that a channel passes through, in the order of the network.

    Attributes:
        seen: Σ over reading layers of m(γ, β) times in-energy, `(num_channels,)`.
        scale_in: Σ over reading layers of γ² times in-energy.
        folded: In-energy, and the energy of the filters times (γ/σ)² of the BatchNorm layer that follows.
    """

    def __init__(self, model: nn.Module, coupling: Coupling) -> None:
        self._model = unwrap(model)
        self._size = coupling.num_channels
        none = zeros(model, coupling)
        self._scale = self._shift = self._normalised = none
        self._filters = none  # the energy of filters that no normalisation layer has followed yet
        self.seen = self.scale_in = self.folded = none
        for member in coupling.members:
            if member.side == "out":
                self._produce(member)
            elif member.side == "norm":
                self._normalise(member)
            elif member.counts:
                self._read(member)
        self.folded = self.folded + self._filters

    def _produce(self, member: Member) -> None:
        if member.counts:
            energy = self._energy(member)
            self._filters = self._filters + energy
            self._set_unless_normalised(member, scale=energy.sqrt(), shift=torch.zeros_like(energy))
        elif member.parameter.endswith("bias"):
            self._set_unless_normalised(member, scale=self._scale, shift=self._values(member))

    def _set_unless_normalised(self, member: Member, scale: Tensor, shift: Tensor) -> None:
        plain = self._normalised == 0
        self._scale = torch.where(plain, self._replaced(self._scale, scale, member), self._scale)
        self._shift = torch.where(plain, self._replaced(self._shift, shift, member), self._shift)

    def _normalise(self, member: Member) -> None:
        layer, _, leaf = member.parameter.rpartition(".")
        module = self._model.get_submodule(layer)
        plain = leaf == "running_var" and getattr(module, "weight", None) is None  # neither scale nor shift
        if plain or (leaf == "weight" and member.counts):
            scale = torch.ones_like(self._scale) if plain else self._values(member).abs()
            variance = self._variance(module, member)
            self._fold(scale.square() * self._filters / torch.where(variance > 0, variance, 1), member)
            self._normalised = self._replaced(self._normalised, torch.ones_like(self._normalised), member)
            self._scale = self._replaced(self._scale, scale, member)
            self._shift = self._replaced(self._shift, torch.zeros_like(scale), member)
        elif leaf == "bias":
            self._shift = self._replaced(self._shift, self._values(member), member)

    def _variance(self, module: nn.Module, member: Member) -> Tensor:
        """Return the variance by which a normalisation layer divides each channel, `(num_channels,)`.

        GroupNorm keeps no statistics. A channel of a coupling owns whole groups of it, so that the filters' own energy
        stands for their variance.
        """
        running = getattr(module, "running_var", None)
        if not isinstance(running, Tensor):
            return self._filters
        return sum_slices(member, running + float(getattr(module, "eps", 0.0)), self._size) / self._owned(member)

    def _fold(self, energy: Tensor, member: Member) -> None:
        """Count the filters so far as `energy`, for the channels of a normalisation layer."""
        self.folded = self._replaced(self.folded, self.folded + energy, member)
        self._filters = self._replaced(self._filters, torch.zeros_like(energy), member)

    def _read(self, member: Member) -> None:
        energy = self._energy(member)
        self.seen = self.seen + rectified_moment(self._scale, self._shift) * energy
        self.scale_in = self.scale_in + self._scale.square() * energy
        self.folded = self.folded + energy

    def _energy(self, member: Member) -> Tensor:
        return sum_slices(member, self._model.get_parameter(member.parameter).square(), self._size)

    def _values(self, member: Member) -> Tensor:
        """Return the value of each channel of a vector, the mean where a channel owns several."""
        value = getattr(self._model.get_submodule(member.parameter.rpartition(".")[0]), member.parameter.split(".")[-1])
        return sum_slices(member, value, self._size) / self._owned(member)

    def _owned(self, member: Member) -> Tensor:
        """Return how many slices of a member each channel owns, 1 at least."""
        return sum_slices(member, torch.ones_like(self._scale[:1]).expand(len(member.channels)), self._size).clamp(
            min=1
        )

    def _replaced(self, before: Tensor, after: Tensor, member: Member) -> Tensor:
        """Return `after` for the channels that a member has slices of, `before` for the others."""
        own = torch.zeros(self._size, dtype=torch.bool)
        own[member.channels[member.channels >= 0]] = True
        return torch.where(own.to(before.device), after, before)


FALLBACK = "without a normalisation layer, γ is ‖W^l_{i,:}‖₂ and β the bias"
MEAN = "divided by the mean of the layer's channels"

SEEN = ImportanceSpec(
    name="seen",
    title="expected next-layer contribution",
    score=seen,
    formula=f"m(γ_i, β_i) ‖W^{{l+1}}_{{:,i}}‖₂², m(γ, β) = (β² + γ²) Φ(β/γ) + β γ φ(β/γ); {FALLBACK}",
    source="control: E[max(0, γ z + β)²] for standard normal z, in closed form",
    normalisation=MEAN,
    sides=("in", "norm"),  # filters only where there is no scale
)

SCALE_IN = ImportanceSpec(
    name="scale-in",
    title="scale² × in energy",
    score=scale_in,
    formula=f"γ_i² ‖W^{{l+1}}_{{:,i}}‖₂²; {FALLBACK}",
    source="control",
    normalisation=MEAN,
    sides=("in", "norm"),  # filters only where there is no scale
)

FOLDED = ImportanceSpec(
    name="folded",
    title="out-in energy, BatchNorm folded",
    score=folded,
    formula="(γ_i/σ_i)² ‖W^l_{i,:}‖₂² + ‖W^{l+1}_{:,i}‖₂², where σ_i² is the running variance "
    "(GroupNorm: ‖W^l_{i,:}‖₂²); without a normalisation layer, γ_i/σ_i is 1",
    source="control",
    normalisation=MEAN,
    sides=SIDES,
    degree=None,  # the running variance does not follow the weights
)
