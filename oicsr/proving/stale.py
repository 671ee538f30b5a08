"""Numbers on modules that say a width by their names and that `forward` does not read: other methods may.

A block that is fused for inference once it is pruned (RepVGG, MobileOne) builds a layer of `self.in_channels` and
`self.groups`; a noisy layer draws as many numbers as `self.out_features`; a decoder samples `self.latent_dim` of them.
No trial of the forward pass tells that such a number is a width, so it follows only where all layers that the module
holds and that are as wide agree. Where a name does not say whether it counts what is read or what is given, all axes
that are as wide must belong to one coupling.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from oicsr.changes import is_whole
from oicsr.coupling import Attribute, Coupling
from oicsr.networks.copying import copy_model, shared
from oicsr.networks.inputs import Inputs
from oicsr.proving.repair import SET_BY_SURGERY, ShapeBench

INPUTS = frozenset("in_channels in_chs in_features in_planes inplanes in_dim input_dim dim_in".split())
OUTPUTS = frozenset("out_channels out_chs out_features out_planes outplanes out_dim output_dim dim_out".split())
GROUPS = frozenset(("groups",))
WIDTH = re.compile(  # of something inside a network: neither a size of images or kernels, nor of a head
    r"(?!num_|n_|head|kernel|image|img|patch|window|batch|vocab|input|output|in_|out_|grid|crop|pool)"
    r"(\w*_)?(dims?|channels|chs|features|planes|width|units|hidden|latent|(hidden|latent|embed\w*|code|state)_size|nz|nf)"
)
WEIGHTS = ("weight", "weight_orig", "weight_v", "parametrizations.weight.original", "parametrizations.weight.original1")

Axis = tuple[str, int]  # parameter and axis


def follow_unread(model: nn.Module, inputs: Inputs, couplings: Sequence[Coupling]) -> list[Coupling]:
    """Return the couplings with the numbers of modules that no forward pass reads, where layers say what they are.

    Args:
        model: The network; left as it is.
        inputs: The arguments of one forward call.
        couplings: Its couplings, with the numbers that the forward pass needs.
    """
    owners = _owners(couplings)
    known = {(a.module, a.name) for coupling in couplings for a in coupling.attributes}
    found: dict[str, list[Attribute]] = {}
    for path, name, value, axes in _candidates(model):
        own = {owners.get(axis, ("", 0)) for axis in axes}
        if len(own) == 1 and (path, name) not in known:
            ((coupling, width),) = own
            if coupling and width == value:
                found.setdefault(coupling, []).append(Attribute(path, name, value))
    if not found:
        return list(couplings)
    bench = ShapeBench(copy_model(model, shared), inputs)
    if bench.whole.failure:  # what it reads is not known
        return list(couplings)
    unread = {
        coupling: [attribute for attribute in attributes if (attribute.module, attribute.name) not in bench.read]
        for coupling, attributes in found.items()
    }
    return [replace(c, attributes=(*c.attributes, *unread.get(c.name, ()))) for c in couplings]


def _owners(couplings: Sequence[Coupling]) -> Mapping[Axis, tuple[str, int]]:
    """Return the coupling that each axis belongs to as a whole, as much of it for each channel, and its width."""
    owners: dict[Axis, tuple[str, int]] = {}
    for coupling in couplings:
        for member in coupling.members:
            ids = member.channels
            counts = ids[ids >= 0].bincount(minlength=coupling.num_channels)
            whole = bool((ids >= 0).all() and (counts == counts[0]).all())
            owners[member.axis] = (coupling.name, len(ids)) if whole else ("", 0)
    return owners


def _candidates(model: nn.Module) -> Iterator[tuple[str, str, int, list[Axis]]]:
    """Yield the numbers that may be widths by their names: module, name, value, and the axes that are as wide."""
    for path, module in model.named_modules():
        if isinstance(module, SET_BY_SURGERY) or type(module).__module__.startswith("torch."):
            continue
        for name, value in vars(module).items():
            if not (is_whole(value) and value > 1):
                continue
            prefix = f"{path}." if path else ""
            if name in INPUTS | OUTPUTS | GROUPS:
                axes = list(_axes(module, prefix, name, value))
            elif WIDTH.fullmatch(name):  # read or given
                axes = [*_axes(module, prefix, "in_features", value), *_axes(module, prefix, "out_features", value)]
            else:
                continue
            if axes:
                yield path, name, int(value), axes


def _axes(module: nn.Module, prefix: str, name: str, value: int) -> Iterator[Axis]:
    """Yield the axes of the layers in a module, and of its own weights, that a number may be the width of."""
    own = 0 if name in OUTPUTS else 1
    for parameter, weight in module.named_parameters(recurse=False):
        if name not in GROUPS and weight.ndim > 1 and weight.shape[own] == value:
            yield prefix + parameter, own
    for path, layer in module.named_modules():
        if isinstance(layer, nn.Linear | _ConvNd):
            size, dim = _size_and_axis(layer, name)
            if size == value:
                leaf = next((known for known in WEIGHTS if _has(layer, known)), WEIGHTS[0])
                yield f"{prefix}{path}.{leaf}" if path else f"{prefix}{leaf}", dim


def _size_and_axis(layer: nn.Linear | _ConvNd, name: str) -> tuple[int, int]:
    """Return the number of a layer that a name speaks of, and the axis of its weight; -1 where no axis is all of it."""
    if isinstance(layer, nn.Linear):
        return (layer.out_features, 0) if name in OUTPUTS else (layer.in_features if name in INPUTS else 1, 1)
    rows = 1 if isinstance(layer, _ConvTransposeNd) else 0
    size = layer.groups if name in GROUPS else layer.out_channels if name in OUTPUTS else layer.in_channels
    if layer.groups == 1:
        return size, rows if name in OUTPUTS else 1 - rows
    if layer.groups == layer.in_channels == layer.out_channels:  # depthwise
        return size, 0
    return size, 0 if name in OUTPUTS and not rows else -1


def _has(layer: nn.Module, name: str) -> bool:
    try:
        layer.get_parameter(name)
    except AttributeError:
        return False
    return True
