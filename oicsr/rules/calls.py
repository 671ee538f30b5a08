"""What a rule reads off a call in the graph: the operator's name, arguments and shapes."""

from __future__ import annotations

from collections.abc import Iterator
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx

UNKNOWN = 1_000_003  # a prime: no split of an axis of so many, and no width of a layer, fits it by chance


def operator_name(node: fx.Node) -> str:
    """Return the name of the operator that is called, without overload: `aten::relu`."""
    schema = getattr(node.target, "_schema", None)
    return str(schema.name) if schema is not None else f"python::{getattr(node.target, '__name__', node.target)}"


def called(node: fx.Node) -> str:
    """Return how a message calls what is called: `aten.relu.default`, or a function's name without its address."""
    return str(getattr(node.target, "__name__", "") if isinstance(node.target, FunctionType) else node.target)


def module_path(node: fx.Node) -> str:
    """Return the qualified name of the module that a call is made in; empty for the network itself."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()))[0] if stack else ""
    return str(path).removeprefix("L['self'].").removeprefix("L__self__.").removeprefix("L['self']")


def enclosing(path: str) -> Iterator[str]:
    """Yield the names of a module and of those that it is part of, down to the network's, which is empty."""
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Return the shape of the value that `node` produces, with `UNKNOWN` for a size that depends on the data."""
    return _static(node.meta["val"])


def _static(value: Tensor) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else _symbolic(size) for size in value.shape)


def _symbolic(size: torch.SymInt) -> int:
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols  # imports SymPy: 0.3 s

    return UNKNOWN if free_unbacked_symbols(size) else int(size)


def shapes_of(node: fx.Node) -> list[tuple[int, ...] | None]:
    """Return the shapes of all values that `node` produces; None for one that is not a tensor."""
    values = node.meta["val"] if gives_many(node) else [node.meta.get("val")]
    return [_static(value) if isinstance(value, Tensor) else None for value in values]


def gives_many(node: fx.Node) -> bool:
    """Return whether a call gives a list or tuple of tensors."""
    return isinstance(node.meta.get("val"), list | tuple)


def argument(node: fx.Node, which: int | str, default: Any = None) -> Any:
    """Return an argument of a call by position or name in the operator's schema, whichever way it was given.

    An argument that was left out has the schema's default, or `default` where that is None.
    """
    schema = getattr(node.target, "_schema", None)
    names = [] if schema is None else [entry.name for entry in schema.arguments]
    position = which if isinstance(which, int) else names.index(which) if which in names else len(node.args)
    if position < len(node.args):
        return node.args[position]
    name = which if isinstance(which, str) else names[which] if which < len(names) else ""
    if name in node.kwargs:
        return node.kwargs[name]
    if name not in names:  # another overload has it
        return default
    declared = schema.arguments[position].default_value if position < len(names) and schema is not None else None
    return default if declared is None else declared


def start_of(node: fx.Node, width: int) -> int:
    """Return where a slice of an axis begins, which PyTorch brings within the axis."""
    start = int(argument(node, "start", 0))
    return max(start + width, 0) if start < 0 else min(start, width)


def tensor_inputs(node: fx.Node) -> list[fx.Node]:
    """Return the nodes that `node` reads and that hold one tensor."""
    return [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]


def source_of(node: fx.Node) -> fx.Node:
    """Return the node of a call's first tensor argument."""
    source = argument(node, 0)
    if isinstance(source, fx.Node):
        return source
    return tensor_inputs(node)[0]


def axis_of(node: fx.Node, ndim: int, name: str = "dim", default: int | None = None) -> int:
    """Return the argument `dim` of a call as an axis from 0 to `ndim - 1`."""
    return int(argument(node, name, default)) % max(1, ndim)


def axes_of(node: fx.Node, ndim: int, name: str = "dim") -> set[int]:
    """Return the argument `dim` of a call, one axis or several, as axes from 0 to `ndim - 1`; all where it is none."""
    dims = argument(node, name)
    if dims is None or dims == []:
        return set(range(ndim))
    return {int(dim) % ndim for dim in (dims if isinstance(dims, list | tuple) else [dims])}


def is_integer(node: fx.Node) -> bool:
    """Return whether a value holds whole numbers, and no truth values."""
    return not node.meta["val"].dtype.is_floating_point and str(node.meta["val"].dtype) != "torch.bool"
