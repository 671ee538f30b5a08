"""What an optimiser keeps of a network's parameters beside its groups and its state.

`ZeroRedundancyOptimizer` lists all parameters once more and sends those to the other processes; an optimiser of one's
own may keep them in a list, a dictionary by parameter, or as the network that they are in.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

CONTAINERS = (list, dict, tuple, set, frozenset)


def replace_tensors(optimizer: torch.optim.Optimizer, new: Mapping[int, Tensor]) -> None:
    """Put other parameters in the place of those of an optimiser, in all that it keeps but its state.

    Lists and dictionaries are changed in place, as others may hold them as well.

    Args:
        optimizer: The optimiser.
        new: The parameter to come by the identity of the one that goes.
    """
    seen: dict[int, Any] = {}
    for group in optimizer.param_groups:  # no attribute of an optimiser that passes on those of another one
        _replaced(group, new, seen)
    kept = vars(optimizer)
    for name, value in list(kept.items()):
        if name != "state":
            kept[name] = _replaced(value, new, seen)


def _replaced(value: Any, new: Mapping[int, Tensor], seen: dict[int, Any]) -> Any:
    """Return a value with other parameters in it: itself where it can be changed, or where none is in it."""
    if isinstance(value, Tensor):
        return new.get(id(value), value)
    if not isinstance(value, CONTAINERS) or id(value) in seen:
        return value
    seen[id(value)] = value
    if isinstance(value, dict):
        entries = [(_replaced(key, new, seen), _replaced(entry, new, seen)) for key, entry in value.items()]
        if any(key is not old for (key, _), old in zip(entries, value, strict=True)):
            value.clear()
        value.update(entries)
        return value
    parts = [_replaced(part, new, seen) for part in value]
    if all(part is old for part, old in zip(parts, value, strict=True)):
        return value
    if isinstance(value, list):
        value[:] = parts
        return value
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def said_of_ties(optimizer: torch.optim.Optimizer, parameters: Container[int]) -> str:
    """Return what to say of an optimiser that is tied to parameters in a way that cannot be replaced; empty if none is.

    Args:
        optimizer: The optimiser.
        parameters: The identities of the network's parameters.
    """
    held = [(name, part) for name, value in vars(optimizer).items() if name != "state" for part in _parts(value, set())]
    own = [part for _, part in held if isinstance(part, Tensor) and id(part) in parameters]
    memory = {place for tensor in own if (place := _memory(tensor))}
    for name, part in held:
        if isinstance(part, nn.Module) and any(id(parameter) in parameters for parameter in part.parameters()):
            return f"{name!r}, the {type(part).__name__} itself: it would go on with the larger network"
        if isinstance(part, Tensor) and not isinstance(part, nn.Parameter) and _memory(part) in memory:
            return f"{name!r}, the memory that the parameters are in: those of the smaller network are not in it"
    return ""


def _parts(value: Any, seen: set[int]) -> Iterator[Any]:
    """Yield what is in a value of any nesting, keys of dictionaries among it."""
    if not isinstance(value, CONTAINERS):
        yield value
    elif id(value) not in seen:
        seen.add(id(value))
        for part in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _parts(part, seen)


def _memory(tensor: Tensor) -> int:
    """Return the address of the memory that a tensor is in; 0 where it has none of its own."""
    if tensor.layout != torch.strided or tensor.is_meta:
        return 0
    return tensor.untyped_storage().data_ptr()
