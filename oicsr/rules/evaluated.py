"""Numbers that the code makes, evaluated on the way through the graph, to see along which axes they differ.

`torch.ones(width, 1, 1)` is one number everywhere, and follows any width. It is no more after `p[: width // 2] = 2`,
nor is `torch.cat([torch.ones(half), torch.full((half,), 2.0)])`: which channel meets which number then depends on how
many there are. A mask with `mask[:, :, :k] = 0` differs along its rows only, and is in no channel's way.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from oicsr.rules.calls import argument, operator_name, shape_of, shapes_of, source_of
from oicsr.rules.names import ELEMENTWISE, SHAPED_LIKE
from oicsr.rules.table import aten

CONSTANT = "oicsr_constant"  # where the node of a tensor in the model's code keeps it
MOST_ELEMENTS = 1 << 24  # that are held at once; what is made beyond that is one number everywhere, as it was made
ERRORS = (
    RuntimeError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    AssertionError,
)  # of a call that cannot be evaluated here
EMPTY = frozenset(aten("empty empty_strided empty_like new_empty new_empty_strided"))  # whatever they hold: zeros
NEW = frozenset(aten("new_zeros new_ones new_full"))  # of another tensor, they need the type alone
GOLDEN = (math.sqrt(5) - 1) / 2  # multiples of it are spread evenly between whole numbers
RANDOM = 3  # in the place of numbers that are written at random
TYPED = frozenset(aten("to type_as"))


@dataclass
class Evaluated:
    """The values that depend neither on the model's input nor on its parameters.

    Random numbers are one number everywhere here: none is there for one channel rather than for another.
    """

    _values: dict[fx.Node, Any] = field(default_factory=dict)
    _sizes: dict[int, int] = field(default_factory=dict)  # of storages, in elements
    _unknown: set[int] = field(default_factory=set)  # storages into which something else was written
    _stood_in_for: dict[fx.Node, int] = field(default_factory=dict)
    _writing: fx.Node | None = None

    def differing(self, node: fx.Node) -> set[int]:
        """Return the axes along which a value differs, as it is where the pass stands; none of what is not held."""
        value = self._values.get(node)
        if not isinstance(value, Tensor) or tuple(value.shape) != shape_of(node) or not value.numel():
            return set()
        wide = [axis for axis, size in enumerate(value.shape) if size > 1]
        if _place(value) in self._unknown:
            return set(wide)
        return {axis for axis in wide if not bool((value == value.narrow(axis, 0, 1)).all())}

    @torch.no_grad()
    def follow(self, node: fx.Node) -> None:
        """Evaluate a node, where all that it reads is held; at the end of the graph, forget all.

        A call in place must see its operand unchanged, so it is evaluated only when the next node is reached.
        """
        if self._writing is not None:
            self._write(self._writing)
            self._writing = None
        if node.op == "output":
            self._values.clear()
            self._stood_in_for.clear()
            self._sizes.clear()
            self._unknown.clear()
        elif node.op == "placeholder":
            constant = node.meta.get(CONSTANT)
            if isinstance(constant, Tensor) and self._fits(constant.numel()):
                self._hold(node, constant.detach().to("cpu", copy=True))
        elif node.op == "call_function" and _writes(node):
            self._writing = node
        elif node.op == "call_function":
            shapes = [shape for shape in shapes_of(node) if shape is not None]
            if shapes and self._fits(sum(map(math.prod, shapes))):
                try:
                    value = self._call(node)
                except ERRORS:
                    return
                self._hold(node, value)

    def _fits(self, elements: int) -> bool:
        return sum(self._sizes.values()) + elements <= MOST_ELEMENTS

    def _hold(self, node: fx.Node, value: Any) -> None:
        parts = value if isinstance(value, list | tuple) else [value]
        if all(isinstance(part, Tensor) and part.layout == torch.strided for part in parts):
            self._values[node] = value
            self._sizes |= {_place(part): part.untyped_storage().nbytes() // part.element_size() for part in parts}

    def _write(self, node: fx.Node) -> None:
        """Change what is held as an operator changes it in place."""
        source = source_of(node)
        value = self._values.get(source)
        if not isinstance(value, Tensor):
            return
        self._values[node] = value
        try:
            if _is_random(node):
                if "dropout" not in operator_name(node):
                    value.fill_(RANDOM)
            elif operator_name(node).rstrip("_") in ELEMENTWISE or self._knows(node):
                self._run(node)
            else:
                self._unknown.add(_place(value))
        except ERRORS:
            self._unknown.add(_place(value))

    def _call(self, node: fx.Node) -> Any:
        """Return what a call gives that changes nothing; None where that is not known."""
        name = operator_name(node)
        if node.target is operator.getitem:
            parts = self._values.get(node.args[0])  # type: ignore[arg-type]
            return parts[node.args[1]] if isinstance(parts, list | tuple) else None  # type: ignore[index]
        if not name.startswith("aten::"):  # a user's operator may do more than it says
            return None
        shape, known = shape_of(node) if isinstance(node.meta["val"], Tensor) else (), node.all_input_nodes
        if name in EMPTY:
            return torch.zeros(shape, dtype=node.meta["val"].dtype)
        if name in NEW:
            number = argument(node, "fill_value") if name == "aten::new_full" else int(name == "aten::new_ones")
            return None if isinstance(number, fx.Node) else torch.full(shape, number, dtype=node.meta["val"].dtype)
        first = self._values.get(source_of(node)) if known else None
        if isinstance(first, Tensor) and name in TYPED:
            return first.to(node.meta["val"].dtype)
        if isinstance(first, Tensor) and name in SHAPED_LIKE:
            return first.expand(shape) if name == "aten::expand_as" else first.reshape(shape)
        if not self._knows(node):
            return None
        if _is_random(node):
            same = isinstance(first, Tensor) and first.shape == shape
            return first.clone() if same else torch.full(shape, RANDOM, dtype=node.meta["val"].dtype)  # type: ignore[union-attr]
        return self._run(node)

    def _knows(self, node: fx.Node) -> bool:
        return all(source in self._values for source in node.all_input_nodes)

    def _stand_in(self, node: fx.Node) -> Tensor:
        """Return numbers that differ along all axes in the place of a value that is not held, the same each time."""
        place = self._stood_in_for.setdefault(node, len(self._stood_in_for))
        shape, kind = shape_of(node), node.meta["val"].dtype
        if not self._fits(math.prod(shape)):
            raise ValueError("too many elements")
        numbers = (torch.arange(1, math.prod(shape) + 1) * GOLDEN + place * math.sqrt(2)).frac().reshape(shape)
        return numbers > 0.5 if kind == torch.bool else (numbers * (1 if kind.is_floating_point else 1e6)).to(kind)

    def _run(self, node: fx.Node) -> Any:
        def value(entry: Any) -> Any:
            """Return an argument of the call, as it is on the CPU."""
            if isinstance(entry, fx.Node):
                return self._values[entry] if entry in self._values else self._stand_in(entry)
            return torch.device("cpu") if isinstance(entry, torch.device) else entry

        args: Any = fx.node.map_aggregate(node.args, value)
        kwargs: Any = fx.node.map_aggregate(node.kwargs, value)
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _writes(node: fx.Node) -> bool:
    """Return whether a call changes what it reads."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _is_random(node: fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
