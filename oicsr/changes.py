"""What surgery changes beside slices: numbers on modules that stand for widths, and weights that are multiplied."""

from __future__ import annotations

import copy
import re
from argparse import Namespace
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, is_dataclass, replace
from fractions import Fraction
from numbers import Integral
from types import SimpleNamespace
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from oicsr.coupling import Attribute, Axis, Coupling, Rescaled
from oicsr.networks.classes import own_bases

DEEPEST = 3  # entries within entries of an attribute
NAME = re.compile(rf"[^\W\d]\w*(\.\w+){{0,{DEEPEST}}}")  # of an attribute, or of an entry of what it holds
Kept = Mapping[str, Sequence[int]]  # coupling name to the channels that stay


@dataclass(frozen=True)
class AttributeChange:
    """A number on a module, before and after surgery. `module` is empty for the network itself."""

    module: str
    name: str
    before: float
    after: float

    def __str__(self) -> str:
        return f"{self.module + '.' if self.module else ''}{self.name} {self.before:g} -> {self.after:g}"


@dataclass(frozen=True)
class Scaling:
    """Slices of one parameter axis, by their positions before surgery, that are multiplied by `factor`."""

    parameter: str
    dim: int
    factor: float
    slices: tuple[int, ...]


# ----------------------------------------------------------------------------------------------------------------
# from couplings
# ----------------------------------------------------------------------------------------------------------------


def changed_value(attribute: Attribute, kept: Collection[int], size: int) -> float:
    """Return an attribute's value where some of `size` channels stay.

    Raises:
        ValueError: A whole number would no longer be one.
    """
    if attribute.channels is not None:
        stay = set(kept)
        return attribute.value - sum(channel not in stay for channel in attribute.channels)
    left = len(kept)
    if not isinstance(attribute.value, int):
        return float(attribute.value * (left / size) ** attribute.power)
    value = attribute.value * Fraction(left, size) ** int(attribute.power)
    if value.denominator != 1:
        raise ValueError(
            f"{attribute.module + '.' if attribute.module else ''}{attribute.name} is {attribute.value}, and would be "
            f"{float(value):g} with {left} of {size} channels left: keep a number with which it is whole"
        )
    return int(value)


def attribute_changes(couplings: Sequence[Coupling], kept: Kept) -> tuple[AttributeChange, ...]:
    """Return the numbers on modules that change; one that follows several couplings follows each in turn.

    Raises:
        ValueError: A whole number would no longer be one.
    """
    now: dict[tuple[str, str], Attribute] = {}
    before: dict[tuple[str, str], float] = {}
    for coupling in couplings:
        for attribute in coupling.attributes:
            key = attribute.module, attribute.name
            current = replace(attribute, value=now[key].value) if key in now else attribute
            before.setdefault(key, attribute.value)
            value = changed_value(current, kept[coupling.name], coupling.num_channels)
            now[key] = replace(attribute, value=value)
    return tuple(
        AttributeChange(*key, before[key], entry.value) for key, entry in now.items() if entry.value != before[key]
    )


def scalings(couplings: Sequence[Coupling], kept: Kept) -> tuple[Scaling, ...]:
    """Return the slices that are multiplied, for every coupling that loses channels."""
    found = []
    for coupling in couplings:
        left, size = len(kept[coupling.name]), coupling.num_channels
        if left < size:
            share = left / size
            found += [Scaling(r.parameter, r.dim, share**r.power, r.slices) for r in coupling.rescaled]
    return tuple(found)


def positions_left(rescaled: Rescaled, slices: Mapping[Axis, Tensor]) -> tuple[int, ...]:
    """Return the positions of the slices after others of their axis, bool `(size of the axis,)`, went."""
    stays = slices.get((rescaled.parameter, rescaled.dim))
    if stays is None:
        return rescaled.slices
    new = (torch.cumsum(stays, 0) - 1).tolist()
    return tuple(new[position] for position in rescaled.slices if bool(stays[position]))


# ----------------------------------------------------------------------------------------------------------------
# one plan after another
# ----------------------------------------------------------------------------------------------------------------


def joined_changes(first: Sequence[AttributeChange], second: Sequence[AttributeChange]) -> tuple[AttributeChange, ...]:
    """Return what two plans change, one after the other.

    Raises:
        ValueError: The second plan expects another value than the first one leaves.
    """
    changes = {(change.module, change.name): change for change in first}
    for change in second:
        key = change.module, change.name
        earlier = changes.get(key)
        if earlier is not None and earlier.after != change.before:
            raise ValueError(
                f"plans do not follow one another: {change.module}.{change.name} is {earlier.after:g} after the first "
                f"plan, the second expects {change.before:g}"
            )
        changes[key] = change if earlier is None else replace(earlier, after=change.after)
    return tuple(change for change in changes.values() if change.before != change.after)


def joined_scalings(
    first: Sequence[Scaling], second: Sequence[Scaling], kept: Mapping[Axis, Sequence[int]]
) -> tuple[Scaling, ...]:
    """Return what two plans multiply, one after the other. `kept`: the slices that the first plan leaves, by axis."""
    moved = [
        replace(entry, slices=tuple(kept[entry.parameter, entry.dim][i] for i in entry.slices))
        if (entry.parameter, entry.dim) in kept
        else entry
        for entry in second
    ]
    return (*first, *moved)


# ----------------------------------------------------------------------------------------------------------------
# done to a network
# ----------------------------------------------------------------------------------------------------------------


def check_attributes(model: nn.Module, changes: Iterable[AttributeChange]) -> None:
    """Raise ValueError where a number on a module is not what a plan expects."""
    modules = dict(model.named_modules())
    for change in changes:
        module = modules.get(change.module)
        value = None if module is None else _read_number(module, change.name)
        if not (is_whole(value) or type(value) is float) or value != change.before:
            where = f"{change.module}.{change.name}" if change.module else change.name
            raise ValueError(f"the plan expects {where} to be {change.before:g}; in this network it is {value!r}")


def set_attributes(model: nn.Module, changes: Iterable[AttributeChange]) -> None:
    """Set the numbers on the modules of `model`, in place."""
    for change in changes:
        _write_number(model.get_submodule(change.module), change.name, change.after)


def _read_number(module: nn.Module, name: str) -> Any:
    """Return an attribute, or an entry of what it holds (`sizes.1`, `config.enc.heads`); None where there is none."""
    name, *path = name.split(".")
    value = vars(module).get(name, None if path else numbers_of_class(type(module)).get(name))
    for entry in path:
        named = _named_entries(value)
        if named is not None:
            value = named.get(entry)
        else:
            value = value[int(entry)] if is_sequence(value) and entry.isdigit() and int(entry) < len(value) else None
    return value


def is_sequence(value: object) -> TypeGuard[list[Any] | tuple[Any, ...]]:
    """Return whether a value is a list or tuple of which one with another entry can be made: one by name as well."""
    return type(value) in (list, tuple, torch.Size) or (isinstance(value, tuple) and hasattr(value, "_fields"))


def is_settings(value: object) -> bool:
    """Return whether a value is an object that holds the settings of a network: its numbers are attributes."""
    if isinstance(value, type) or not hasattr(value, "__dict__"):
        return False
    plain = isinstance(value, SimpleNamespace | Namespace) or is_dataclass(value)
    return plain or type(value).__name__.endswith("Config")


def _named_entries(value: object) -> dict[str, Any] | None:
    """Return what a dictionary or an object of settings holds by name; None of anything else."""
    if type(value) is dict:
        return value
    return vars(value) if is_settings(value) else None


def is_whole(value: object) -> bool:
    """Return whether a value is a whole number, be it one of NumPy; a truth value or a member of an Enum is none."""
    return type(value) is int or (isinstance(value, Integral) and not isinstance(value, int))


def numbers_of_class(cls: type) -> Mapping[str, int]:
    """Return the whole numbers that a class of modules gives all its modules by name; PyTorch's own are no widths."""
    found: dict[str, int] = {}
    for base in reversed(own_bases(cls)):
        found = {name: value for name, value in found.items() if name not in vars(base)}
        found |= {name: value for name, value in vars(base).items() if type(value) is int and name[0] != "_"}
    return found


def whole_numbers(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Yield the whole numbers on a module by name, also those that it has of its class.

    Those in lists, dictionaries and settings go by `name.entry`, and by `name.entry.entry` within one another.
    """
    for name, value in vars(module).items():
        if is_whole(value):
            yield name, int(value)
        else:
            yield from _entries(name, value, DEEPEST)
    yield from ((name, value) for name, value in numbers_of_class(type(module)).items() if name not in vars(module))


def _entries(name: str, value: object, most: int) -> Iterator[tuple[str, int]]:
    """Yield the whole numbers in a value; settings within something else belong to another part of the network."""
    parts: Iterable[tuple[Any, Any]]
    parts = enumerate(value) if is_sequence(value) else (_named_entries(value) or {}).items()
    for key, entry in parts:
        if not is_sequence(value) and not (type(key) is str and key.isidentifier()):
            continue
        if is_whole(entry):
            yield f"{name}.{key}", int(entry)
        elif most > 1 and (type(entry) is dict or is_sequence(entry)):
            yield from _entries(f"{name}.{key}", entry, most - 1)


def _write_number(module: nn.Module, name: str, number: float) -> None:
    """Set an attribute, or an entry of what it holds, which is replaced, as another module may hold it too.

    Layers of einops keep the sizes of axes as a dictionary, and beside it as a tuple, from which they read them.
    """
    attributes = vars(module)
    name, *path = name.split(".")
    old = attributes.get(name)  # a number of its class becomes the module's own
    new: Any = _with_entry(old, path, number)
    if isinstance(old, dict) and attributes.get(f"_{name}") == tuple(old.items()):
        attributes[f"_{name}"] = tuple(new.items())
    attributes[name] = new


def _with_entry(old: Any, path: Sequence[str], number: float) -> Any:
    """Return a copy of a container with another number at a place in it, which containers around it are copied for."""
    if not path:
        return number
    entry, *rest = path
    if isinstance(old, dict):
        return {**old, entry: _with_entry(old[entry], rest, number)}
    if is_settings(old):
        new = copy.copy(old)
        vars(new)[entry] = _with_entry(vars(old)[entry], rest, number)  # some are frozen
        return new
    place = int(entry)
    entries = [*old[:place], _with_entry(old[place], rest, number), *old[place + 1 :]]
    return type(old)(*entries) if hasattr(old, "_fields") else type(old)(entries)


def drop_caches(model: nn.Module, cut: Set[str]) -> None:
    """Give modules of `model` an empty dictionary for one of tensors that they call a cache: it holds the old widths.

    Tables of positions are kept so in evaluation mode (`attention_bias_cache` of LeViT and TinyViT), by device. Those
    of a module that neither has nor holds one of the tensors that are `cut` stay: a table that is made with the module
    (of sines and cosines) would not come back.
    """
    for path, module in model.named_modules():
        if not any(name.startswith(f"{path}." if path else "") for name in cut):
            continue
        for name, value in list(vars(module).items()):
            if "cache" in name and type(value) is dict and any(isinstance(entry, Tensor) for entry in value.values()):
                vars(module)[name] = {}


def scale_slices(model: nn.Module, entries: Sequence[Scaling]) -> None:
    """Multiply slices of parameters of `model`: new parameters take the place of the old ones, which stay as they are.

    Gradients are divided by the factor: they are those of the smaller network's own parameters.
    """
    if not entries:
        return
    by_name: dict[str, list[Scaling]] = {}
    for entry in entries:
        by_name.setdefault(entry.parameter, []).append(entry)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    new = {id(parameters[name]): _scaled(parameters[name], group) for name, group in by_name.items()}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in new:
                module._parameters[name] = new[id(parameter)]


def _scaled(parameter: nn.Parameter, entries: Iterable[Scaling]) -> nn.Parameter:
    data = parameter.detach().clone()
    grad = None if parameter.grad is None else parameter.grad.clone()
    for entry in entries:
        index = torch.tensor(entry.slices, dtype=torch.int64, device=data.device)
        data.index_copy_(entry.dim, index, data.index_select(entry.dim, index) * entry.factor)
        if grad is not None:
            grad.index_copy_(entry.dim, index, grad.index_select(entry.dim, index) / entry.factor)
    scaled = nn.Parameter(data, requires_grad=parameter.requires_grad)
    scaled.grad = grad
    return scaled


# ----------------------------------------------------------------------------------------------------------------
# read from JSON
# ----------------------------------------------------------------------------------------------------------------


def parse_attribute(entry: Any) -> AttributeChange:
    """Read one change of an attribute from a plan's JSON; raises ValueError where it is none."""
    match entry:
        case [str(module), str(name), int() | float() as before, int() | float() as after] if NAME.fullmatch(name):
            return AttributeChange(module, name, before, after)
    raise ValueError(f"not a pruning plan: {str(entry)[:80]!r} is not [module, attribute, before, after]")


def parse_scaling(entry: Any) -> Scaling:
    """Read one scaling from a plan's JSON; raises ValueError where it is none."""
    match entry:
        case [str(parameter), int(dim), float() | int() as factor, list(slices)] if dim >= 0 and all(
            type(position) is int and position >= 0 for position in slices
        ):
            return Scaling(parameter, dim, float(factor), tuple(slices))
    raise ValueError(f"not a pruning plan: {str(entry)[:80]!r} is not [parameter, dim, factor, slices]")
