"""Moving averages that a network holds of its own parts: modules that are near others in their weights."""

from __future__ import annotations

import math

import torch
from torch import nn

from oicsr.wrapping import unwrap

NEAR = 0.5  # cosine of the angle between two modules' weights: those of two trainings are at right angles

Layers = list[tuple[str, type[nn.Module], list[tuple[str, tuple[int, ...]]]]]


def twins_of(model: nn.Module, module: nn.Module) -> list[str]:
    """Return the modules that have the layers of another one, other parameters, and weights near its own."""
    inner = unwrap(module)
    layers, own = _layers(inner), {id(parameter) for parameter in inner.parameters()}
    return [
        name
        for name, other in model.named_modules()
        if _layers(other) == layers and own.isdisjoint(map(id, other.parameters())) and _are_near(inner, other)
    ]


def _layers(module: nn.Module) -> Layers:
    """Return name, class and the shapes of the parameters of each layer in a module."""
    found = [
        (name, type(layer), [(key, tuple(own.shape)) for key, own in layer.named_parameters(recurse=False)])
        for name, layer in module.named_modules()
    ]
    return [layer for layer in found if layer[2]]


@torch.no_grad()
def _are_near(module: nn.Module, other: nn.Module) -> bool:
    """Return whether weights point the same way; vectors do in any two networks (scales of about one)."""
    product = first = second = 0.0
    for a, b in zip(module.parameters(), other.parameters(), strict=True):
        if a.ndim > 1 and a.is_floating_point() and not (a.is_meta or b.is_meta):
            product += float((a * b.to(a)).sum())
            first, second = first + float(a.square().sum()), second + float(b.square().sum())
    return product > NEAR * math.sqrt(first * second)
