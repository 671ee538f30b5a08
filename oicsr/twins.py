"""Moving averages that a network holds of its own parts: modules that are near others in their weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn

from oicsr.networks.wrapping import unwrap
from oicsr.plan import Slice

NEAR = 0.5  # cosine of the angle between two modules' weights: those of two trainings are at right angles

Layers = list[tuple[str, type[nn.Module], list[tuple[str, tuple[int, ...]]]]]


class UntiedWarning(UserWarning):
    """A moving average, as it seems, loses other channels than what it is an average of."""


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


def said_of_untied(model: nn.Module, slices: Sequence[Slice]) -> list[str]:
    """Return what to warn of: frozen modules, near a trained one in their weights, of which a plan keeps other slices.

    A teacher that follows its student (`p.mul_(m).add_(q, alpha=1 - m)`) runs on its own, so that nothing ties the two:
    from then on, it would be an average of other channels.
    """
    names = {id(module): name for name, module in model.named_modules()}
    said = []
    for name, module in _frozen(model):
        path = names[id(unwrap(module))]
        own = _slices_in(path, slices)
        trained = [t for t in twins_of(model, module) if _is_trained(model.get_submodule(t))] if own else []
        differing = [own ^ _slices_in(twin, slices) for twin in trained]
        if differing and all(differing):  # of several, one may be the pattern that the others were copied from
            layer = min(differing[0])[0].rpartition(".")[0]
            said.append(
                f"{name!r} is frozen, has weights near those of {trained[0]!r}, and keeps other channels: where it is "
                f"a moving average, give `tie=` the couplings of both (see tie_couplings), such as "
                f"[('{trained[0]}.{layer}', '{path}.{layer}')]"
            )
    return said


def _frozen(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the outermost parts of a network of which no parameter is trained."""
    outer: tuple[str, ...] = ()
    for name, module in model.named_modules() if _is_trained(model) else ():
        if not name.startswith(outer) and any(True for _ in module.parameters()) and not _is_trained(module):
            outer += (f"{name}.",)
            yield name, module


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _slices_in(prefix: str, slices: Iterable[Slice]) -> set[tuple[str, int, tuple[int, ...]]]:
    """Return what is kept of the parameters of a module, by their names in it."""
    start = f"{prefix}."
    own = (entry for entry in slices if entry.parameter.startswith(start))
    return {(entry.parameter.removeprefix(start), entry.dim, tuple(entry.kept)) for entry in own}
