"""Penalties on channel energies. A regulariser carries its configuration only; the formula is a function."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch._C import _are_functorch_transforms_active  # what `torch.autograd.Function` asks itself

from oicsr.arguments import check_couplings, check_number
from oicsr.coupling import Coupling, Side
from oicsr.energy import add_energy_gradient, energy_vector
from oicsr.fast.autograd import NormSum
from oicsr.fast.eager import eager
from oicsr.fast.layout import Layout, check_sides

# takes a norm of 2 off a channel that nothing holds, in 4,000 steps of SGD at a mean rate of 0.005 with momentum 0.9
DEFAULT_STRENGTH = 1e-2


class Regularizer(Protocol):
    """Anything that turns a model into a penalty to be added to the loss.

    A training loop asks a regulariser how it acts by what it offers: one with `proximal_step` acts after the
    optimiser's step and adds nothing to the loss; one with `add_gradient` adds its gradient after the backward pass of
    the loss; any other is added to the loss.
    """

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the penalty, a scalar."""
        ...


@runtime_checkable
class GradientRegularizer(Regularizer, Protocol):
    """A regulariser that can add the gradient of its penalty itself, without autograd."""

    def add_gradient(self, model: nn.Module) -> None:
        """Add the gradient of the penalty to `.grad` of the parameters of `model`, in place."""
        ...


@runtime_checkable
class ProximalRegularizer(Regularizer, Protocol):
    """A regulariser that acts by its proximal operator, so that channels become exactly zero."""

    def proximal_step(self, model: nn.Module, learning_rate: float | Tensor) -> None:
        """Replace the weights by the proximal point for the step size `learning_rate`, in place."""
        ...


@runtime_checkable
class ScheduledRegularizer(Regularizer, Protocol):
    """A regulariser whose pressure changes while training; its state belongs in a checkpoint."""

    def advance(self, model: nn.Module) -> None:
        """Go on by one optimisation step; called before the backward pass of each."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state, tensors by name."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state that `state_dict` returned."""
        ...


def group_lasso(energies: Iterable[Tensor]) -> Tensor:
    r"""Return the sum of the norms of all channels, :math:`\sum_i \sqrt{E_i}`.

    Args:
        energies: Tensors `(channels,)` of squared norms. Where an energy is zero the gradient is zero (the element of
            the sub-differential with the least norm), never NaN.
    """
    return sum((safe_sqrt(energy).sum() for energy in energies), start=torch.zeros(()))


def safe_sqrt(energy: Tensor) -> Tensor:
    """Return the square root, with gradient zero where the argument is zero."""
    positive = energy > 0
    return torch.where(positive, torch.where(positive, energy, 1.0).sqrt(), 0.0)


def norm_sum(model: nn.Module, layout: Layout) -> Tensor:
    r"""Return the sum of the norms of all channels, :math:`\sum_i \sqrt{E_i}`, a scalar, differentiable.

    `group_lasso([energy_vector(model, layout)])` by a shorter way.

    Raises:
        ValueError: The layout is not the model's: a name or a width differs.
    """
    weights = layout.weights(model)
    plain = weights and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if not plain or _are_functorch_transforms_active():
        return safe_sqrt(energy_vector(model, layout)).sum()
    value: Tensor = NormSum.apply(layout.table(weights), *weights)
    return value


def check_strength(strength: float) -> float:
    """Return `strength`, or raise ValueError where it is negative, not finite, or a tensor with dimensions."""
    if getattr(strength, "ndim", 0):
        raise ValueError(f"strength is {strength!r}; it must be a number, or a tensor without dimensions")
    if not math.isfinite(check_number("strength", strength)) or strength < 0:
        raise ValueError(f"strength is {strength!r}; it must be a finite number, 0 or more")
    return strength


def check_penalised(couplings: object) -> None:
    """Raise TypeError unless the first argument of a penalty is a sequence of couplings, and no model above all."""
    if isinstance(couplings, nn.Module):
        raise TypeError(
            f"couplings is a {type(couplings).__name__}, a module: a penalty is made of the couplings alone, and the "
            "model is given when it is called, as in penalty = GroupLasso(couplings); penalty(model)"
        )
    check_couplings(couplings)


class OfPenalty:
    """What applies a penalty in another way than by adding it to the loss, and has its value and strength."""

    _penalty: Any

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the penalty on the weights of `model`, a scalar."""
        value: Tensor = self._penalty(model)
        return value

    @property
    def strength(self) -> float:
        """λ; it may be set between steps."""
        strength: float = self._penalty.strength
        return strength

    @strength.setter
    def strength(self, strength: float) -> None:
        """Set λ of both."""
        self._penalty.strength = check_strength(strength)


def describe_penalty(penalty: object, sides: Sequence[Side], strength: float, layout: Layout) -> str:
    """Return one line for `repr`."""
    return f"{type(penalty).__name__}(sides={tuple(sides)}, strength={strength:g}, groups={layout.channels:,})"


def group_layout(couplings: Sequence[Coupling], sides: Sequence[Side], *, joint: bool) -> Layout:
    """Return the layout in which each channel is one group over its sides (`joint`), or one group per side."""
    check_sides(sides)
    check_couplings(couplings)
    if joint:
        return Layout.of(couplings, sides)
    apart = [
        Coupling(coupling.name, coupling.num_channels, tuple(m for m in coupling.members if m.side == side))
        for side in dict.fromkeys(sides)
        for coupling in couplings
    ]
    return Layout.of(apart, sides)


class GroupLasso:
    r"""Group Lasso over channels: `strength` times the sum of their norms.

    With `sides=("out", "in")` this is OICSR-GL (Eq. 4 of Li et al. 2019, as reconstructed in PAPER.md): an
    out-channel and the in-channel that reads it are one group,

    .. math:: \lambda \sum_l \sum_i \sqrt{ \lVert W^l_{i,:} \rVert_2^2 + \lVert W^{l+1}_{:,i} \rVert_2^2 }.

    With `sides=("out",)` it is the separated rival, which looks at one layer at a time (SSL, Wen et al. 2016). With
    `joint=False` each side is a group of its own, :math:`\lVert W^l_{i,:} \rVert_2 + \lVert W^{l+1}_{:,i} \rVert_2`.
    Groups are not weighted by the square root of their size.

    Groups of consecutive couplings overlap: a weight between two pruned layers is in one group as a row and in
    another as a column, and both pull on it.

    Call it for the penalty, to be added to the loss; or, after `loss.backward()`, call `add_gradient`, which gives the
    same gradients to rounding and leaves autograd out.

    Args:
        couplings: The couplings of the model that will be penalised (after surgery: `shrink_couplings`).
        sides: Which weights of a channel are in its group.
        strength: λ, not negative. The default suits about 4,000 steps of SGD with momentum 0.9 at a mean learning rate
            of 0.005; `suggest_strength` fits it to others, and `weak_energy` shows what it does.
        joint: Whether the sides of a channel form one group, or one each.

    Attributes:
        last_value: The penalty that `add_gradient` last found, a scalar on the model's device, detached; None before
            the first call. Reading its number (`float`) waits for the device; keeping the tensor does not.

    Raises:
        ValueError: `strength` is negative or not finite, or a side is unknown.
    """

    def __init__(
        self,
        couplings: Sequence[Coupling],
        sides: Sequence[Side] = ("out", "in"),
        strength: float = DEFAULT_STRENGTH,
        *,
        joint: bool = True,
    ) -> None:
        check_penalised(couplings)
        self.strength = check_strength(strength)
        self.sides = check_sides(sides)
        self.last_value: Tensor | None = None
        self._layout = group_layout(couplings, self.sides, joint=joint)

    def __repr__(self) -> str:
        return describe_penalty(self, self.sides, self.strength, self._layout)

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the penalty on the weights of `model`, a scalar."""
        return self.strength * norm_sum(model, self._layout)

    @torch.no_grad()
    @eager
    def add_gradient(self, model: nn.Module) -> None:
        r"""Add the gradient, :math:`\lambda w (1 / \lVert g_{out} \rVert + 1 / \lVert g_{in} \rVert)`, to `.grad`.

        Call it after the backward pass of the loss and before the optimiser's step. With gradients that are scaled
        (`GradScaler`), call it after `unscale_`. With distributed training every process adds the same numbers, after
        the reduction. Frozen weights are passed over. A group whose norm is zero has gradient zero.
        """
        norms = energy_vector(model, self._layout).sqrt()
        inverse = torch.where(norms > 0, (0.5 * self.strength) / norms, 0.0)  # dP/dE = λ / (2 sqrt(E))
        add_energy_gradient(model, self._layout, inverse)
        self.last_value = self.strength * norms.sum()
