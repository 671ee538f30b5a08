"""Sums over the weights of each channel, for scores and penalties that are not energies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from oicsr import Coupling, Member
from oicsr.arguments import check_width
from oicsr.coupling import Side
from oicsr.networks.wrapping import unwrap

Value = Callable[[str, Tensor], Tensor]  # a parameter's name and the parameter, to a value per element


def counted(coupling: Coupling, sides: Sequence[Side]) -> list[Member]:
    """Return the members of a coupling that carry energy on one of `sides`."""
    return [member for member in coupling.members if member.counts and member.side in sides]


def weight_of(model: nn.Module, member: Member) -> Tensor:
    """Return the parameter of a member.

    Raises:
        ValueError: It is not as wide as the member says: the coupling is another network's.
    """
    weight = unwrap(model).get_parameter(member.parameter)
    check_width(member.parameter, member.dim, len(member.channels), weight)
    return weight


def sum_slices(member: Member, values: Tensor, num_channels: int) -> Tensor:
    """Sum a value per element of a member's parameter over each channel's slices, `(num_channels,)`."""
    per_slice = values.movedim(member.dim, 0).flatten(1).sum(1) if values.ndim > 1 else values
    index = (member.channels % (num_channels + 1)).to(values.device)  # -1, no channel of this coupling, is put last
    return values.new_zeros(num_channels + 1).index_add(0, index, per_slice)[:-1]


def channel_sums(model: nn.Module, couplings: Sequence[Coupling], sides: Sequence[Side], value: Value) -> list[Tensor]:
    """Return, per coupling, the sum of `value` over all the weights of each channel, `(num_channels,)`.

    Differentiable where `value` is. The squares of the weights would give `oicsr.channel_energy`, which is faster.
    """
    sums = []
    for coupling in couplings:
        total = zeros(model, coupling)
        for member in counted(coupling, sides):
            weight = weight_of(model, member)
            total = total + sum_slices(member, value(member.parameter, weight), coupling.num_channels)
        sums.append(total)
    return sums


def zeros(model: nn.Module, coupling: Coupling) -> Tensor:
    """Return zeros `(num_channels,)` on the device and of the dtype of the model's weights."""
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    return torch.zeros(coupling.num_channels, device=like.device, dtype=like.dtype)


def over_mean(scores: Iterable[Tensor]) -> list[Tensor]:
    """Divide the scores of each coupling by their mean; a coupling of zeros is left as it is."""
    return [score / torch.where(score.mean() > 0, score.mean(), 1) for score in scores]


def channel_vectors(model: nn.Module, coupling: Coupling, sides: Sequence[Side]) -> Tensor:
    """Return the weights of each channel on one line, `(num_channels, weights)`, members concatenated.

    Where a channel owns fewer slices of a member than another one does, its line is filled up with zeros.
    """
    parts = [zeros(model, coupling)[:, None][:, :0]]
    for member in counted(coupling, sides):
        weight = weight_of(model, member)
        slices = weight.movedim(member.dim, 0).reshape(weight.shape[member.dim], -1)
        counts = torch.bincount(member.channels[member.channels >= 0], minlength=coupling.num_channels)
        order = member.channels.argsort(stable=True)[int((member.channels < 0).sum()) :]
        place = torch.arange(len(order)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        table = slices.new_zeros(coupling.num_channels, int(counts.max()), slices.shape[1])
        table[member.channels[order].to(weight.device), place.to(weight.device)] = slices[order.to(weight.device)]
        parts.append(table.flatten(1))
    return torch.cat(parts, 1)


def per_slice(member: Member, values: Tensor, weight: Tensor) -> Tensor:
    """Return a value per channel, broadcastable over a member's parameter; 0 for other couplings' slices."""
    padded = torch.cat([values, values.new_zeros(1)])
    shape = [1] * weight.ndim
    shape[member.dim] = len(member.channels)
    return padded[member.channels.to(values.device)].reshape(shape)  # -1 reads the zero at the end


@torch.no_grad()
def scale_channels(model: nn.Module, coupling: Coupling, sides: Sequence[Side], factors: Tensor) -> None:
    """Multiply all that a channel owns on some sides, biases and shifts too, by a factor per channel, in place.

    Running statistics are no parameters, and stay; a frozen parameter is left alone.
    """
    parameters = dict(unwrap(model).named_parameters())
    for member in coupling.members:
        weight = parameters.get(member.parameter)
        if weight is not None and weight.requires_grad and member.side in sides:
            weight.mul_(per_slice(member, factors - 1, weight) + 1)  # 1 for slices of other couplings


@torch.no_grad()
def add_to_gradient(weight: Tensor, value: Tensor, factor: float) -> None:
    """Add `factor * value` to the gradient of a weight, in place; a frozen weight is left alone."""
    if not weight.requires_grad:
        return
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    weight.grad.add_(value, alpha=factor)
