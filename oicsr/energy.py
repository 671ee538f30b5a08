"""Channel energy: the one primitive that every penalty, importance and selection here is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from oicsr.coupling import SIDES, Coupling, Side


@dataclass(frozen=True, eq=False)
class Term:
    """The slices of one parameter along one axis, and where each one's energy goes."""

    weight: int  # index into `Layout.parameters`
    dim: int
    channels: Tensor  # int64, (size of the axis,): position in the vector of all channels; the last one is a waste bin


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the energy of every slice goes: worked out once for a list of couplings, used at every step.

    Attributes:
        parameters: Qualified names of the parameters that carry energy.
        terms: One per parameter axis.
        sizes: Channels per coupling; the energies of all couplings are one vector of `sum(sizes)`.
    """

    parameters: tuple[str, ...]
    terms: tuple[Term, ...]
    sizes: tuple[int, ...]

    @staticmethod
    def of(couplings: Sequence[Coupling], sides: Sequence[Side]) -> Layout:
        """Work out the layout of `couplings` for some of the sides of each channel."""
        check_sides(sides)
        total = sum(coupling.num_channels for coupling in couplings)
        targets: dict[tuple[str, int], Tensor] = {}
        start = 0
        for coupling in couplings:
            for member in coupling.members:
                if member.counts and member.side in sides:
                    target = targets.setdefault(member.axis, torch.full_like(member.channels, total))
                    target[member.channels >= 0] = start + member.channels[member.channels >= 0]
            start += coupling.num_channels
        names = tuple(dict.fromkeys(name for name, _ in targets))
        terms = tuple(Term(names.index(name), dim, target) for (name, dim), target in targets.items())
        return Layout(names, terms, tuple(coupling.num_channels for coupling in couplings))

    def weights(self, model: nn.Module) -> list[Tensor]:
        """Return the parameters, looked up in `model` (so that a model on another device or of another dtype fits)."""
        try:
            return [model.get_parameter(name) for name in self.parameters]
        except AttributeError as error:
            raise ValueError(f"the couplings are not those of this {type(model).__name__}: {error}") from error

    def to(self, device: torch.device) -> Layout:
        """Return the layout with its index tensors on `device`."""
        terms = tuple(Term(t.weight, t.dim, t.channels.to(device)) for t in self.terms)
        return Layout(self.parameters, terms, self.sizes)


def check_sides(sides: Sequence[str]) -> None:
    """Raise ValueError unless `sides` is a non-empty selection of the three sides."""
    if isinstance(sides, str) or not sides or any(side not in SIDES for side in sides):
        raise ValueError(f"sides is {sides!r}; it must be a non-empty tuple of {', '.join(map(repr, SIDES))}")


def channel_energy(
    model: nn.Module, couplings: Sequence[Coupling], sides: Sequence[Side] = ("out", "in")
) -> list[Tensor]:
    r"""Return the energy of every channel: the summed square of the weights that belong to it.

    .. math:: E_i = \lVert W^l_{i,:} \rVert_2^2 + \lVert W^{l+1}_{:,i} \rVert_2^2

    for a plain pair of layers and both sides (Eq. 8 of Li et al. 2019, as reconstructed in PAPER.md). A depthwise or
    grouped filter counts on the out-side of the channel that it belongs to.

    Args:
        model: The network.
        couplings: Its couplings.
        sides: Which weights count: `"out"` (rows of the producing layers), `"in"` (columns of the reading layers),
            `"norm"` (scales of normalisation layers).

    Returns:
        One tensor `(num_channels,)` per coupling, differentiable with respect to the weights, with a backward of its
        own. Where no weight counts, the energy is zero.

    Raises:
        ValueError: A side is unknown, or the couplings are not the model's.
    """
    layout = Layout.of(couplings, sides)
    return list(energy_vector(model, layout).split(layout.sizes))


def energy_vector(model: nn.Module, layout: Layout) -> Tensor:
    """Return the energies of all channels of all couplings as one vector, `(channels,)`."""
    weights = layout.weights(model)
    if not weights:
        return torch.zeros(sum(layout.sizes))
    return _Energy.apply(layout.to(weights[0].device), *weights)  # type: ignore[no-any-return]


class _Energy(torch.autograd.Function):
    """Energies of all channels; the gradient of a weight is `2 w (g_out + g_in)`, one scale per slice and side."""

    @staticmethod
    def forward(ctx: Any, layout: Layout, *weights: Tensor) -> Tensor:
        ctx.layout = layout
        ctx.save_for_backward(*weights)
        energies = weights[0].new_zeros(sum(layout.sizes) + 1)
        squares: dict[int, Tensor] = {}
        for term in layout.terms:
            if term.weight not in squares:
                squares[term.weight] = weights[term.weight].detach().square()
            square = squares[term.weight]
            others = [axis for axis in range(square.ndim) if axis != term.dim]
            per_slice = square.sum(others) if others else square
            energies.index_add_(0, term.channels, per_slice.to(energies.dtype))
        return energies[:-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights = ctx.saved_tensors
        padded = torch.cat([2 * grad, grad.new_zeros(1)])  # the waste bin gives no gradient
        scales: list[Tensor | None] = [None] * len(weights)
        for term in ctx.layout.terms:
            shape = [1] * weights[term.weight].ndim
            shape[term.dim] = -1
            scale = padded[term.channels].reshape(shape)
            previous = scales[term.weight]
            scales[term.weight] = scale if previous is None else previous + scale
        grads = [None if s is None else (w * s).to(w.dtype) for w, s in zip(weights, scales, strict=True)]
        return (None, *grads)
