"""Modules that tracing does not look into: each call becomes one operator in the graph, with a rule of its class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from oicsr.rules.table import find_leaf

LIBRARY = torch.library.Library("oicsr", "FRAGMENT")
LIBRARY.define("module_call(Tensor[] inputs, Tensor[] state, str name) -> Tensor[]")
_RUNNING: dict[str, Callable[[list[Tensor]], list[Tensor]]] = {}  # module name -> its forward, while it is traced


@dataclass(frozen=True)
class ModuleCall:
    """A call of a module that is not looked into.

    Attributes:
        node: The call in the graph, for `tracer.where` and `tracer.opaque`.
        name: The module's qualified name.
        module: The module.
        inputs: The tensors among its arguments, in their order (keyword arguments and nested ones last).
        state: Its parameters and buffers by name, including those of its submodules, as the nodes that
            `tracer.read_channels`, `start_channels` and `add_slot` take.
    """

    node: fx.Node
    name: str
    module: nn.Module
    inputs: tuple[fx.Node, ...]
    state: Mapping[str, fx.Node]

    @staticmethod
    def read(node: fx.Node, modules: Mapping[str, nn.Module]) -> ModuleCall:
        """Read a call off the graph."""
        inputs, state, name = node.args
        module = modules[str(name)]
        return ModuleCall(node, str(name), module, tuple(inputs), dict(zip(_state(module), state, strict=True)))  # type: ignore[arg-type]


def is_module_call(node: fx.Node) -> bool:
    """Return whether a node is a call of a module that is not looked into."""
    return node.target is torch.ops.oicsr.module_call.default


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _shapes(inputs: list[Tensor], state: list[Tensor], name: str) -> list[Tensor]:
    return [torch.empty_like(output) for output in _RUNNING[name](inputs)]


torch.library.register_fake("oicsr::module_call", _shapes, lib=LIBRARY)


@contextmanager
def leaf_modules(model: nn.Module) -> Iterator[None]:
    """Let every call of a module whose class has a rule be one operator, as long as the context lasts."""
    changed = []
    names: list[str] = []
    try:
        for name, module in model.named_modules():
            if find_leaf(module) is not None and not any(name.startswith(f"{outer}.") for outer in names):
                changed.append((module, vars(module).get("forward")))
                names.append(name)
                module.forward = _as_operator(name, module)
        yield
    finally:
        for module, forward in changed:
            vars(module).pop("forward")
            if forward is not None:
                module.forward = forward
        for name in names:
            _RUNNING.pop(name, None)


def _as_operator(name: str, module: nn.Module) -> Callable[..., Any]:
    """Return a forward that calls one operator on the tensors among its arguments, and on the module's state."""
    original, leaf = module.forward, find_leaf(module)
    assert leaf is not None
    shapes = partial(leaf.outputs, module) if leaf.outputs is not None else original

    def forward(*args: Any, **kwargs: Any) -> Any:
        """Call the operator, and give its outputs the structure of the module's."""
        flat, structure = pytree.tree_flatten((args, kwargs))
        positions = [i for i, value in enumerate(flat) if isinstance(value, Tensor)]
        structures = []

        def run(inputs: list[Tensor]) -> list[Tensor]:
            """Run the module for the shapes of its outputs."""
            values = list(flat)
            for position, value in zip(positions, inputs, strict=True):
                values[position] = value
            new_args, new_kwargs = pytree.tree_unflatten(values, structure)
            outputs = shapes(*new_args, **new_kwargs)
            leaves, output_structure = pytree.tree_flatten(outputs)
            structures.append(output_structure)
            if not all(isinstance(output, Tensor) for output in leaves):
                raise TypeError(f"module {name!r} has a rule of its own, so that all its outputs must be tensors")
            return leaves

        _RUNNING[name] = run
        outputs = torch.ops.oicsr.module_call([flat[i] for i in positions], list(_state(module).values()), name)
        return pytree.tree_unflatten(outputs, structures[-1])

    return forward
