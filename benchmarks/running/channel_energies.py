"""How energy is distributed over the channels of a network before any is removed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.records.rows import CURVE_POINTS, ChannelRow
from oicsr import Coupling, PruningPlan, channel_energy

NEAR_ZERO = 1e-3  # of the norm of the coupling's largest channel


@torch.no_grad()
def describe_structure(model: nn.Module, couplings: Sequence[Coupling]) -> dict[str, Any]:
    """Describe how concentrated the out-in energies are.

    Returns:
        `near_zero`: share of the channels whose norm is below a thousandth of their coupling's largest.
        `cumulative`: share of the energy in the strongest channels of each coupling, at equally spaced shares of its
        channels from 0 to 1, averaged over the couplings.
        `concentration`: twice the area of that curve above the diagonal (a Gini coefficient): 0 if all channels
        are equal, close to 1 if a few hold everything.
    """
    energies = [energy.double().cpu() for energy in channel_energy(model, couplings)]
    near_zero = torch.cat([energy < NEAR_ZERO**2 * energy.max() for energy in energies])
    curve = torch.stack([_cumulative(energy) for energy in energies]).mean(0)
    area = float(torch.trapezoid(curve, torch.linspace(0, 1, CURVE_POINTS, dtype=curve.dtype)))
    return {
        "channels": len(near_zero),
        "near_zero": round(float(near_zero.double().mean()), 6),
        "concentration": round(2 * area - 1, 6),
        "cumulative": [round(value, 5) for value in curve.tolist()],
    }


def _cumulative(energy: Tensor) -> Tensor:
    """Return the share of the energy in the strongest channels, `(CURVE_POINTS,)`."""
    ordered = energy.sort(descending=True).values.cumsum(0)
    total = ordered[-1] if ordered[-1] > 0 else torch.ones(())
    shares = torch.cat([ordered.new_zeros(1), ordered / total])
    position = torch.linspace(0, len(energy), CURVE_POINTS, dtype=torch.float64)
    low = position.floor().long().clamp(max=len(energy) - 1)
    return shares[low] + (position - low) * (shares[low + 1] - shares[low])


@torch.no_grad()
def imbalance(model: nn.Module, couplings: Sequence[Coupling], plan: PruningPlan) -> dict[str, float]:
    """Return how far apart the scales and the columns of the channels that stay are (A10 in docs/anatomy.md).

    Args:
        model: Before the removal.
        couplings: Its couplings.
        plan: What stays.

    Returns:
        `imbalance`: the mean of |ln(s/c)| over all remaining channels, s = |γ| of the normalisation in front of the
        next layer and c = the norm of the columns that read the channel; 0 where both are equal. Nothing where no
        channel has both.
    """
    scales, columns = (channel_energy(model, couplings, (side,)) for side in ("norm", "in"))
    logs = []
    for coupling, scale, column in zip(couplings, scales, columns, strict=True):
        kept = list(plan.kept.get(coupling.name, range(coupling.num_channels)))
        ratio = scale.double().cpu()[kept] / column.double().cpu()[kept]
        logs += [0.5 * abs(math.log(value)) for value in ratio.tolist() if 0 < value < math.inf]
    return {"imbalance": round(sum(logs) / len(logs), 6)} if logs else {}


@torch.no_grad()
def channel_rows(model: nn.Module, couplings: Sequence[Coupling]) -> list[ChannelRow]:
    """Return a row for every channel of every coupling."""
    sides = [[e.tolist() for e in channel_energy(model, couplings, sides=(side,))] for side in ("out", "in")]
    return [
        ChannelRow(coupling.name, channel, out[channel], inward[channel])
        for coupling, out, inward in zip(couplings, *sides, strict=True)
        for channel in range(coupling.num_channels)
    ]


def mark_kept(rows: Sequence[ChannelRow], plan: PruningPlan) -> list[ChannelRow]:
    """Return the rows with what a plan keeps marked."""
    kept = {name: set(channels) for name, channels in plan.kept.items()}
    return [replace(row, kept=row.channel in kept[row.coupling]) for row in rows]
