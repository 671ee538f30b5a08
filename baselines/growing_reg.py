"""GReg-1: an L2 penalty on the filters to be removed that grows during training.

Wang et al., "Neural Pruning via Growing Regularization", ICLR 2021. Before training, the filters with the smallest L1
norm of each layer are chosen; while training, `grad += λ w` for these alone, and λ grows by δ every 10 iterations up
to a ceiling of 1, after which a stage of constant λ follows. That schedule takes as long as it needs; here every method
has the same number of steps, so λ grows by `strength` at every step (the authors' δ = 1e-4 every 10 iterations is a
strength of 1e-5) up to the same ceiling, and there is no separate stage. The authors set each layer's ratio by hand,
and remove the filters that they penalise; here those are the ones that the shared selection would remove at
the target, by the same L1 norm over its layer's mean. Without a target, the same share of each layer is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from baselines.channels import channel_sums, over_mean
from baselines.method import RegularizerSpec, Target, grid_around
from oicsr import Coupling
from oicsr.coupling import channel_mask
from oicsr.energy import add_energy_gradient, energy_vector
from oicsr.fast.layout import Layout
from oicsr.networks.state import trainable
from oicsr.penalties import check_penalised

CEILING = 1.0
Choose = Callable[[nn.Module, Sequence[Tensor]], list[Tensor]]  # L1 norms of filters to those that must go


class GrowingPenalty:
    """`(λ/2) Σ ||w||²` over the chosen filters; λ grows by `growth` at every step, up to 1.

    Args:
        couplings: The couplings of the model.
        growth: What `advance` adds to λ, not negative.
        share: The share of each coupling's channels that is chosen, rounded down, in [0, 1), where `choose` is None.
        choose: Says which filters must go, bool `(num_channels,)` per coupling, from the model and the L1 norm of each
            filter.

    Raises:
        ValueError: `growth` is negative or not finite, or `share` is out of range.
    """

    def __init__(
        self, couplings: Sequence[Coupling], growth: float, share: float = 0.5, choose: Choose | None = None
    ) -> None:
        check_penalised(couplings)
        if not math.isfinite(growth) or growth < 0:
            raise ValueError(f"growth is {growth!r}; it must be a finite number, 0 or more")
        if not 0 <= share < 1:
            raise ValueError(f"share is {share!r}; it must be in [0, 1)")
        self.growth = growth
        self.share = share
        self._choose_by = choose or self._smallest
        self._couplings = list(couplings)
        self.last_value: Tensor | None = None
        self._layout = Layout.of(couplings, ("out",))
        self._chosen = torch.zeros(sum(self._layout.sizes), dtype=torch.bool)
        self._steps = 0

    @property
    def strength(self) -> float:
        """The λ of the present step."""
        return min(self.growth * self._steps, CEILING)

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the penalty on the chosen filters of `model`, a scalar."""
        energies = energy_vector(model, self._layout)
        return self.strength / 2 * torch.where(self._chosen_on(energies.device), energies, 0).sum()

    @torch.no_grad()
    def add_gradient(self, model: nn.Module) -> None:
        """Add `λ w` to the gradients of the chosen filters."""
        energies = energy_vector(model, self._layout)
        by_energy = self.strength / 2 * self._chosen_on(energies.device).to(energies.dtype)
        add_energy_gradient(model, self._layout, by_energy)
        self.last_value = (by_energy * energies).sum()

    def _chosen_on(self, device: torch.device) -> Tensor:
        with trainable():  # it is kept for calls outside inference mode
            self._chosen = self._chosen.to(device)
        return self._chosen

    def advance(self, model: nn.Module) -> None:
        """Let λ grow by one step; the first one chooses the filters."""
        if self._steps == 0:
            self._chosen = self._choose(model)
        self._steps += 1

    @torch.no_grad()
    def _choose(self, model: nn.Module) -> Tensor:
        norms = channel_sums(model, self._couplings, ("out",), lambda name, weight: weight.abs())
        return torch.cat(self._choose_by(model, norms))

    def _smallest(self, model: nn.Module, norms: Sequence[Tensor]) -> list[Tensor]:
        """Choose the same share of every coupling."""
        chosen = [torch.zeros_like(norm, dtype=torch.bool) for norm in norms]
        for mask, norm in zip(chosen, norms, strict=True):
            mask[norm.argsort(stable=True)[: math.floor(self.share * len(norm))]] = True
        return chosen

    def state_dict(self) -> dict[str, Tensor]:
        """Return the steps taken and the filters chosen."""
        return {"steps": torch.tensor(self._steps), "chosen": self._chosen.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state that `state_dict` returned.

        Raises:
            ValueError: The state is for another number of channels.
        """
        if state["chosen"].shape != self._chosen.shape:
            raise ValueError(f"the state is for {len(state['chosen'])} channels; there are {len(self._chosen)}")
        self._steps = int(state["steps"])
        self._chosen = state["chosen"].clone()


def for_target(couplings: Sequence[Coupling], growth: float, target: Target) -> GrowingPenalty:
    """Build the penalty on the filters that the method's selection would remove at the target."""

    def choose(model: nn.Module, norms: Sequence[Tensor]) -> list[Tensor]:
        """Return which filters of each coupling the selection would remove."""
        kept = target.plan(model, over_mean(norms)).kept
        return [~channel_mask(coupling, kept).to(norm.device) for coupling, norm in zip(couplings, norms, strict=True)]

    return GrowingPenalty(couplings, growth, choose=choose)


GREG1 = RegularizerSpec(
    name="greg1",
    title="GReg-1",
    make=GrowingPenalty,
    make_for_target=for_target,
    formula="(λ_t/2) Σ ‖W^l_{i,:}‖₂² over the filters that the selection would remove at the target, by their initial "
    "‖W^l_{i,:}‖₁ divided by the layer's mean; λ_t = min(λ t, 1) at step t",
    source="Wang et al. 2021 (GReg-1), where λ_t grows by the strength at every step",
    compared="MingSun-Tse/Regularization-Pruning: pruner/reg_pruner.py, pruner/meta_pruner.py, README.md",
    differs="λ grows every 10 steps (ImageNet: 5) and stops once the kept filters of every layer are 1,000 times as "
    "large as the others; it then stays for 10,000 steps (ImageNet: 40,000), all at a learning rate of 0.001; exactly "
    "the penalised filters are removed",
    penalised="the chosen filters of prunable layers: convolutions (depthwise and grouped too) and linear layers",
    normalisation="that of the selection: each layer's share follows from the global ranking",
    sides=("out",),
    reach="some channels",
    degree=2,
    weight_decay_note="the experiment's own, on all weights (the authors': 5e-4)",
    grid=grid_around(1e-5),  # the authors': 1e-4 every 10 steps
)
