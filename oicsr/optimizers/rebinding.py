"""Optimisers through surgery: the same optimiser goes on with the smaller network's parameters."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from oicsr.optimizers.beside import replace_tensors, said_of_ties
from oicsr.plan import PruningPlan, Slice

STUCK = "that cannot be sliced"


def slices_by_name(slices: Iterable[Slice]) -> dict[str, list[Slice]]:
    """Return the slices of each parameter."""
    by_name: dict[str, list[Slice]] = defaultdict(list)
    for entry in slices:
        by_name[entry.parameter].append(entry)
    return by_name


def select_slices(tensor: Tensor, entry: Slice) -> Tensor:
    """Return the slices of `tensor` that stay; the memory format (channels_last) stays as well."""
    picked = tensor.index_select(entry.dim, torch.tensor(entry.kept, device=tensor.device))
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.ndim)
    if last is not None and tensor.is_contiguous(memory_format=last):
        return picked.contiguous(memory_format=last)
    return picked


def check_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], plan: PruningPlan, held: str = ""
) -> None:
    """Make sure that an optimiser can follow a network through surgery; nothing is changed.

    Args:
        optimizer: The optimiser.
        parameters: The network's parameters by name.
        plan: The plan.
        held: The attribute of the network that holds the optimiser, where one does.

    Raises:
        ValueError: The optimiser holds none of the parameters, or keeps a state of theirs that cannot be sliced; says
            which.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    if not holds(optimizer, names):
        raise ValueError(
            f"the {type(optimizer).__name__} holds none of the model's parameters: it is an optimiser of another "
            "model, or of this one before surgery"
        )
    cut = slices_by_name(plan.slices)
    for one in _with_inner(optimizer):
        said = _said_of_state(one, names, cut) or _said_of_factors(one, names, cut) or said_of_ties(one, names)
        if said:
            kind = type(one).__name__
            instead = f"Set {held} to None for the surgery" if held else "Leave `optimizer` out"
            raise ValueError(
                f"the {kind}{held and f' in {held}'} keeps {said}. {instead}, and make a new {kind} of the smaller "
                "network's parameters"
            )


def _said_of_state(one: torch.optim.Optimizer, names: Mapping[int, str], cut: Container[str]) -> str:
    """Return what to say of the first state of an optimiser that cannot be sliced; empty where all can be."""
    by_element = _keys_by_element(one)
    for parameter, state in one.state.items():
        name = names.get(id(parameter))
        for key, value in state.items() if name is not None else ():
            why = _why_stuck(value, parameter, is_cut=name in cut, by_element=key in by_element)
            if why:
                shape = tuple(parameter.shape)
                return f"{key!r} ({_describe(value)}) for {name!r}, whose shape is {shape}: {why}"
    return ""


def _said_of_factors(one: torch.optim.Optimizer, names: Mapping[int, str], cut: Mapping[str, Sequence[Slice]]) -> str:
    """Describe the first factored state (a mean over an axis) whose axes would change for the smaller weight.

    Some Adafactors (big_vision's, timm's `adafactorbv`) work out at each step which axes they take means over: the two
    largest ones, from a size on that is an option of theirs.
    """
    for group in one.param_groups:
        least = group.get("min_dim_size_to_factor", math.inf)
        for parameter in group["params"] if one.state else ():
            name, shape = names.get(id(parameter), ""), tuple(parameter.shape)
            after = _shape_after(shape, cut.get(name, ()))
            if _factored(shape, least) != _factored(after, least):
                return (
                    f"means over axes of {name!r}, whose shape is {shape}, and would keep others, or none, of the "
                    f"shape {after} after surgery"
                )
    return ""


def _shape_after(shape: tuple[int, ...], slices: Sequence[Slice]) -> tuple[int, ...]:
    smaller = list(shape)
    for entry in slices:
        smaller[entry.dim] = len(entry.kept)
    return tuple(smaller)


def _factored(shape: tuple[int, ...], least: float) -> list[int]:
    """Return the two largest axes, the last ones of equal ones, in ascending order; none if one is below a size."""
    axes = sorted(range(len(shape)), key=lambda axis: (shape[axis], axis))[-2:]
    return axes if len(axes) == 2 and shape[axes[0]] >= least else []  # none are, where the option is missing


def holds(optimizer: torch.optim.Optimizer, parameters: Container[int]) -> bool:
    """Return whether an optimiser holds some of the parameters, which are given by their identities."""
    return any(id(parameter) in parameters for group in optimizer.param_groups for parameter in group["params"])


def _with_inner(
    optimizer: torch.optim.Optimizer, outer: tuple[torch.optim.Optimizer, ...] = ()
) -> Iterator[torch.optim.Optimizer]:
    """Yield an optimiser, and those that it wraps (`base_optimizer` of SAM): they keep states of their own."""
    yield optimizer
    for value in vars(optimizer).values():
        for inner in value if isinstance(value, list | tuple) else (value,):
            if isinstance(inner, torch.optim.Optimizer) and inner not in (*outer, optimizer):
                yield from _with_inner(inner, (*outer, optimizer))


def _why_stuck(value: Any, parameter: Tensor, *, is_cut: bool, by_element: bool) -> str:
    """Say why a state would be wrong, sliced where it has the parameter's axes and else kept; empty where it is right.

    For a square weight, products of all pairs of its rows (Shampoo) look like one number for each element.
    """
    if not isinstance(value, Tensor):
        return STUCK if any(tensor.numel() > 1 for tensor in _tensors(value)) else ""
    if value.numel() <= (1 if is_cut else parameter.numel()):
        return ""
    if not _is_factor(value, parameter):
        return STUCK
    if by_element or not (_is_square(parameter) and value.shape == parameter.shape):
        return ""
    return (
        f"{STUCK}, as it may hold products of rows (Shampoo, SOAP) in the place of one number for each element, and no "
        "weight that is not square tells which"
    )


def _is_square(parameter: Tensor) -> bool:
    return parameter.ndim == 2 and parameter.shape[0] == parameter.shape[1]


def _keys_by_element(optimizer: torch.optim.Optimizer) -> set[str]:
    """Return the names of states that hold one number for each element of a weight, as weights not square show.

    PyTorch's own optimisers keep nothing else that has a square weight's shape.
    """
    own, others = set[str](), set[str]()
    trusted = type(optimizer).__module__.startswith("torch.optim.")
    for parameter, state in optimizer.state.items():
        for key, value in state.items() if isinstance(parameter, Tensor) and parameter.ndim > 1 else ():
            if trusted:
                own.add(key)
            elif isinstance(value, Tensor) and value.numel() > 1 and not _is_square(parameter):
                (own if value.shape == parameter.shape else others).add(key)
    return own - others


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
    for one in [*_with_inner(optimizer)]:
        replace_tensors(one, {key: after[name] for key, name in names.items()})
        for old in [parameter for parameter in one.state if id(parameter) in names]:
            name, state = names[id(old)], one.state.pop(old)
            one.state[after[name]] = {key: _sliced_state(value, old, by_name[name]) for key, value in state.items()}


def _sliced_state(value: object, parameter: Tensor, slices: list[Slice]) -> object:
    if not isinstance(value, Tensor) or not _is_factor(value, parameter):
        return value
    for entry in slices:
        if value.shape[entry.dim] == parameter.shape[entry.dim]:
            value = select_slices(value, entry)
    return value
