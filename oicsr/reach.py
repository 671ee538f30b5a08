"""What is within reach of selection, and what to change where a target is not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NoReturn

import torch
from torch import Tensor, nn

from oicsr.limits import DEFAULT_CAP, Limits
from oicsr.networks.inputs import ExampleInputs as Inputs
from oicsr.targets import Channels, Target
from oicsr.tracing.trace import trace_couplings


class OutOfReachError(ValueError):
    """The target is below what the network can be pruned to with these caps, scope and rounding."""


Retarget = Callable[[Channels], Target]


def least_cost(limits: Limits, scores: Sequence[Tensor], target: Target) -> float:
    """Return the cost when all channels that may go have gone."""
    return target.cost(limits.least(scores))


def widened(limits: Limits, scores: Sequence[Tensor], target: Target, tolerance: float) -> Limits:
    """Choose the caps that are left to the library: the default one, or the lowest above it that reaches the target."""
    limits_at_default = limits.with_automatic(DEFAULT_CAP)
    if not limits.automatic or reaches(limits_at_default, scores, target, tolerance):
        return limits_at_default
    cap = _lowest_cap(limits.with_automatic, DEFAULT_CAP, scores, target, tolerance)
    return limits_at_default if cap is None else limits.with_automatic(cap)


def reaches(limits: Limits, scores: Sequence[Tensor], target: Target, tolerance: float) -> bool:
    """Return whether the target is within reach."""
    return least_cost(limits, scores, target) <= (1 + tolerance) * target.wanted


def _lowest_cap(
    change: Callable[[float], Limits], above: float, scores: Sequence[Tensor], target: Target, tolerance: float
) -> float | None:
    """Return the lowest cap above `above`, in whole hundredths, with which the target is within reach, if any is."""
    low, high = math.floor(100 * above + 1e-9) + 1, 100
    if low > high or not reaches(change(1.0), scores, target, tolerance):
        return None
    while low < high:
        middle = (low + high) // 2
        if reaches(change(middle / 100), scores, target, tolerance):
            high = middle
        else:
            low = middle + 1
    return low / 100


def refuse_reach(
    limits: Limits,
    scores: Sequence[Tensor],
    target: Target,
    tolerance: float,
    model: nn.Module,
    example_inputs: Inputs,
    retarget: Retarget,
) -> NoReturn:
    """Raise OutOfReachError; say what is within reach, and what to change.

    Args:
        limits: The limits, all caps chosen.
        scores: One tensor per coupling.
        target: The target.
        tolerance: As a share of the target.
        model: The network.
        example_inputs: Inputs of one forward call.
        retarget: Returns the same target for other channels of the model.
    """
    least = least_cost(limits, scores, target)
    share = math.ceil(1e4 * least / (target.wanted / target.share)) / 1e4
    advice = [f"{target.argument}={share:.4f}"]
    lowest = min((cap for cap in limits.caps if cap is not None), default=0.0)
    cap = _lowest_cap(limits.raised, lowest, scores, target, tolerance)
    exact = replace(limits, rounding=(1,) * len(limits.rounding))
    if max(limits.rounding, default=1) > 1 and reaches(exact, scores, target, tolerance):
        advice.insert(0, "round_to=1")
    elif cap is not None:
        advice.insert(0, f"max_removed={cap:.2f}")
    elif not target.measured:
        advice[:0] = _advise_scope(limits, lowest, tolerance, model, example_inputs, retarget)
    raise OutOfReachError(
        f"the target of {amount(target.wanted)} {target.unit} is out of reach: with this cap, scope and rounding the "
        f"network can go from {amount(target.dense)} down to {amount(least)} {target.unit} "
        f"({least / target.dense:.4f} of them). What would be within reach: {', or '.join(advice)}."
    )


def _advise_scope(
    limits: Limits, cap: float, tolerance: float, model: nn.Module, example_inputs: Inputs, retarget: Retarget
) -> list[str]:
    """Return the advice to take the couplings of residual streams too, where that reaches the target."""
    try:
        couplings = trace_couplings(model, example_inputs, scope="all").couplings
    except ValueError:
        return []
    if sum(c.num_channels for c in couplings) <= sum(c.num_channels for c in limits.couplings):
        return []
    wider, scores = Limits.of(couplings, cap, 1, {}), [torch.zeros(c.num_channels, device="cpu") for c in couplings]
    target = retarget(Channels(couplings))
    if reaches(wider, scores, target, tolerance):
        return ['couplings found with scope="all"']
    needed = _lowest_cap(wider.raised, cap, scores, target, tolerance)
    return [] if needed is None else [f'couplings found with scope="all" and max_removed={needed:.2f}']


def refuse_distance(reached: float, target: Target, limits: Limits, tolerance: float, *, nearest: bool) -> NoReturn:
    """Raise ValueError: no cut is within the tolerance; say which one comes nearest."""
    share = reached / (target.wanted / target.share)
    needed = math.ceil(1e3 * abs(reached - target.wanted) / target.wanted) / 1e3
    rounded = max(limits.rounding, default=1) > 1
    what = "the nearest" if nearest else "the nearest that was found"
    raise ValueError(
        f"no cut comes within {tolerance:.3g} of {amount(target.wanted)} {target.unit}: {what} leaves "
        f"{amount(reached)} ({share:.4f} of {amount(target.wanted / target.share)}). Ask for "
        f"{target.argument}={share:.4f}{',' if rounded else ', or'} set tolerance={needed:.3f}"
        f"{', or lower round_to' if rounded else ''}."
    )


def amount(cost: float) -> str:
    """Return how a message writes a cost: whole numbers in full, others with four digits."""
    return f"{cost:,.0f}" if cost == int(cost) or cost >= 1e4 else f"{cost:.4g}"
