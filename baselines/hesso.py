"""HESSO: channels that are found redundant shrink to zero in a straight line while the network trains.

Chen et al., "HESSO: Towards Automatic Efficient and User Friendly Any Neural Network Training and Pruning", 2024, and
the authors' library only_train_once. At the start the groups are scored by five criteria, each divided by its Euclidean
norm over all groups, and averaged:

    ||x||,  ||x|| / size,  1 + cos(x, ∇),  |⟨x, ∇⟩|,  ⟨x, ∇⟩² / 2,

∇ being the gradient of the loss. The lowest-scoring are redundant; after step t of K (from 0) they are multiplied by
(K - t - 1) / (K - t), and are zero from step K on. Groups are zero-invariant: the filter of a channel with the scale
and the shift of its BatchNorm. There is no strength.

The authors give a share of groups; here the redundant ones are those that the method's selection would remove at the
target. K is half of the training, so that the rest adapts; ∇ is that of one mini-batch, without momentum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from baselines.channels import channel_sums, scale_channels
from baselines.half_space import GROUP
from baselines.method import RegularizerSpec, Target
from oicsr import Coupling
from oicsr.coupling import channel_mask
from oicsr.networks.wrapping import unwrap
from oicsr.penalties import check_penalised

SMALL = 1e-8  # as in the source


class Hesso:
    """The progressive shrinkage of the channels that a target asks to remove.

    Args:
        couplings: The couplings of the model.
        target: What will be removed.
    """

    def __init__(self, couplings: Sequence[Coupling], target: Target) -> None:
        check_penalised(couplings)
        self._couplings = list(couplings)
        self._target = target
        self._length = max(1, target.steps // 2)
        self._redundant: list[Tensor] = []
        self._steps = 0

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the summed norm of the redundant channels, a scalar, for monitoring; 0 before they are chosen."""
        if not self._redundant:
            return torch.zeros(())
        squares = channel_sums(model, self._couplings, GROUP, lambda name, weight: weight.detach().square())
        norms = [square.sqrt()[mask].sum() for square, mask in zip(squares, self._redundant, strict=True)]
        return sum(norms, start=torch.zeros(()))

    def advance(self, model: nn.Module) -> None:
        """Advance by one step."""
        self._steps += 1

    @torch.no_grad()
    def proximal_step(self, model: nn.Module, learning_rate: float | Tensor) -> None:
        """Shrink the redundant channels by one step; the first step chooses them by the gradients that are there."""
        if not self._redundant:
            kept = self._target.plan(model, saliency(model, self._couplings)).kept
            self._redundant = [~channel_mask(coupling, kept) for coupling in self._couplings]
        left = max(0, self._length - self._steps + 1)  # K - t
        factor = (left - 1) / left if left else 0.0
        for coupling, mask in zip(self._couplings, self._redundant, strict=True):
            factors = torch.where(mask, factor, 1.0)
            weight = next(model.parameters())
            scale_channels(model, coupling, GROUP, factors.to(weight.device, weight.dtype))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the steps taken and the redundant channels (empty before they are chosen)."""
        masks = self._redundant
        return {
            "steps": torch.tensor(self._steps),
            "redundant": torch.cat(masks) if masks else torch.zeros(0, dtype=torch.bool),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state that `state_dict` returned.

        Raises:
            ValueError: The state is for another number of channels.
        """
        self._steps = int(state["steps"])
        sizes = [coupling.num_channels for coupling in self._couplings]
        if len(state["redundant"]) not in (0, sum(sizes)):
            raise ValueError(f"the state is for {len(state['redundant'])} channels; there are {sum(sizes)}")
        self._redundant = list(state["redundant"].cpu().split(sizes)) if len(state["redundant"]) else []


@torch.no_grad()
def saliency(model: nn.Module, couplings: Sequence[Coupling]) -> list[Tensor]:
    """Return the mean of the five criteria, `(num_channels,)` per coupling; missing gradients count as zero."""
    model = unwrap(model)
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    sums = [
        torch.cat(channel_sums(model, couplings, GROUP, value))
        for value in (
            lambda name, weight: weight.square(),
            lambda name, weight: gradients[name].square(),
            lambda name, weight: weight * gradients[name],
            lambda name, weight: torch.ones_like(weight),
        )
    ]
    norm, gradient, product, size = sums[0].sqrt(), sums[1].sqrt(), sums[2], sums[3]
    cosine = product / (norm + SMALL) / (gradient + SMALL) + 1
    criteria = [norm, norm / size.clamp(min=1), cosine, product.abs(), product.square() / 2]
    mean = sum((value / (value.norm() + SMALL) for value in criteria), start=torch.zeros_like(norm)) / len(criteria)
    return list(mean.split([coupling.num_channels for coupling in couplings]))


def without_target(couplings: Sequence[Coupling], strength: float) -> Hesso:
    """Refuse: which channels are redundant follows from the target."""
    raise ValueError("hesso needs a target: build it with RegularizerSpec.build(couplings, strength, target)")


def for_target(couplings: Sequence[Coupling], strength: float, target: Target) -> Hesso:
    """Build the shrinkage towards a target."""
    return Hesso(couplings, target)


HESSO = RegularizerSpec(
    name="hesso",
    title="HESSO",
    make=without_target,
    make_for_target=for_target,
    formula="g ← (K − t − 1)/(K − t) g after step t < K, 0 afterwards, for the channels that the selection would "
    "remove at the target; K is half of the training; g = W^l_{i,:} ⊕ γ_i ⊕ β_i",
    source="Chen et al. 2024 (HESSO), its five criteria on the first mini-batch",
    compared="tianyic/only_train_once: optimizer/hesso.py, optimizer/importance_score/",
    differs="the criteria count shifts and biases too, and their gradient holds the weight decay; a share of all "
    "groups goes, over steps and periods that the user sets",
    penalised="filters, scales, shifts and biases of the redundant channels",
    normalisation="each criterion is divided by its Euclidean norm over all channels",
    has_strength=False,
    sides=GROUP,
    reach="some channels",
)
