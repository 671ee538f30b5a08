"""The classes of a network's modules: what of their code is not PyTorch's."""

from __future__ import annotations

from types import FunctionType


def own_bases(kind: type) -> list[type]:
    """Return a class and those that it is made of, the nearest first, without PyTorch's."""
    return [base for base in kind.__mro__ if base is not object and base.__module__.partition(".")[0] != "torch"]


def quiet_base() -> type:
    """Return a new first base for a class that is made from a user's.

    It keeps that class from the `__init_subclass__` of the others: a registry would take it.
    """
    return type("_Quiet", (), {"__init_subclass__": classmethod(lambda cls, **_: None)})


def methods(kind: type) -> dict[str, FunctionType]:
    """Return the functions that a class itself defines, by name."""
    return {name: value for name, value in vars(kind).items() if isinstance(value, FunctionType)}
