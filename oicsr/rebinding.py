"""Optimisers through surgery: the same optimiser goes on with the smaller network's parameters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from oicsr.plan import PruningPlan, Slice


def slices_by_name(slices: Iterable[Slice]) -> dict[str, list[Slice]]:
    """Return the slices of each parameter."""
    by_name: dict[str, list[Slice]] = defaultdict(list)
    for entry in slices:
        by_name[entry.parameter].append(entry)
    return by_name


def select_slices(tensor: Tensor, entry: Slice) -> Tensor:
    """Return the slices of `tensor` that stay; the memory format (channels_last) stays as well."""
    picked = tensor.index_select(entry.dim, torch.tensor(entry.kept, device=tensor.device))
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return picked.contiguous(memory_format=torch.channels_last)
    return picked


def check_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], plan: PruningPlan
) -> None:
    """Make sure that an optimiser can follow a network through surgery; nothing is changed.

    Args:
        optimizer: The optimiser.
        parameters: The network's parameters by name.
        plan: The plan.

    Raises:
        ValueError: The optimiser holds none of the parameters, or keeps a state of theirs that cannot be sliced; says
            which.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if not any(id(parameter) in names for parameter in held):
        raise ValueError(
            f"the {type(optimizer).__name__} holds none of the model's parameters: it is an optimiser of another "
            "model, or of this one before surgery"
        )
    cut = {entry.parameter for entry in plan.slices}
    for parameter in held:
        name = names.get(id(parameter))
        if name is None:
            continue
        for key, value in optimizer.state.get(parameter, {}).items():
            if not _can_follow(value, parameter, is_cut=name in cut):
                raise ValueError(
                    f"the {type(optimizer).__name__} keeps {key!r} ({_describe(value)}) for {name!r}, whose shape is "
                    f"{tuple(parameter.shape)}: that cannot be sliced. Leave `optimizer` out, and make a new "
                    f"{type(optimizer).__name__} of the smaller network's parameters"
                )


def _can_follow(value: Any, parameter: Tensor, *, is_cut: bool) -> bool:
    """Return whether a state stays right: sliced where it has the parameter's axes, kept where it is one number."""
    if isinstance(value, Tensor):
        kept = value.numel() <= (1 if is_cut else parameter.numel())
        return kept or _is_factor(value, parameter)
    return not any(tensor.numel() > 1 for tensor in _tensors(value))


def _is_factor(value: Tensor, parameter: Tensor) -> bool:
    """Return whether a state has the axes of a parameter, none or some of size 1 (Adafactor's rows and columns)."""
    pairs = zip(value.shape, parameter.shape, strict=False)
    return value.ndim == parameter.ndim and all(own in (1, size) for own, size in pairs)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def _describe(value: Any) -> str:
    return f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__} of tensors"


def rebind(
    optimizer: torch.optim.Optimizer,
    before: Mapping[str, nn.Parameter],
    after: Mapping[str, nn.Parameter],
    plan: PruningPlan,
) -> None:
    """Let an optimiser of the parameters `before` hold those of `after`, its state sliced alike; others stay in it."""
    names = {id(parameter): name for name, parameter in before.items()}
    by_name = slices_by_name(plan.slices)
    for group in optimizer.param_groups:
        for position, old in enumerate(group["params"]):
            name = names.get(id(old))
            if name is None:
                continue
            group["params"][position] = after[name]
            if old in optimizer.state:
                state = optimizer.state.pop(old)
                optimizer.state[after[name]] = {
                    key: _sliced_state(value, old, by_name[name]) for key, value in state.items()
                }


def _sliced_state(value: object, parameter: Tensor, slices: list[Slice]) -> object:
    if not isinstance(value, Tensor) or not _is_factor(value, parameter):
        return value
    for entry in slices:
        if value.shape[entry.dim] == parameter.shape[entry.dim]:
            value = select_slices(value, entry)
    return value
