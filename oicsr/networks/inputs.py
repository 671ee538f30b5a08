"""Example inputs and outputs of any nesting: tensors in tuples, lists, dictionaries, dataclasses and the like."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Inputs:
    """The arguments of one forward call.

    Attributes:
        args: Positional arguments, of any nesting.
        kwargs: Keyword arguments, likewise.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def call(self, model: Callable[..., Any]) -> Any:
        """Return what `model` gives for a copy of these arguments: a forward may change what it is called with."""
        return self.copied().call_as_is(model)

    def call_as_is(self, model: Callable[..., Any]) -> Any:
        """Return what `model` gives for these arguments themselves (those of a trace are copies already)."""
        return model(*self.args, **self.kwargs)

    def copied(self) -> Inputs:
        """Return the same arguments in other containers and tensors; one that is given twice stays one tensor."""
        copies: dict[int, Tensor] = {}

        def copy(tensor: Tensor) -> Tensor:
            """Return the copy of a tensor."""
            if id(tensor) not in copies:
                copies[id(tensor)] = _copied(tensor)
            return copies[id(tensor)]

        return self.map(copy)

    def tensors(self) -> list[Tensor]:
        """Return the tensors in the arguments, in order."""
        found: list[Tensor] = []

        def note(tensor: Tensor) -> Tensor:
            """Keep a tensor."""
            found.append(tensor)
            return tensor

        self.map(note)
        return found

    def described(self) -> str:
        """Return the arguments in words: `a tensor (2, 3, 32, 32) of float32, one list`."""
        named = [(None, value) for value in self.args] + list(self.kwargs.items())
        words = [_described(value) if name is None else f"{name}: {_described(value)}" for name, value in named]
        return ", ".join(words) or "nothing"

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """Return the same arguments with every tensor changed."""
        return Inputs(map_tensors(self.args, change), map_tensors(dict(self.kwargs), change))

    def replace(self, tensors: Sequence[Tensor]) -> Inputs:
        """Return the same arguments with other tensors, in the order of `tensors()`."""
        following = iter(tensors)
        return self.map(lambda _: next(following))


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    return f"one {type(value).__name__}"


def _copied(tensor: Tensor) -> Tensor:
    """Return a copy that requires a gradient, and passes it on, if the tensor does; a parameter stays itself."""
    if isinstance(tensor, nn.Parameter):
        return tensor
    if tensor.requires_grad and tensor.is_leaf:
        return tensor.detach().clone().requires_grad_()
    with torch.set_grad_enabled(tensor.requires_grad or torch.is_grad_enabled()):
        return tensor.clone()


ExampleInputs = Tensor | Sequence[Any] | Mapping[str, Any] | Inputs


def as_inputs(example_inputs: ExampleInputs) -> Inputs:
    """Return the arguments of a forward call.

    Args:
        example_inputs: A tensor: the only argument. A tuple or list: the positional arguments, each of any nesting
            (tensors, None, numbers, lists, dictionaries, dataclasses). A dictionary: the keyword arguments.

    Raises:
        ValueError: It is none of these.
    """
    if isinstance(example_inputs, Inputs):
        return example_inputs
    if isinstance(example_inputs, Tensor):
        return Inputs((example_inputs,), {})
    if isinstance(example_inputs, Mapping):
        if not all(isinstance(key, str) for key in example_inputs):
            raise ValueError(
                f"example_inputs is a dictionary with keys {list(example_inputs)!r}: a dictionary holds the keyword "
                "arguments of forward; put a dictionary that is one argument into a tuple, (inputs,)"
            )
        return Inputs((), dict(example_inputs))
    if isinstance(example_inputs, Sequence) and not isinstance(example_inputs, str | bytes):
        return Inputs(tuple(example_inputs), {})
    raise ValueError(
        f"example_inputs is a {type(example_inputs).__name__}; it must be a tensor, a sequence of positional arguments "
        "or a dictionary of keyword arguments"
    )


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in a value of any nesting; objects that are no containers are looked into by attribute.

    An object that refers back to one that holds it is looked into once.
    """
    yield from _tensors_in(value, frozenset())


def _tensors_in(value: Any, within: frozenset[int]) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif id(value) not in within:
        for part in _parts(value):
            yield from _tensors_in(part, within | {id(value)})


def _parts(value: Any) -> Sequence[Any]:
    if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):  # what `.item()` gives under the exporter
        return []
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    if isinstance(value, type | nn.Module) or callable(value) or not hasattr(value, "__dict__"):
        return []
    return list(vars(value).values())


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return `value` with every tensor in tuples, lists, dictionaries and dataclasses changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        parts = [map_tensors(part, change) for part in value]
        if all(new is old for new, old in zip(parts, value, strict=True)):
            return value  # a shape, which is no plain tuple
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, list):
        return [map_tensors(part, change) for part in value]
    if isinstance(value, Mapping):
        changed = {key: map_tensors(part, change) for key, part in value.items()}
        return changed if type(value) is dict else _like(value, changed)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        return dataclasses.replace(value, **{name: map_tensors(getattr(value, name), change) for name in fields})
    return value


def _like(mapping: Mapping[Any, Any], values: dict[Any, Any]) -> Any:
    """Return `values` as the type of `mapping` (an ordered dictionary, a batch of a tokenizer)."""
    try:
        return type(mapping)(values)  # type: ignore[call-arg]
    except TypeError:
        return values
