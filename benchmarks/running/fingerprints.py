"""What a checkpoint was made with, in a few numbers: data, network code and regulariser.

The key of a checkpoint names all of these, but code behind a name changes. So each checkpoint also holds the checksum
of its data, and numbers that the network's code and the regulariser give. They are compared as numbers, with a
tolerance: other processors and thread counts round otherwise, and leave a checkpoint as valid as it was.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from oicsr import GradientRegularizer, ProximalRegularizer, Regularizer, ScheduledRegularizer

Numbers = dict[str, list[float]]

IMAGES = 2

KEPT = 32  # outputs

NOISE = 0.1  # what is added to parameters: some networks begin with zeros, behind which their code does not show

SETTINGS = ("p", "drop_prob", "momentum", "eps")  # of layers, which act in training alone or little at the start

ADVANCES = 10  # steps of a schedule: some act at every tenth

RATE = 0.1

TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}  # by what computes the numbers; relative

NAMES = {
    "data": "data",
    "split": "splits, augmentation or normalisation",
    "network": "network code",
    "regularizer": "regulariser",
}


def network_numbers(model: nn.Module, shape: Sequence[int]) -> Numbers:
    """Return numbers that depend on a network's code: outputs, the norm of the gradient, and settings of layers.

    Nothing about the network changes, and no random numbers are drawn.

    Args:
        model: The network, on any device.
        shape: Channels, height and width of its images.

    Returns:
        Lists by name; empty for a network that cannot be computed on a CPU.
    """
    for dtype in (torch.float64, torch.float32):
        try:
            return _network_numbers(copy.deepcopy(model).to("cpu", dtype), torch.Size(shape), dtype)
        except RuntimeError:  # the code may ask for one type of numbers, or one device
            continue
    return {}


def _network_numbers(model: nn.Module, shape: torch.Size, dtype: torch.dtype) -> Numbers:
    model.eval()  # nothing is drawn
    with torch.no_grad():
        for parameter in model.parameters():
            size = NOISE if parameter.dim() < 2 else math.sqrt(parameter.shape[0] / max(parameter.numel(), 1))
            parameter.add_(size * _waves(parameter.shape, dtype))
    parameters = [parameter.requires_grad_() for parameter in model.parameters()]
    with torch.enable_grad():
        outputs = model(_waves(torch.Size([IMAGES, *shape]), dtype))
        loss = functional.cross_entropy(outputs, torch.arange(IMAGES) % outputs.shape[1])
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    squares = [float(gradient.square().sum()) for gradient in gradients if gradient is not None]
    settings = [_total(model, name) for name in SETTINGS]
    return {
        "outputs": outputs.flatten()[:KEPT].tolist(),
        "gradient": [math.sqrt(sum(squares))],
        "settings": settings,
        "tolerance": [TOLERANCES[dtype]],
    }


def _waves(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Return values in [-1, 1] that are the same everywhere, as those of a random generator are not."""
    return torch.arange(shape.numel(), dtype=torch.float64).sin().reshape(shape).to(dtype)


def _total(model: nn.Module, setting: str) -> float:
    values = (getattr(module, setting, None) for module in model.modules())
    return sum(value for value in values if isinstance(value, float))


def regularizer_numbers(build: Callable[[], Regularizer | None], model: nn.Module) -> Numbers:
    """Return numbers that depend on a regulariser's code and strength: values, and what it does to each parameter.

    Args:
        build: Builds the regulariser again: the one that trains must not advance.
        model: The network that it starts on; does not change.
    """
    with torch.random.fork_rng(devices=[]):
        regularizer = build()
        if regularizer is None:
            return {}
        model = copy.deepcopy(model)
        for parameter in model.parameters():  # some choose channels by the gradients of the loss
            parameter.grad = torch.empty_like(parameter).copy_(RATE * _waves(parameter.shape, torch.float64))
        values = [_value(regularizer, model)]
        if isinstance(regularizer, ScheduledRegularizer):
            for _ in range(ADVANCES):
                regularizer.advance(model)
            values.append(_value(regularizer, model))
        changes = _changes(regularizer, model)
    sizes = torch.stack([change.double().norm() for change in changes]) if changes else torch.zeros(0)
    return {"values": values, "changes": sizes.tolist(), "tolerance": [TOLERANCES[torch.float32]]}


@torch.no_grad()
def _value(regularizer: Regularizer, model: nn.Module) -> float:
    return float(regularizer(model))


def _changes(regularizer: Regularizer, model: nn.Module) -> list[Tensor]:
    """Return what a regulariser does to each parameter, or to its gradient."""
    parameters = list(model.parameters())
    if isinstance(regularizer, ProximalRegularizer):
        before = [parameter.detach().clone() for parameter in parameters]
        regularizer.proximal_step(model, RATE)
        return [now.detach() - old for now, old in zip(parameters, before, strict=True)]
    before = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
    if isinstance(regularizer, GradientRegularizer):
        regularizer.add_gradient(model)
    else:
        with torch.enable_grad():
            penalty = regularizer(model)
        if penalty.requires_grad:
            penalty.backward()
    now = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return [after - old for after, old in zip(now, before, strict=True)]


def differences(found: Any, expected: Mapping[str, Any]) -> list[str]:
    """Return, in words, what a checkpoint was made with otherwise; what it does not say is not compared.

    Args:
        found: Facts of a checkpoint; None for one of an earlier version.
        expected: Facts of the present run.
    """
    known = found if isinstance(found, dict) else {}
    pairs = {name: (known[name], value) for name, value in expected.items() if known.get(name) and value}
    return [NAMES[name] for name, (old, new) in pairs.items() if not _same(old, new)]


def _same(old: Any, new: Any) -> bool:
    if isinstance(new, str):
        return bool(old == new)
    if old.keys() != new.keys():
        return False
    tolerance = max(*old["tolerance"], *new["tolerance"])
    return all(_close(old[name], new[name], tolerance) for name in new if name != "tolerance")


def _close(old: Sequence[float], new: Sequence[float], tolerance: float) -> bool:
    """Return whether no two numbers differ by more than a share of the largest; those that are not finite may."""
    if len(old) != len(new):
        return False
    largest = max(map(abs, (*old, *new)), default=0.0)
    return not any(abs(a - b) > tolerance * largest for a, b in zip(old, new, strict=True))
