"""Proximal steps on channels: after the optimiser's step, whole channels shrink and reach zero exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from oicsr.coupling import Axis, Coupling, Side
from oicsr.energy import Layout, check_sides, energy_vector
from oicsr.penalties import group_lasso


class ChannelAxes:
    """The parameter axes that channels own slices of on some of their sides, to scale channels in place."""

    def __init__(self, couplings: Sequence[Coupling], sides: Sequence[Side]) -> None:
        check_sides(sides)
        nowhere = sum(coupling.num_channels for coupling in couplings)
        axes: dict[Axis, Tensor] = {}
        start = 0
        for coupling in couplings:
            for member in coupling.members:
                if member.counts and member.side in sides:
                    target = axes.setdefault(member.axis, torch.full_like(member.channels, nowhere))
                    target[member.channels >= 0] = start + member.channels[member.channels >= 0]
            start += coupling.num_channels
        self._axes = axes

    @torch.no_grad()
    def scale(self, model: nn.Module, factors: Tensor) -> None:
        """Multiply the weights of every channel by its factor, in place.

        A weight that is in two groups, as a row of one channel and in a column of another, is multiplied by both.

        Args:
            model: The network.
            factors: `(channels of all couplings,)`.
        """
        padded = torch.cat([factors, factors.new_ones(1)])
        for (name, dim), target in self._axes.items():
            if target.device != factors.device:
                target = self._axes[name, dim] = target.to(factors.device)
            weight = model.get_parameter(name)
            shape = [1] * weight.ndim
            shape[dim] = -1
            weight.mul_(padded[target].reshape(shape).to(weight.dtype))


def shrinkage(norms: Tensor, shrunk: Tensor) -> Tensor:
    """Return what turns each norm into its shrunk value: their ratio, and 1 where the norm is 0."""
    positive = norms > 0
    return torch.where(positive, shrunk / torch.where(positive, norms, 1), 1)


class ProximalGroupLasso:
    r"""Group Lasso by its proximal operator: each channel's norm loses `learning_rate * strength`, down to zero.

    .. math:: g_i \leftarrow \max(0, 1 - \eta \lambda / \lVert g_i \rVert_2) \, g_i

    is exact where groups are disjoint (one side alone). Out-in groups of consecutive couplings overlap, and the
    proximal operator of overlapping groups has no closed form: there all factors are computed from the weights before
    the step, and a weight in two groups takes both, which agrees with the exact operator to first order in ηλ and
    does not depend on the order of the layers.

    Args:
        couplings: The couplings of the model.
        sides: Which weights of a channel are in its group.
        strength: λ, not negative.

    Raises:
        ValueError: `strength` is negative or not finite, or a side is unknown.
    """

    def __init__(
        self, couplings: Sequence[Coupling], sides: Sequence[Side] = ("out", "in"), strength: float = 1e-4
    ) -> None:
        if not math.isfinite(strength) or strength < 0:
            raise ValueError(f"strength is {strength!r}; it must be a finite number, 0 or more")
        self.strength = strength
        self.sides = tuple(sides)
        self._layout = Layout.of(couplings, self.sides)
        self._axes = ChannelAxes(couplings, self.sides)

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the penalty on the weights of `model`, a scalar."""
        return self.strength * group_lasso([energy_vector(model, self._layout)])

    @torch.no_grad()
    def proximal_step(self, model: nn.Module, learning_rate: float) -> None:
        """Shrink every channel of `model`, in place."""
        norms = energy_vector(model, self._layout).sqrt()
        self._axes.scale(model, shrinkage(norms, (norms - learning_rate * self.strength).clamp(min=0)))
