"""What a trial leaves to chance: which channels stay, and the values of parameters, statistics and inputs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from oicsr.coupling import Coupling
from oicsr.networks.state import indices_on_cpu

FEWEST = 5  # channels that a trial leaves at least, so that mixing neighbours is not missed by chance
FLOOR = 0.1  # the least variance of a channel, in units of the mean of its layer: one at zero has none


def choose_kept(couplings: Sequence[Coupling], generator: torch.Generator) -> dict[str, tuple[int, ...]]:
    """Choose the channels of each coupling that stay: an eighth to a quarter, at least five if it has more.

    Couplings keep different numbers of channels as long as there are any left to choose from, and those of one width
    before the others: code may ask whether two values are of one width, and is to be answered as in the network.
    """
    kept: dict[str, tuple[int, ...]] = {}
    taken, anywhere = defaultdict[int, set[int]](set), set[int]()
    for coupling in couplings:
        width = coupling.num_channels
        least = min(FEWEST, width - 1)
        low, high = max(least, width // 8), max(least, width // 4)
        free = [n for n in range(low, high + 1) if n not in taken[width]]
        free = free or [n for n in range(high + 1, width) if n not in taken[width]][:1]
        free = free or list(range(low, high + 1))
        free = [n for n in free if n not in anywhere] or free
        count = free[int(torch.randint(len(free), (1,), generator=generator))]
        taken[width].add(count)
        anywhere.add(count)
        order = torch.randperm(width, generator=generator)[:count]
        kept[coupling.name] = tuple(sorted(order.tolist()))
    return kept


def noisy_example(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Return an input, or noise in the place of one that would show nothing: constant, or not finite."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.numel() < 2 or is_sparse(tensor):
        return tensor
    if bool(tensor.isfinite().all()) and not _is_constant(tensor):
        return tensor
    noise = torch.randn(tensor.shape, generator=generator).to(tensor)
    return noise if not bool(tensor.isfinite().all()) else tensor + noise


def is_sparse(tensor: Tensor) -> bool:
    """Return whether a tensor (the edges of a graph) holds the places of its values: it is taken as it is."""
    return tensor.layout != torch.strided


def _is_constant(tensor: Tensor) -> bool:
    flat = tensor.reshape(-1)
    return bool(flat[0] == flat[-1]) and bool((flat == flat[0]).all())


@torch.no_grad()
def randomize(model: nn.Module, generator: torch.Generator) -> None:
    """Move what is constant, zero, small or a statistic, as training would.

    Scales of zero hide whole blocks; and before training, attention is nearly uniform, so that hardly anything depends
    on its queries and keys. So the weights of a layer give numbers of the size of its inputs at least.
    """
    for parameter in model.parameters():
        if not (parameter.is_floating_point() or parameter.is_complex()) or not parameter.numel():
            continue
        if _is_constant(parameter):
            parameter.add_(_uniform(parameter, 0.1, 0.5, generator))
        elif parameter.ndim < 2:
            parameter.mul_(1 + _uniform(parameter, 0.1, 0.5, generator))
        if int(parameter.count_nonzero()) < parameter.numel():
            size, zeros = parameter.abs().square().mean().sqrt(), parameter == 0
            noise = torch.randn(int(zeros.sum()), generator=generator).to(parameter)
            parameter[zeros] = (size * noise).abs()
        if parameter.ndim > 1:
            gain = float(torch.linalg.vector_norm(parameter)) / len(parameter) ** 0.5  # of inputs of variance one
            if 0 < gain < 1:
                parameter.div_(gain)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(_uniform(buffer, -0.3, 0.3, generator))
        elif name.endswith("running_var"):
            buffer.copy_(_uniform(buffer, 0.5, 1.5, generator))


def measured(model: nn.Module) -> list[_NormBase]:
    """Return the normalisations with statistics, in which those of a forward pass can be put."""
    return [
        module
        for module in model.modules()
        if isinstance(module, _NormBase) and module.running_mean is not None and module.running_var is not None
    ]


@contextmanager
def measuring(norms: Sequence[_NormBase]) -> Iterator[None]:
    """Let normalisations take their statistics from what comes in, each time those of that pass alone."""
    before = [(norm.training, norm.momentum) for norm in norms]
    for norm in norms:
        norm.training, norm.momentum = True, 1.0
    try:
        yield
    finally:
        for norm, (training, momentum) in zip(norms, before, strict=True):
            norm.training, norm.momentum = training, momentum


@indices_on_cpu()
@torch.no_grad()
def move_statistics(norms: Sequence[_NormBase], generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """Return buffers, and in their place the statistics that were just measured, moved at random as by training."""
    moved = []
    for norm in norms:
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None and variance is not None
        if not bool((mean.isfinite() & variance.isfinite()).all()):
            continue
        size = float(variance[variance > 0].mean()) if bool((variance > 0).any()) else 1.0
        moved += [  # the mean of a channel of zeros stays zero
            (mean, mean + _uniform(mean, -0.3, 0.3, generator) * variance.sqrt()),
            (variance, variance.clamp(min=FLOOR * size) * _uniform(variance, 0.5, 1.5, generator)),
        ]
    return moved


def _uniform(like: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Return random numbers of the shape of `like`."""
    return (low + (high - low) * torch.rand(like.shape, generator=generator)).to(like)
