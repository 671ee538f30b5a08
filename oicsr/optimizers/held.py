"""Optimisers that a network holds (`self.opt = Adam(self.parameters())`), in the copy that surgery makes of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from oicsr.networks.copying import COPY_ERRORS, CopiedTensors, first_line
from oicsr.optimizers.rebinding import holds

Memo = dict[int, Any]


def held_optimizers(model: nn.Module, small: nn.Module, memo: Memo) -> list[tuple[str, torch.optim.Optimizer]]:
    """Return the optimisers of its own parameters that the copy of a network holds, and how a message calls each.

    `copy.deepcopy` takes of an optimiser what `state_dict` takes; what else it keeps is copied here (the optimiser that
    SAM wraps). Parameters of others, which nothing but an optimiser led to, are theirs again and no copies.

    Args:
        model: The network.
        small: Its copy.
        memo: What `copy.deepcopy` noted on the way: copy by the identity of its original.

    Raises:
        ValueError: Something that an optimiser keeps cannot be copied; says what.
    """
    pairs: dict[int, torch.optim.Optimizer] = {}
    while new := {key: one for key, one in _copied(memo) if key not in pairs}:
        pairs |= new
        for key, one in new.items():
            _complete(one, _originals(memo)[key], memo, _attribute(model, key))
    own = {id(parameter) for parameter in small.parameters()}
    _give_back(list(pairs.values()), own, memo)
    return [(_attribute(model, key), one) for key, one in pairs.items() if holds(one, own)]


def _copied(memo: Memo) -> Iterator[tuple[int, torch.optim.Optimizer]]:
    return ((key, one) for key, one in memo.items() if isinstance(one, torch.optim.Optimizer) and id(one) != key)


def _originals(memo: Memo) -> dict[int, Any]:
    """Return the originals of all copies by their identity; `copy.deepcopy` keeps them alive in the memo itself."""
    return {id(original): original for original in memo.get(id(memo), ())}


def _attribute(model: nn.Module, wanted: int) -> str:
    """Return what to call the attribute of a network that holds an object, be it in a list or dictionary."""
    for prefix, module in model.named_modules():
        for name, value in vars(module).items():
            parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
            if wanted in map(id, (value, *parts)):
                return repr(f"{prefix}.{name}".strip("."))
    return "an attribute of the model"


def _complete(one: torch.optim.Optimizer, original: torch.optim.Optimizer, memo: Memo, attribute: str) -> None:
    """Copy what an optimiser keeps beside its state, but for methods of its own that a scheduler put over those."""
    for key, value in vars(original).items():
        if key not in vars(one) and not callable(getattr(type(one), key, None)):
            try:
                with CopiedTensors(torch.clone):
                    vars(one)[key] = copy.deepcopy(value, memo)
            except COPY_ERRORS as error:
                kind = type(one).__name__
                raise ValueError(
                    f"what the {kind} in {attribute} keeps as {key!r} cannot be copied ({type(error).__name__}: "
                    f"{first_line(error)}). Set {attribute} to None for the surgery, and make a new {kind} of the "
                    "smaller network's parameters"
                ) from error


def _give_back(optimizers: list[torch.optim.Optimizer], own: set[int], memo: Memo) -> None:
    """Let optimisers train what belongs to others (a discriminator) itself: copies of it would be seen by nobody."""
    groups = [group for one in optimizers for group in one.param_groups]
    lists = {id(group["params"]) for group in groups}
    copies = {id(parameter) for group in groups for parameter in group["params"]}
    foreign = copies - own
    foreign -= {id(tensor) for tensor in _reached(memo, lists)} if foreign else set()
    originals = _originals(memo) if foreign else {}
    theirs = {id(made): originals[key] for key, made in memo.items() if id(made) in foreign and key in originals}
    for group in groups:
        group["params"][:] = [theirs.get(id(parameter), parameter) for parameter in group["params"]]
    for one in optimizers:
        for made in [parameter for parameter in one.state if id(parameter) in theirs]:
            one.state[theirs[id(made)]] = one.state.pop(made)


def _reached(memo: Memo, but: set[int]) -> Iterator[Tensor]:
    """Yield the tensors in copied containers, attributes of objects among them; `but`: lists that are left out."""
    for key, made in memo.items():
        if key == id(memo) or id(made) in but:
            continue
        parts: Any = (
            made.values() if isinstance(made, Mapping) else made if isinstance(made, list | tuple | set) else ()
        )
        yield from (part for part in parts if isinstance(part, Tensor))
