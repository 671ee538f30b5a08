"""Channels under a LayerNorm, which go on request only: outputs change, and by how much is measured.

Without its mean, a LayerNorm, or a GroupNorm of one group, is an RMSNorm, under which a channel of zeros goes exactly:
its weight and its epsilon make up for the width (`oicsr.rules.rms`). The same is done here. What remains is the
movement of the mean: none where what it is taken of has a mean of zero, and more the further it is from that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from oicsr.coupling import Coupling, channel_mask
from oicsr.networks.copying import MODEL_ERRORS, copy_model, hooks_off, mode
from oicsr.networks.inputs import Inputs, tensors_in
from oicsr.networks.state import generators_kept, indices_on_cpu, one_at_a_time, seed_generators
from oicsr.parametrized import lengths
from oicsr.plan import PruningPlan
from oicsr.proving.chance import noisy_example
from oicsr.proving.trials import emptying
from oicsr.reference import slice_energies
from oicsr.surgery import apply_plan

Approximate = Literal["none", "layer_norm"]


class ApproximateWarning(UserWarning):
    """Outputs change where channels of zeros go; the message says under which layers, and by how much."""


class WithoutMeans(TorchFunctionMode):
    """Let LayerNorms divide by the root of the mean of squares alone, so that the rest of a network can be proved.

    A GroupNorm of one group is one: its mean runs over places as well, of which there are as many after as before.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in (functional.layer_norm, torch.layer_norm):
            return _rms_norm(*args, **(kwargs or {}))
        if func in (functional.group_norm, torch.group_norm):
            return _of_groups(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: object,
) -> Tensor:
    normalized = functional.rms_norm(input, list(normalized_shape), weight, eps)
    return normalized if bias is None else normalized + bias


def _of_groups(
    func: Callable[..., Tensor],
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: object,
) -> Tensor:
    if num_groups != 1:
        return func(input, num_groups, weight, bias, eps)
    one_each = (-1, *[1] * (input.ndim - 2))
    normalized = functional.rms_norm(input, list(input.shape[1:]), eps=eps)
    for vector, combine in ((weight, torch.mul), (bias, torch.add)):
        normalized = normalized if vector is None else combine(normalized, vector.reshape(one_each))
    return normalized


@one_at_a_time()
@torch.no_grad()
def deviation(model: nn.Module, inputs: Inputs, couplings: Sequence[Coupling]) -> float | None:
    """Return by how much outputs change where the weaker half of the channels of some couplings, set to zero, goes.

    Args:
        model: The network, with the weights that it has; left as it is.
        inputs: The arguments of one forward call; inputs that are constant are replaced by noise.
        couplings: The couplings.

    Returns:
        The largest change of an output, as a share of the largest output; None where the network does not run.
    """
    generator = torch.Generator().manual_seed(0)
    with indices_on_cpu():
        inputs = inputs.map(lambda tensor: noisy_example(tensor, generator))
    emptied, kept = copy_model(model).eval(), {c.name: _stronger_half(model, c) for c in couplings}
    for coupling in couplings:
        _empty(emptied, coupling, kept)
    small = copy_model(emptied)
    apply_plan(small, PruningPlan.from_kept(couplings, kept))
    outputs = []
    for network in (emptied, small):
        with generators_kept(network), hooks_off(network), mode(network, training=False):
            seed_generators(network, 0)
            try:
                outputs.append(tensors_in(inputs.call(network)))
            except MODEL_ERRORS:
                return None
    pairs = [(a.double(), b.double()) for a, b in zip(*outputs, strict=True) if a.is_floating_point() and a.numel()]
    shares = [float((a - b).abs().max() / a.abs().max().clamp(min=torch.finfo(torch.float32).tiny)) for a, b in pairs]
    return max(shares, default=None)


@indices_on_cpu()
def _stronger_half(model: nn.Module, coupling: Coupling) -> tuple[int, ...]:
    energies = torch.zeros(coupling.num_channels, dtype=torch.float64)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for member in coupling.members:
        if member.counts and member.parameter in parameters:
            slices = slice_energies(parameters[member.parameter].detach().cpu(), member.dim).double()
            owned = member.channels >= 0
            energies.index_add_(0, member.channels[owned], slices[owned])
    order = energies.argsort(descending=True)[: (coupling.num_channels + 1) // 2]
    return tuple(sorted(order.tolist()))


@indices_on_cpu()
def _empty(model: nn.Module, coupling: Coupling, kept: Mapping[str, Sequence[int]]) -> None:
    stays, directions = channel_mask(coupling, kept), lengths(model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for member in coupling.members:
        if member.parameter in parameters and member.axis not in directions:  # a slice of zeros has no direction
            parameter = parameters[member.parameter]
            parameter.mul_(emptying(member, stays, parameter))
