"""OTO's half-space step: channels that a step would turn by about a right angle or more are set to zero.

Chen et al., "Only Train Once: A One-Shot Neural Network Training And Pruning Framework", NeurIPS 2021. Groups are
zero-invariant: the filter of a channel with the scale and the shift of its BatchNorm, so that a group of zeros gives
zeros. HSPG minimises the loss plus `λ Σ_g ||x_g||` in two stages. The first is ordinary sub-gradient descent. In the
second, with x before and y after such a step, every group with

    <y_g, x_g> < ε ||x_g||²

is set to zero, and stays so: the half-space of a group holds the directions close to the one it had.

Here the optimiser's own step comes first, and the sub-gradient of the penalty is subtracted from its result, so that
momentum does not build up from it (it does in the source). The second stage begins at half of the training where its
length is known. Shifts and biases follow their channel to zero, but count neither in the norms nor in the products.
The source bounds the share of groups that are zero; here it is the share of each coupling, so that no layer is emptied,
and the groups that turn most go first. ε is 0, its smallest value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from baselines.channels import channel_sums, counted, per_slice, scale_channels
from baselines.method import PROXIMAL_STRENGTH, RegularizerSpec, Target, grid_around
from oicsr import Coupling, group_lasso
from oicsr.arguments import check_learning_rate
from oicsr.coupling import Side
from oicsr.energy import energy_vector
from oicsr.fast.layout import Layout
from oicsr.networks.wrapping import unwrap
from oicsr.penalties import check_penalised, check_strength

GROUP: tuple[Side, ...] = ("out", "norm")
MOST = 0.9  # of a coupling's channels


class HalfSpace:
    """Group Lasso over zero-invariant groups by sub-gradient, with projections on zero.

    Args:
        couplings: The couplings of the model.
        strength: λ, not negative.
        epsilon: ε, in [0, 1): the larger, the more groups become zero.
        start: Steps before the first projection.

    Raises:
        ValueError: `strength` is negative or not finite, or `epsilon` is out of range.
    """

    def __init__(self, couplings: Sequence[Coupling], strength: float, *, epsilon: float = 0.0, start: int = 0) -> None:
        check_penalised(couplings)
        if not 0 <= epsilon < 1:
            raise ValueError(f"epsilon is {epsilon!r}; it must be in [0, 1)")
        self.strength = check_strength(strength)
        self.epsilon, self.start = epsilon, start
        self._couplings = list(couplings)
        self._layout = Layout.of(couplings, GROUP)
        self._before: dict[str, Tensor] = {}
        self._steps = 0

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the penalty on the weights of `model`, a scalar."""
        return self.strength * group_lasso([energy_vector(model, self._layout)])

    @torch.no_grad()
    def advance(self, model: nn.Module) -> None:
        """Remember the weights before a step."""
        names = {m.parameter for c in self._couplings for m in counted(c, GROUP)}
        model = unwrap(model)
        self._before = {name: model.get_parameter(name).detach().clone() for name in names}
        self._steps += 1

    @torch.no_grad()
    def proximal_step(self, model: nn.Module, learning_rate: float | Tensor) -> None:
        """Subtract the penalty's sub-gradient at the weights before the step, and project groups that turned on zero.

        Args:
            model: The network, after the optimiser's step; `advance` saw it before.
            learning_rate: The learning rate of that step, not negative; a number or a scalar tensor.

        Raises:
            TypeError: `learning_rate` is not a number.
            ValueError: It is negative or not finite, or `advance` was not called before.
        """
        model, step = unwrap(model), self.strength * check_learning_rate(learning_rate)
        if self._couplings and not self._before:
            raise ValueError("the weights before the step are not known; call advance(model) before each step")
        squares = channel_sums(model, self._couplings, GROUP, lambda name, weight: self._before[name].square())
        for coupling, square in zip(self._couplings, squares, strict=True):
            pull = step * torch.where(square > 0, square.rsqrt(), 0)
            for member in counted(coupling, GROUP):
                weight = model.get_parameter(member.parameter)
                if weight.requires_grad:
                    weight.sub_(per_slice(member, pull, weight) * self._before[member.parameter])
        if self._steps > self.start:
            self._project(model, squares)

    def _project(self, model: nn.Module, squares: Sequence[Tensor]) -> None:
        products = channel_sums(model, self._couplings, GROUP, lambda name, weight: weight * self._before[name])
        for coupling, product, square in zip(self._couplings, products, squares, strict=True):
            cosine = product / torch.where(square > 0, square, 1) - self.epsilon  # with ε, and over ‖x‖²
            cosine = torch.where(square > 0, cosine, -torch.inf)  # what is zero stays so
            order = cosine.argsort(stable=True)[: int(MOST * len(cosine))]
            gone = torch.zeros_like(cosine, dtype=torch.bool)
            gone[order] = cosine[order] < 0
            scale_channels(model, coupling, GROUP, torch.where(gone, 0.0, 1.0).to(square.dtype))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the steps taken; the weights before a step are stored again at each."""
        return {"steps": torch.tensor(self._steps)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state that `state_dict` returned."""
        self._steps = int(state["steps"])


def for_target(couplings: Sequence[Coupling], strength: float, target: Target) -> HalfSpace:
    """Build the method with projections in the second half of training."""
    return HalfSpace(couplings, strength, start=target.steps // 2)


HALF_SPACE = RegularizerSpec(
    name="half-space",
    title="OTO (HSPG)",
    make=HalfSpace,
    make_for_target=for_target,
    formula="y ← y − ηλ x_g/‖x_g‖₂ after each step from x to y; in the second half of training also g ← 0 where "
    "⟨y_g, x_g⟩ < ε ‖x_g‖₂², ε = 0; g = W^l_{i,:} ⊕ γ_i, β_i is set to zero with g",
    source="Chen et al. 2021 (OTO), HSPG; the penalty does not enter the momentum",
    compared="tianyic/only_train_once, first version: the optimizer HSPG",
    differs="the shift is part of the group; the penalty enters the momentum; one bound limits how many groups become "
    "zero, and chance decides beyond it (here it is 90 % of each coupling, and those that turn most go first)",
    weight_decay_note="the experiment's own (the authors': none)",
    penalised="filters and scales of prunable channels as one group; shifts and biases are set to zero with it",
    normalisation="none",
    sides=GROUP,
    grid=grid_around(PROXIMAL_STRENGTH),
)
