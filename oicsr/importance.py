"""Importance of channels: the energy of the same group that the regulariser shrinks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from oicsr.arguments import check_choice, check_fit
from oicsr.coupling import SIDES, Coupling, Side
from oicsr.energy import channel_energy
from oicsr.fast.layout import check_sides
from oicsr.networks.state import indices_on_cpu
from oicsr.networks.wrapping import unwrap


@indices_on_cpu()
def _per_weight(energy: Tensor, coupling: Coupling, model: nn.Module, sides: Sequence[Side]) -> Tensor:
    """Divide by the number of weights of each channel."""
    sizes = torch.zeros(coupling.num_channels + 1, dtype=energy.dtype)
    for member in coupling.members:
        if member.counts and member.side in sides:
            weight = model.get_parameter(member.parameter)
            per_slice = torch.full(member.channels.shape, weight.numel() / len(member.channels), dtype=energy.dtype)
            sizes.index_add_(0, member.channels % (coupling.num_channels + 1), per_slice)
    return energy / sizes[:-1].clamp(min=1).to(energy.device)


def _divide(energy: Tensor, by: Tensor) -> Tensor:
    """Divide, leaving a coupling of zeros as it is."""
    return energy / torch.where(by > 0, by, torch.ones_like(by))


Normalization = Callable[[Tensor, Coupling, nn.Module, Sequence[Side]], Tensor]

# The paper sorts the energies of all layers against one another; whether it normalises them first is not known.
NORMALIZATIONS: dict[str, Normalization] = {
    "none": lambda energy, coupling, model, sides: energy,
    "size": _per_weight,
    "layer_mean": lambda energy, coupling, model, sides: _divide(energy, energy.mean()),
    "layer_max": lambda energy, coupling, model, sides: _divide(energy, energy.max()),
}


@torch.no_grad()
def out_in_energy(
    model: nn.Module,
    couplings: Sequence[Coupling],
    normalize: str = "layer_mean",
    *,
    sides: Sequence[Side] = ("out", "in"),
) -> list[Tensor]:
    """Return the importance of every channel: its energy, made comparable between layers.

    Eq. 8 of Li et al. 2019 is the energy over two consecutive layers. Whether it is normalised before the global
    sort is not known, so that is a named option (PAPER.md, deviation D2).

    Of a coupling with no weight on any of the sides (no columns read the rows of queries and keys, for example) the
    weights that it has count: an energy of zero would make all its channels go first.

    Args:
        model: The network.
        couplings: Its couplings.
        normalize: `"none"`: the energy itself. `"size"`: divided by the number of weights of the channel.
            `"layer_mean"`, `"layer_max"`: divided by the mean, or the largest, energy of the coupling.
        sides: Which weights count; one side alone is the importance that looks at a single layer.

    Returns:
        One tensor `(num_channels,)` per coupling, without gradient.

    Raises:
        ValueError: `normalize` or a side is unknown, or the couplings are not the model's.
    """
    sides = check_sides(sides)
    check_choice("normalize", normalize, tuple(NORMALIZATIONS))
    model = unwrap(model)
    check_fit(model, couplings)
    counting = [_counting(coupling, sides) for coupling in couplings]
    energies = channel_energy(model, couplings, sides)
    if any(own != tuple(sides) for own in counting):
        whole = channel_energy(model, couplings, SIDES)
        energies = [e if own == tuple(sides) else w for e, w, own in zip(energies, whole, counting, strict=True)]
    scale = NORMALIZATIONS[normalize]
    return [scale(e, c, model, own) for e, c, own in zip(energies, couplings, counting, strict=True)]


def _counting(coupling: Coupling, sides: Sequence[Side]) -> tuple[Side, ...]:
    """Return the sides that count of a coupling: all, where it has no weight on any of those asked for."""
    has_any = any(member.counts and member.side in sides for member in coupling.members)
    return tuple(sides) if has_any else SIDES
