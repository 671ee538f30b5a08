"""Group Lasso by its proximal operator: channels become exactly zero while training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from oicsr.arguments import check_learning_rate
from oicsr.coupling import Coupling, Side
from oicsr.energy import energy_vector
from oicsr.fast import passes
from oicsr.fast.eager import eager
from oicsr.fast.layout import Layout, check_sides
from oicsr.networks.warned import warn
from oicsr.penalties import DEFAULT_STRENGTH, check_penalised, check_strength, describe_penalty, group_layout, norm_sum


class ProximalGroupLasso:
    r"""Group Lasso whose groups are soft-thresholded after each step of the optimiser.

    With t = learning rate · λ, and the norm of every group taken before the step, a weight is multiplied by the factor

    .. math:: f_g = \max(0, 1 - t / \lVert w_g \rVert_2)

    of each group that it belongs to (block soft-thresholding: Yuan and Lin 2006, Parikh and Boyd 2014, section 6.5.1).

    **Disjoint groups** (`scope="inner"` in a ResNet of basic blocks, or one side alone): this is the proximal operator
    of t times the penalty, exactly.

    **Overlapping groups** (chains such as VGG, bottlenecks, residual streams): a weight that is a row of one group and
    a column of another is multiplied by both factors. The proximal operator of the sum has no closed form there; this
    is an approximation of it, with these properties and no others:

    - a group whose norm is t or less becomes exactly zero, and the norm of any other falls by at least t, so that the
      penalty falls with every step until all groups are zero, and no weight changes its sign;
    - to first order in t it is the step of the gradient, :math:`w - t w (1 / \lVert g_{out} \rVert + 1 / \lVert g_{in}
      \rVert)`: it differs from the proximal operator by terms of order :math:`t^2`, and shrinks weights in two groups
      by no less than either group alone would;
    - a fixed point of training with it solves the penalised problem exactly where groups are disjoint, and up to terms
      of the order of the learning rate where they overlap.

    Both need weights in float32 or float64, as mixed precision has them: in half precision a step that is short beside
    the norm is rounded away, which a warning says.

    The step fits plain gradient descent. With momentum or an adaptive optimiser it is the usual heuristic: the same
    threshold for every weight, whatever the optimiser's own scaling.

    Args:
        couplings: The couplings of the model that will be penalised (after surgery: `shrink_couplings`).
        sides: Which weights of a channel are in its group.
        strength: λ, not negative.
        joint: Whether the sides of a channel form one group, or one each.

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
        self._layout = group_layout(couplings, self.sides, joint=joint)

    def __repr__(self) -> str:
        return describe_penalty(self, self.sides, self.strength, self._layout)

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the penalty on the weights of `model`, a scalar: to be watched, not to be added to the loss."""
        return self.strength * norm_sum(model, self._layout)

    @torch.no_grad()
    @eager
    def proximal_step(self, model: nn.Module, learning_rate: float | Tensor) -> None:
        """Soft-threshold every group, in place; frozen weights count in the norms and are left as they are.

        Args:
            model: The network, after the optimiser's step.
            learning_rate: The learning rate of that step, not negative; a tensor on the model's device (as capturable
                optimisers have it) is not read on the host.

        Raises:
            TypeError: `learning_rate` is not a number.
            ValueError: It is negative or not finite.
        """
        step = self.strength * check_learning_rate(learning_rate)
        warn_of_rounding(self._layout.weights(model))
        shrink_groups_(model, self._layout, step)


def warn_of_rounding(weights: Iterable[Tensor]) -> None:
    """Warn where weights are of half precision, which rounds short steps away: their norms would never fall."""
    half = next((weight.dtype for weight in weights if weight.dtype in (torch.float16, torch.bfloat16)), None)
    if half is not None:
        warn(
            f"weights are {half}, where a proximal step of less than {torch.finfo(half).eps / 2:.0e} of a group's norm "
            "changes nothing: keep the weights in float32 and compute under torch.autocast",
            UserWarning,
        )


@torch.no_grad()
@eager
def shrink_groups_(model: nn.Module, layout: Layout, threshold: float | Tensor) -> None:
    """Soft-threshold every group in place: a norm of n becomes `max(0, n - threshold)`.

    Args:
        model: The network; frozen weights count in the norms and are left as they are.
        layout: Which weights form a group; a weight in two groups takes the factors of both.
        threshold: One number for all, or one per group, `(channels of the layout,)`.

    Raises:
        ValueError: The layout is not the model's.
    """
    parameters = layout.weights(model)
    if not parameters:
        return
    norms = energy_vector(model, layout).sqrt()
    if isinstance(threshold, Tensor) and threshold.ndim:
        threshold = threshold.to(norms.device, norms.dtype)
    factors = torch.where(norms > threshold, 1 - norms.reciprocal() * threshold, 0.0)  # a number or a tensor alike
    weights = [parameter.detach() for parameter in parameters]
    passes.scale_(weights, [p.requires_grad for p in parameters], layout.table(weights), factors)
