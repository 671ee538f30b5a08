r"""The energy of every channel and the gradient that follows from it: the formulas, one axis of one weight at a time.

A slice of a weight along an axis (a row of a convolution, a column, a scale of BatchNorm) belongs to one channel. With
`c(s)` the channel of slice `s`,

.. math:: E_c = \sum_{s : c(s) = c} \lVert w_s \rVert_2^2, \qquad
    \frac{\partial P}{\partial w} = 2 w \sum_{s \ni w} \frac{\partial P}{\partial E_{c(s)}},

where a weight lies in one slice per axis that carries energy. `oicsr.fast` computes the same numbers in one pass over
memory; its tests compare it with this module, and weights of an unusual kind are left to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DOUBLE = (torch.float64, torch.complex128)


@dataclass(frozen=True, eq=False)
class Term:
    """The slices of one parameter along one axis, and the channel of each.

    Attributes:
        weight: Position in the list of weights.
        dim: The axis.
        channels: int64, `(size of the axis,)`: the position of each slice's channel in the vector of all channels. The
            position after the last channel is a waste bin, for slices that belong to none.
    """

    weight: int
    dim: int
    channels: Tensor


def energy_type(weights: Sequence[Tensor]) -> torch.dtype:
    """Return the type of energies: float64 where a weight is of that precision, float32 where none is."""
    return torch.float64 if any(weight.dtype in DOUBLE for weight in weights) else torch.float32


def slice_energies(weight: Tensor, dim: int) -> Tensor:
    """Return the energy of each slice of a weight along an axis, `(size of the axis,)`, in at least float32."""
    real = weight.abs() if weight.is_complex() else weight
    squares = real.to(energy_type([weight])).square()
    others = [axis for axis in range(weight.ndim) if axis != dim]
    return squares.sum(others) if others else squares


def along_axis(factors: Tensor, dim: int, ndim: int) -> Tensor:
    """Return factors `(size of the axis,)` in a shape that broadcasts along axis `dim` of a weight of `ndim` axes."""
    shape = [1] * ndim
    shape[dim] = -1
    return factors.reshape(shape)


def energies(weights: Sequence[Tensor], terms: Sequence[Term], channels: int) -> Tensor:
    """Return the energy of every channel, `(channels,)`."""
    exact = energy_type(weights)
    total = torch.zeros(channels + 1, dtype=exact, device=weights[0].device if weights else None)
    for term in terms:
        slices = slice_energies(weights[term.weight], term.dim).to(exact)
        total = total.index_add(0, term.channels.to(total.device), slices)
    return total[:-1]


def products(weights: Sequence[Tensor], terms: Sequence[Term], factors: Tensor) -> list[Tensor]:
    """Return each weight times the sum of its slices' factors; for factors `2 dP/dE` that is the gradient.

    Args:
        weights: The weights.
        terms: Their axes that carry energy.
        factors: `(channels,)`.
    """
    padded = torch.cat([factors, factors.new_zeros(1)])
    scales = [torch.zeros_like(weight, dtype=factors.dtype) for weight in weights]
    for term in terms:
        factor = padded[term.channels.to(padded.device)]
        scales[term.weight] += along_axis(factor, term.dim, weights[term.weight].ndim)
    return [(weight * scale).to(weight.dtype) for weight, scale in zip(weights, scales, strict=True)]


def scaled(weights: Sequence[Tensor], terms: Sequence[Term], factors: Tensor) -> list[Tensor]:
    """Return each weight times the product of its slices' factors, as a proximal step shrinks it."""
    padded = torch.cat([factors, factors.new_ones(1)])
    results = [weight.clone() for weight in weights]
    for term in terms:
        factor = padded[term.channels.to(padded.device)]
        results[term.weight] *= along_axis(factor, term.dim, weights[term.weight].ndim)
    return results
