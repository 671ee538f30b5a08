"""Weights that are computed from others: `parametrizations`, and the older weight norm, spectral norm and masks.

A layer with such a weight is followed as if it were a plain one, and what is found for its weight is said of the
tensors that the weight is computed from. That is exact where a slice of zeros in those gives a slice of zeros in the
weight and changes no other slice: weight norm, spectral norm, pruning masks. Whether it is for any other
parametrization is for the numeric proof to find out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from oicsr.coupling import Axis, Coupling, Member
from oicsr.networks.copying import copy_model, is_part_of_the_model, mode, shared
from oicsr.networks.wrapping import stand_alone


@dataclass(frozen=True)
class Source:
    """A tensor that a computed weight is made from.

    Attributes:
        name: Qualified name.
        kind: `"weight"`: of the weight's shape. `"scale"`: one number per slice along `dim`, and one elsewhere (the
            lengths of weight norm). `"rows"`, `"columns"`: a vector over the axis `dim`, or over all others (the
            singular vectors of spectral norm).
        dim: The axis of the weight that the last three kinds speak of.
        is_parameter: Whether it is one; a buffer carries no energy.
    """

    name: str
    kind: str
    dim: int
    is_parameter: bool


@dataclass(frozen=True)
class Computed:
    """A weight that is computed: its sources, and the module and name under which a layer reads it.

    `whole`: whether the part of every parameter is known; where it is not (factors of a low-rank update), the channels
    are followed through the code that computes the weight.
    """

    owner: nn.Module
    attribute: str
    shape: tuple[int, ...]
    sources: tuple[Source, ...]
    value: Callable[[], Tensor]
    whole: bool = True

    @property
    def carrier(self) -> str:
        """The source that has the weight's shape, by whose name its multiply-accumulates go."""
        return next(source.name for source in self.sources if source.kind == "weight")


def computed_weights(model: nn.Module) -> dict[str, Computed]:
    """Return the computed tensors of a network that have a source of their own shape, by qualified name."""
    found = {}
    for prefix, module in model.named_modules():
        path = f"{prefix}." if prefix else ""
        for attribute, entry in [*_by_parametrization(module, path), *_by_hook(module, path)]:
            if any(source.kind == "weight" for source in entry.sources):
                found[path + attribute] = entry
    return found


def lengths(model: nn.Module) -> set[Axis]:
    """Return the axes of tensors (the directions of weight norm) whose slices have a length of their own elsewhere."""
    return {
        (source.name, scale.dim)
        for entry in computed_weights(model).values()
        for scale in entry.sources
        if scale.kind == "scale" and scale.is_parameter
        for source in entry.sources
        if source.kind == "weight" and source.is_parameter
    }


def _by_parametrization(module: nn.Module, path: str) -> list[tuple[str, Computed]]:
    if not is_parametrized(module):
        return []
    found = []
    for attribute, chain in module.parametrizations.named_children():  # type: ignore[union-attr]
        read = _reader(module, attribute, chain)
        shape = tuple(read().shape)
        prefix = f"{path}parametrizations.{attribute}."
        tensors = {**dict(chain.named_parameters()), **dict(chain.named_buffers())}
        sources = [_source(prefix + name, tensor, shape, chain, name) for name, tensor in tensors.items()]
        kept = tuple(source for source in sources if source is not None)
        learned = {prefix + name for name, tensor in chain.named_parameters() if tensor.numel() > 1}
        whole = learned <= {source.name for source in kept}
        found.append((attribute, Computed(module, attribute, shape, kept, read, whole)))
    return found


def _reader(module: nn.Module, attribute: str, chain: nn.Module) -> Callable[[], Tensor]:
    @torch.no_grad()
    def read() -> Tensor:
        """Return the tensor as the layer reads it in evaluation mode."""
        with mode(chain, training=False):
            value = getattr(module, attribute)
        assert isinstance(value, Tensor)
        return value

    return read


def _source(name: str, tensor: Tensor, shape: tuple[int, ...], chain: nn.Module, local: str) -> Source | None:
    """Say how one tensor of a parametrization lies to the weight; None where its part is unknown."""
    is_parameter = isinstance(tensor, nn.Parameter)
    if tuple(tensor.shape) == shape:
        return Source(name, "weight", 0, is_parameter)
    part = getattr(chain, local.partition(".")[0], None)
    if isinstance(part, nn.Module) and local.endswith(("._u", "._v")):
        dim = int(getattr(part, "dim", 0)) % len(shape)
        return Source(name, "rows" if local.endswith("._u") else "columns", dim, is_parameter)
    return _scale(name, tensor, shape, is_parameter)


def _scale(name: str, tensor: Tensor, shape: tuple[int, ...], is_parameter: bool) -> Source | None:
    wide = [axis for axis, size in enumerate(tensor.shape) if size > 1]
    if tensor.ndim != len(shape) or len(wide) != 1 or tensor.shape[wide[0]] != shape[wide[0]]:
        return None
    return Source(name, "scale", wide[0], is_parameter)


def _by_hook(module: nn.Module, path: str) -> list[tuple[str, Computed]]:
    """Read the hooks of `torch.nn.utils.weight_norm`, `spectral_norm` and `torch.nn.utils.prune`."""
    found = []
    for hook in module._forward_pre_hooks.values():
        attribute = getattr(hook, "name", None) or getattr(hook, "_tensor_name", None)
        if not is_part_of_the_model(hook) or not isinstance(attribute, str):
            continue
        carrier = next((n for n in ("_v", "_orig") if attribute + n in module._parameters), None)
        if carrier is None or module._parameters[attribute + carrier] is None:
            continue
        shape = tuple(module._parameters[attribute + carrier].shape)  # type: ignore[union-attr]
        sources = tuple(_hook_sources(module, path, attribute, shape, int(getattr(hook, "dim", 0) or 0)))
        found.append((attribute, Computed(module, attribute, shape, sources, _computer(hook, module))))
    return found


def _hook_sources(module: nn.Module, path: str, attribute: str, shape: tuple[int, ...], dim: int) -> list[Source]:
    sources: list[Source] = []
    for store in (module._parameters, module._buffers):
        for name, tensor in store.items():
            if tensor is None or name not in {attribute + end for end in ("_v", "_g", "_orig", "_mask", "_u")}:
                continue
            is_parameter, full = isinstance(tensor, nn.Parameter), path + name
            if tensor.shape == shape:
                sources.append(Source(full, "weight", 0, is_parameter))
            elif tensor.ndim == 1 and name.endswith(("_u", "_v")):
                sources.append(Source(full, "rows" if name.endswith("_u") else "columns", dim, is_parameter))
            elif (scale := _scale(full, tensor, shape, is_parameter)) is not None:
                sources.append(scale)
    return sources


def _computer(hook: Any, module: nn.Module) -> Callable[[], Tensor]:
    def compute() -> Tensor:
        """Return the weight as the hook computes it, without an iteration of the power method."""
        if hasattr(hook, "apply_mask"):
            result = hook.apply_mask(module)
        elif hasattr(hook, "compute_weight") and hasattr(hook, "n_power_iterations"):
            result = hook.compute_weight(module, do_power_iteration=False)
        else:
            result = hook.compute_weight(module)
        assert isinstance(result, Tensor)
        return result

    return compute


@torch.no_grad()
def refresh(model: nn.Module) -> None:
    """Recompute the weights that hooks keep as plain attributes, after their sources were changed."""
    for module in model.modules():
        for attribute, entry in _by_hook(module, ""):
            setattr(module, attribute, entry.value())


# ----------------------------------------------------------------------------------------------------------------
# the plain form of a network
# ----------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def make_plain(twin: nn.Module) -> dict[str, Computed]:
    """Put plain parameters in the place of the computed weights of a copy, in place; return what they were.

    The copy may share its parameters with the original: none is changed.
    """
    computed = {name: entry for name, entry in computed_weights(twin).items() if entry.whole}
    values = {name: entry.value().detach().clone() for name, entry in computed.items()}
    for name, entry in computed.items():
        module, attribute = entry.owner, entry.attribute
        if attribute in vars(module):
            del vars(module)[attribute]
            for key, hook in list(module._forward_pre_hooks.items()):
                if is_part_of_the_model(hook):
                    del module._forward_pre_hooks[key]
        else:
            del module._modules["parametrizations"]._modules[attribute]  # type: ignore[union-attr]
            if not module._modules["parametrizations"]._modules:  # type: ignore[union-attr]
                del module._modules["parametrizations"]
                module.__class__ = type(module).__bases__[0]
        for source in entry.sources:
            local = source.name.rpartition(".")[2]
            module._parameters.pop(local, None)
            module._buffers.pop(local, None)
        module._parameters[attribute] = nn.Parameter(values[name])
    return computed


def said_of_sources(couplings: Sequence[Coupling], computed: Mapping[str, Computed]) -> list[Coupling]:
    """Return the couplings of the plain form of a network as those of the network: members by their sources."""
    if not computed:
        return list(couplings)
    return [
        replace(
            coupling,
            members=tuple(
                member
                for plain in coupling.members
                for member in (_members(plain, computed[plain.parameter]) if plain.parameter in computed else (plain,))
            ),
        )
        for coupling in couplings
    ]


def _members(plain: Member, entry: Computed) -> list[Member]:
    """Return the members of the sources for one axis of a computed weight.

    Where weight norm keeps the length of each slice along the axis, that number alone carries the energy.
    """
    has_length = any(s.kind == "scale" and s.dim == plain.dim and s.is_parameter for s in entry.sources)
    members = []
    for source in entry.sources:
        counts = plain.counts and source.is_parameter
        if source.kind == "weight":
            members.append(Member(source.name, plain.dim, plain.channels, plain.side, counts and not has_length))
        elif source.kind == "scale" and source.dim == plain.dim:
            members.append(Member(source.name, plain.dim, plain.channels, plain.side, counts))
        elif source.kind == "rows" and source.dim == plain.dim:
            members.append(Member(source.name, 0, plain.channels, plain.side, counts=False))
        elif source.kind == "columns" and source.dim != plain.dim:
            members.append(Member(source.name, 0, _spread(plain, entry.shape, source.dim), plain.side, counts=False))
    return members


def _spread(plain: Member, shape: Sequence[int], dim: int) -> Tensor:
    """Return the channel of each entry of a vector over all axes of a weight but `dim`."""
    view = [1] * len(shape)
    view[plain.dim] = len(plain.channels)
    spread = plain.channels.reshape(view).expand([1 if axis == dim else size for axis, size in enumerate(shape)])
    return spread.reshape(-1)


def plain_twin(model: nn.Module) -> tuple[nn.Module, dict[str, Computed]]:
    """Return a copy of a network with plain weights, that shares what parameters it can, and what was computed.

    Raises:
        ValueError: The network cannot be copied.
    """
    twin = stand_alone(copy_model(model, shared))
    return twin, make_plain(twin.eval())
