"""How strong a penalty should be, and how to see when training with it has done enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from oicsr.arguments import check_number, not_finite
from oicsr.coupling import Coupling, Side
from oicsr.energy import channel_energy
from oicsr.importance import out_in_energy
from oicsr.plan import PruningPlan, check_is_plan, check_plan_of

PULL = 2.0  # times the mean norm of a channel


@torch.no_grad()
def suggest_strength(
    model: nn.Module,
    couplings: Sequence[Coupling],
    *,
    learning_rate: float,
    steps: int,
    momentum: float = 0.0,
    sides: Sequence[Side] = ("out", "in"),
    pull: float = PULL,
) -> float:
    r"""Return a strength for `GroupLasso` that fits the length of a training with SGD.

    The gradient of the penalty has length `strength` in every channel, whatever the channel's norm. So a channel that
    the loss does not hold loses `strength * learning_rate` of its norm per step, or that over `1 - momentum` with
    momentum. The suggestion takes the total to `pull` times the mean norm :math:`\bar n` of all channels,

    .. math:: \lambda = \mathrm{pull} \cdot \bar n \cdot (1 - m) / (T \eta),

    which empties the channels that the loss lets go well before the end. It is a first value for a search: try half
    and double, and watch `weak_energy`. Adaptive optimisers scale gradients themselves, so that this does not apply.

    Args:
        model: The network before training with the penalty.
        couplings: Its couplings.
        learning_rate: The mean learning rate over the training: half the highest one for a cosine schedule.
        steps: Optimisation steps.
        momentum: The optimiser's momentum.
        sides: The sides of the penalty.
        pull: How many mean norms the penalty takes off a channel that nothing holds.

    Raises:
        ValueError: An argument is out of range, there are no couplings, or a weight is not finite.

    Example:
        >>> import torch, oicsr
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> couplings = oicsr.find_couplings(network, torch.zeros(1, 4))
        >>> strength = oicsr.suggest_strength(network, couplings, learning_rate=0.01, steps=1000, momentum=0.9)
        >>> penalty = oicsr.GroupLasso(couplings, strength=strength)
    """
    for name, value in {"learning_rate": learning_rate, "steps": steps, "pull": pull}.items():
        if not (check_number(name, value) > 0 and math.isfinite(value)):
            raise ValueError(f"{name} is {value!r}; it must be positive and finite")
    if not 0 <= check_number("momentum", momentum) < 1:
        raise ValueError(f"momentum is {momentum!r}; it must be in [0, 1)")
    if not couplings:
        raise ValueError("there are no couplings: nothing can be penalised")
    mean = float(torch.cat(channel_energy(model, couplings, sides)).sqrt().mean())
    if not math.isfinite(mean):
        raise ValueError(f"the mean norm of the channels is {mean}: {not_finite(model, couplings)}")
    return pull * mean * (1 - momentum) / (steps * learning_rate)


def weak_energy(
    model: nn.Module,
    couplings: Sequence[Coupling],
    share: float = 0.5,
    *,
    plan: PruningPlan | None = None,
    sides: Sequence[Side] = ("out", "in"),
) -> float:
    """Return how much of the energy the weakest channels hold: the less, the less their removal costs.

    Energies are taken relative to the mean of their coupling, so that layers count alike. For the weakest half, a
    network without regulariser has 0.3 to 0.5. Below 0.01, removing that half hardly changes the outputs, and the
    penalty has done its work; a value that no longer falls while the loss rises says that it has done too much. Call
    it once per epoch.

    Args:
        model: The network.
        couplings: Its couplings.
        share: Which share of all channels, the weakest ones, is asked about, in [0, 1].
        plan: Ask about the channels that this plan removes instead.
        sides: Which weights count.

    Returns:
        The share, in [0, 1]; NaN where a weight is not finite.

    Raises:
        ValueError: `share` is out of range, there are no couplings, or the plan does not name them or is one of others.
    """
    if not couplings:
        raise ValueError("there are no couplings: no channel holds energy")
    if not 0 <= check_number("share", share) <= 1:
        raise ValueError(f"share is {share!r}; it must be in [0, 1]")
    energies = out_in_energy(model, couplings, "layer_mean", sides=sides)
    if plan is None:
        every = torch.cat(energies).double()
        weak = every.sort().values[: round(share * len(every))].sum()
    else:
        check_is_plan(plan)
        missing = [c.name for c in couplings if c.name not in plan.kept]
        if missing:
            raise ValueError(f"the plan does not name the coupling {missing[0]!r}")
        check_plan_of(couplings, replace(plan, kept={c.name: plan.kept[c.name] for c in couplings}))
        every = torch.cat(energies).double()
        stays = [e.double()[list(plan.kept[c.name])].sum() for e, c in zip(energies, couplings, strict=True)]
        weak = every.sum() - torch.stack(stays).sum()
    total = float(every.sum())
    return float(weak) / total if total != 0 else 0.0  # a total of NaN is no reason to call channels weak
