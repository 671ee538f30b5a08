r"""GrOWL, the ordered weighted group norm, over any sides of a channel.

Zhang et al., "Learning to Share: Simultaneous Parameter Tying and Sparsification in Deep Learning", ICLR 2018:

.. math:: G(W) = \sum_i \theta_i \lVert w_{[i]} \rVert_2, \quad
          \lVert w_{[1]} \rVert \ge \lVert w_{[2]} \rVert \ge \dots, \quad \theta_1 \ge \theta_2 \ge \dots \ge 0,

with one sum per layer: the larger a channel's norm among its layer's, the larger the weight it gets, so that large
channels are drawn to a common norm and small ones to zero. The authors' groups are in-channels (`sides=("in",)`); with
`sides=("out", "in")` it is OICSR-GrOWL. Equal weights give Group Lasso.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from oicsr.arguments import check_choice, check_learning_rate
from oicsr.coupling import Coupling, Side
from oicsr.energy import add_energy_gradient, energy_vector
from oicsr.fast import passes
from oicsr.fast.eager import eager
from oicsr.fast.layout import Layout, check_sides
from oicsr.networks.state import indices_on_cpu, trainable
from oicsr.penalties import (
    DEFAULT_STRENGTH,
    OfPenalty,
    check_penalised,
    check_strength,
    describe_penalty,
    safe_sqrt,
)
from oicsr.proximal import warn_of_rounding

SLOPE = 1 / 70  # λ2 / λ1: the authors' VGG-16 has λ2 = 0.1 and λ1 from 3.5 to 11, with 7 in the middle
TRANSITION = 0.1  # the share of channels whose weights fall, as the authors set it for VGG-16


def pld_weights(channels: int, slope: float = SLOPE, transition: float = TRANSITION) -> Tensor:
    """Return the PLD sequence over λ1: it falls linearly over the first channels, and is level from there on.

    `θ_i / λ1 = 1 + slope (p - i)` for `i = 1..p`, `p = floor(transition n)`, and 1 for the others; with p below 2 this
    is Group Lasso.

    Args:
        channels: n.
        slope: λ2 / λ1.
        transition: p / n.
    """
    falling = math.floor(channels * transition)
    return 1 + slope * (falling - torch.arange(1, channels + 1, dtype=torch.float64)).clamp(min=0)


def oscar_weights(channels: int, slope: float = SLOPE) -> Tensor:
    """Return the OSCAR sequence over λ1: `θ_i / λ1 = 1 + slope (n - i)`, falling over all n channels."""
    return 1 + slope * (channels - torch.arange(1, channels + 1, dtype=torch.float64))


def equal_weights(channels: int) -> Tensor:
    """Return ones: Group Lasso."""
    return torch.ones(channels, dtype=torch.float64)


SEQUENCES: dict[str, Callable[[int], Tensor]] = {
    "pld": pld_weights,
    "oscar": oscar_weights,
    "equal": equal_weights,
}


def decreasing_fit(values: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
    """Return, row by row, the nearest sequence that never rises (isotonic regression by pooling adjacent violators).

    One pass over the values on the host, each pooled once at most: to pool all rises of a round side by side takes a
    round per channel where one block takes up its neighbours in turn, as channels do whose norms GrOWL has tied.

    Args:
        values: `(rows, length)`.
        lengths: How many values of each row to fit, the others are returned as they are; by default all.
    """
    fitted = values.clone()
    for row, length in zip(fitted, lengths or [values.shape[1]] * len(fitted), strict=True):
        totals: list[float] = []
        counts: list[int] = []
        for value in row[:length].tolist():
            total, count = value, 1
            while totals and totals[-1] * count < total * counts[-1]:  # the block before has a smaller mean
                total, count = total + totals.pop(), count + counts.pop()
            totals.append(total)
            counts.append(count)
        row[:length] = values.new_tensor([t / c for t, c in zip(totals, counts, strict=True) for _ in range(c)])
    return fitted


def owl_proximal(norms: Tensor, weights: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
    """Return the proximal point of the ordered weighted L1 norm, row by row, exactly.

    Sort, subtract the weights, fit the nearest sequence that never rises, cut at zero, and put back in place
    (Bogdan et al. 2015, SLOPE).

    Args:
        norms: `(rows, length)`, not negative.
        weights: `(rows, length)`, not negative and never rising along a row; times the step size.
        lengths: How many norms of each row there are, where zeros with weights of zero fill it up; by default all.
    """
    ordered, order = norms.sort(dim=1, descending=True, stable=True)
    shrunk = decreasing_fit(ordered - weights, lengths).clamp(min=0)
    return torch.empty_like(norms).scatter_(1, order, shrunk)


class GrOWL:
    r"""GrOWL over channels, as a penalty to be added to the loss (its sub-gradient does the rest).

    .. math:: \lambda \sum_l \sum_i \theta_i \lVert w_{[i]} \rVert_2, \quad
              \lVert w_{[1]} \rVert \ge \lVert w_{[2]} \rVert \ge \dots

    over the channels of each coupling l (Zhang et al., "Learning to Share", ICLR 2018): the larger a channel's norm
    among those of its coupling, the larger its weight θ. `"pld"` falls linearly over the first tenth of the channels
    and is 1 from there on, `"oscar"` falls linearly over all of them, and `"equal"` is Group Lasso.

    Args:
        couplings: The couplings of the model.
        sides: Which weights of a channel are in its group: `("in",)` as the authors have it, `("out", "in")` for
            OICSR-GrOWL.
        strength: λ, not negative (the authors' λ1).
        weights: The sequence of θ: `"pld"`, `"oscar"` or `"equal"`.

    Raises:
        ValueError: `strength` is negative or not finite, or a side or the sequence is unknown.
    """

    def __init__(
        self,
        couplings: Sequence[Coupling],
        sides: Sequence[Side] = ("out", "in"),
        strength: float = DEFAULT_STRENGTH,
        *,
        weights: str = "pld",
    ) -> None:
        check_penalised(couplings)
        check_choice("weights", weights, tuple(SEQUENCES))
        self.strength = check_strength(strength)
        self.last_value: Tensor | None = None
        self.sides = check_sides(sides)
        self._layout = Layout.of(couplings, self.sides)
        self._ordered = _Ordered(self._layout.sizes, weights)

    def __repr__(self) -> str:
        return describe_penalty(self, self.sides, self.strength, self._layout)

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the penalty on the weights of `model`, a scalar."""
        norms, sequence = self._ordered.rows(safe_sqrt(energy_vector(model, self._layout)))
        value: Tensor = (sequence * norms.sort(dim=1, descending=True, stable=True).values).sum()
        return self.strength * value

    @torch.no_grad()
    @eager
    def add_gradient(self, model: nn.Module) -> None:
        """Add the sub-gradient `λ θ_i w / ||w_[i]||` to `.grad`, zero for a channel of zeros, without autograd."""
        norms = energy_vector(model, self._layout).sqrt()
        rows, sequence = self._ordered.rows(norms)
        order = rows.sort(dim=1, descending=True, stable=True).indices
        weights = self._ordered.vector(torch.empty_like(rows).scatter_(1, order, sequence))
        add_energy_gradient(model, self._layout, torch.where(norms > 0, 0.5 * self.strength * weights / norms, 0.0))
        self.last_value = self.strength * (weights * norms).sum()


class ProximalGrOWL(OfPenalty):
    """GrOWL by its proximal operator, as its authors train: exact for one side, where groups are disjoint.

    Where the groups of consecutive couplings overlap, all factors are computed from the weights before the step and a
    weight in two groups takes both, with the properties that `ProximalGroupLasso` lists. Arguments and errors are
    those of `GrOWL`.
    """

    def __init__(
        self,
        couplings: Sequence[Coupling],
        sides: Sequence[Side] = ("out", "in"),
        strength: float = DEFAULT_STRENGTH,
        *,
        weights: str = "pld",
    ) -> None:
        self._penalty = GrOWL(couplings, sides, strength, weights=weights)
        self.sides = self._penalty.sides
        self._layout, self._ordered = self._penalty._layout, self._penalty._ordered

    def __repr__(self) -> str:
        return describe_penalty(self, self.sides, self.strength, self._layout)

    @torch.no_grad()
    @eager
    def proximal_step(self, model: nn.Module, learning_rate: float | Tensor) -> None:
        """Shrink every channel of `model`, in place; frozen weights count in the norms and are left as they are.

        Args:
            model: The network, after the optimiser's step.
            learning_rate: The learning rate of that step, not negative; a number or a scalar tensor.

        Raises:
            TypeError: `learning_rate` is not a number.
            ValueError: It is negative or not finite.
        """
        step = self.strength * check_learning_rate(learning_rate)
        parameters = self._layout.weights(model)
        if not parameters:
            return
        warn_of_rounding(parameters)
        norms = energy_vector(model, self._layout).sqrt()
        rows, sequence = self._ordered.rows(norms)
        shrunk = self._ordered.vector(owl_proximal(rows, step * sequence, self._layout.sizes))
        factors = torch.where(norms > 0, shrunk / norms, 0.0).nan_to_num(nan=1.0)  # norms that overflow stay
        weights = [parameter.detach() for parameter in parameters]
        passes.scale_(weights, [p.requires_grad for p in parameters], self._layout.table(weights), factors)


class _Ordered:
    """The channels of each coupling as a row of a matrix, beside the sequence of weights.

    A place beyond a coupling's width holds a norm of zero with a weight of zero, which changes neither the value nor
    the proximal point of the others.
    """

    @trainable()
    def __init__(self, sizes: Sequence[int], weights: str) -> None:
        self._total = sum(sizes)
        widest = max(sizes, default=0)
        with indices_on_cpu():
            self._positions = torch.full((len(sizes), widest), self._total)
            self._sequence = torch.zeros(len(sizes), widest, dtype=torch.float64)
            for row, positions in enumerate(torch.arange(self._total).split(list(sizes))):
                self._positions[row, : len(positions)] = positions
                self._sequence[row, : len(positions)] = SEQUENCES[weights](len(positions))

    def rows(self, norms: Tensor) -> tuple[Tensor, Tensor]:
        """Return norms and weights, each `(couplings, widest)`."""
        if self._positions.device != norms.device or self._sequence.dtype != norms.dtype:
            with trainable():  # they are kept for calls outside inference mode
                self._positions = self._positions.to(norms.device)
                self._sequence = self._sequence.to(norms.device, norms.dtype)
        return torch.cat([norms, norms.new_zeros(1)])[self._positions], self._sequence

    def vector(self, rows: Tensor) -> Tensor:
        """Return `(channels of all couplings,)` from the matrix."""
        padded = rows.new_zeros(self._total + 1)
        padded[self._positions] = rows
        return padded[:-1]
