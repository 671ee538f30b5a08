"""Which rows of which layers a value depends on linearly: what may be multiplied in its place."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from oicsr.contractions import is_plain, plain_letters
from oicsr.coupling import Rescaled
from oicsr.networks.state import indices_on_cpu
from oicsr.rules.calls import argument, operator_name, shape_of, source_of
from oicsr.rules.evaluated import CONSTANT
from oicsr.rules.names import (
    AFFINE,
    CUTS,
    DIVISIONS,
    EXPANSIONS,
    JOINED,
    MULTIPLICATIONS,
    REPEATS,
    RESHAPES,
    SHIFTS,
    TURNS,
    UNCHANGED,
)
from oicsr.rules.registry import aten

SAME = UNCHANGED | {*aten("dropout neg")}
MOVES = CUTS | SHIFTS | {*TURNS, *REPEATS, *aten("index_select")}
ADDITIONS = frozenset(aten("add sub subtract"))
PUT_TOGETHER = frozenset([*JOINED, *aten("stack")])
BY_MATRICES = frozenset(aten("matmul mm bmm linalg_matmul addmm baddbmm"))  # by `(..., inputs, outputs)`


class NotLinearError(Exception):
    """A value is no linear function of the rows of layers, or in a form that is not followed."""


@indices_on_cpu()
def rescaled_rows(parameters: Mapping[fx.Node, str], node: fx.Node, power: float) -> tuple[Rescaled, ...] | None:
    """Return the rows of weights and biases by which a value can be multiplied as a whole; None where there are none.

    Args:
        parameters: Nodes of a graph to the names of the parameters that they are.
        node: The value, such as the queries of an attention.
        power: See `Rescaled`.
    """
    walk = _Walk(parameters)
    try:
        parts = walk.of(node)
    except NotLinearError:
        return None
    found = torch.cat([part.unique() for part in parts])
    entries: dict[tuple[str, tuple[int, ...]], Rescaled] = {}
    for layer, start, sizes in walk.layers:
        is_there = torch.isin(torch.arange(start, start + math.prod(sizes)), found).reshape(sizes)
        if not bool(is_there.any()):
            continue
        axis, rows = _whole_slices(is_there)
        if not rows:
            return None
        for tensor, dim in layer.tensors(axis):
            if tensor not in parameters:
                return None
            entry = Rescaled(parameters[tensor], dim, rows, power)
            entries[entry.parameter, rows] = entry
    return tuple(entries.values()) or None


def feeds_only(node: fx.Node, reader: fx.Node) -> bool:
    """Return whether what layers give for a value goes nowhere but there, to be read by one call."""
    path, waiting = {reader}, [node]
    while waiting:
        source = waiting.pop()
        if source not in path and source.op == "call_function":
            path.add(source)
            waiting += [] if operator_name(source) in AFFINE | BY_MATRICES else source.all_input_nodes
    return all(user in path or not user.users for source in path - {reader} for user in source.users)


def _whole_slices(is_there: Tensor) -> tuple[int, tuple[int, ...]]:
    """Return the slices along one axis, the last that will do, of which a mask consists; none where there are none."""
    for axis in reversed(range(is_there.ndim)):
        slices = is_there.movedim(axis, 0).reshape(is_there.shape[axis], -1)
        if torch.equal(slices.all(1), slices.any(1)):
            return axis, tuple(slices.any(1).nonzero().flatten().tolist())
    return 0, ()


@dataclass(frozen=True)
class _Layer:
    """A call that multiplies by a weight.

    Attributes:
        weight: The weight.
        bias: What is added, if anything.
        dims: The axes of the weight that stay in what comes out: of its rows, and before them of a stack of matrices.
        axes: The same axes in what comes out.
    """

    weight: Any
    bias: Any
    dims: tuple[int, ...]
    axes: tuple[int, ...]

    @staticmethod
    def read(node: fx.Node, parameters: Mapping[fx.Node, str]) -> _Layer:
        """Return what a call multiplies by.

        Raises:
            NotLinearError: In a form that is not followed.
        """
        name, rank = operator_name(node), len(shape_of(node))
        if name in AFFINE:
            own = len(shape_of(argument(node, 1)))
            axis = rank - 1 if name == "aten::linear" else rank - own + 1
            return _Layer(argument(node, 1), argument(node, 2), (0,), (axis,))
        if name == "aten::einsum":
            return _Layer._of_einsum(node, parameters)
        summed = name in ("aten::addmm", "aten::baddbmm")
        weight, bias = argument(node, 1 + summed), argument(node, 0) if summed else None
        own = len(shape_of(weight))
        dims = (*range(own - 2), own - 1)
        return _Layer(weight, bias, dims, tuple(rank - own + dim for dim in dims))

    @staticmethod
    def _of_einsum(node: fx.Node, parameters: Mapping[fx.Node, str]) -> _Layer:
        equation, sources = argument(node, 0), list(argument(node, 1))
        weights = [position for position, source in enumerate(sources) if source in parameters]
        if not is_plain(equation) or len(sources) != 2 or len(weights) != 1:
            raise NotLinearError
        parts, out = plain_letters(equation)
        letters = parts[weights[0]]
        dims = tuple(dim for dim, letter in enumerate(letters) if letter in out)
        return _Layer(sources[weights[0]], None, dims, tuple(out.index(letters[dim]) for dim in dims))

    def tensors(self, number: int) -> Iterator[tuple[fx.Node, int]]:
        """Yield weight and bias, each with its axis that is the given one of `dims`."""
        yield self.weight, self.dims[number]
        if isinstance(self.bias, fx.Node):
            yield self.bias, len(shape_of(self.bias)) - 1 if number == len(self.dims) - 1 else number


def _constant(entry: Any) -> Any:
    """Return what a call is given beside its input: a number, or a tensor in the model's code, as indices are."""
    if not isinstance(entry, fx.Node):
        return entry
    if not isinstance(entry.meta.get(CONSTANT), Tensor):
        raise NotLinearError
    return entry.meta[CONSTANT].detach().cpu()


class _Walk:
    """Number the rows of the layers behind a value, and carry the numbers through what the graph does to them.

    A value is a list of tensors of its shape: an element that is the sum of several rows has one in each. -1 is none.
    """

    def __init__(self, parameters: Mapping[fx.Node, str]) -> None:
        self.layers: list[tuple[_Layer, int, list[int]]] = []
        self._parameters = parameters
        self._known: dict[fx.Node, Any] = {}
        self._rows = 0

    def of(self, node: fx.Node) -> Any:
        """Return the rows that each element of a value comes from."""
        if node not in self._known:
            self._known[node] = self._of(node)
        return self._known[node]

    def _of(self, node: fx.Node) -> Any:
        if node.op != "call_function":
            raise NotLinearError
        if node.target is operator.getitem:
            return [part[node.args[1]] for part in self.of(node.args[0])]  # type: ignore[arg-type]
        name = operator_name(node)
        if name in AFFINE | BY_MATRICES or name == "aten::einsum":
            return [self._layer(node)]
        if name in SAME:
            return self.of(source_of(node))
        if name in RESHAPES:  # what was contiguous in the call need not be so here
            return [part.reshape(shape_of(node)) for part in self.of(source_of(node))]
        if name in EXPANSIONS:
            return [self._fit(part, node) for part in self.of(source_of(node))]
        if name in MOVES:
            return self._moved(node)
        if name in MULTIPLICATIONS | DIVISIONS:
            return self._factor(node)
        if name in ADDITIONS:
            return [self._fit(part, node) for source in self._operands(node) for part in self.of(source)]
        if name in PUT_TOGETHER:
            return self._joined(node)
        raise NotLinearError

    def _operands(self, node: fx.Node) -> list[fx.Node]:
        operands = list(node.args[:2])
        if not all(isinstance(operand, fx.Node) for operand in operands):
            raise NotLinearError
        return operands  # type: ignore[return-value]

    def _layer(self, node: fx.Node) -> Tensor:
        layer, shape = _Layer.read(node, self._parameters), shape_of(node)
        if layer.weight not in self._parameters or not layer.dims:
            raise NotLinearError
        sizes = [shape_of(layer.weight)[dim] for dim in layer.dims]
        if isinstance(layer.bias, fx.Node) and len(shape_of(layer.bias)) not in (1, len(sizes) + 1):
            raise NotLinearError
        count = math.prod(sizes)
        self.layers.append((layer, self._rows, sizes))
        rows = torch.arange(self._rows, self._rows + count).reshape(sizes)
        self._rows += count
        order = sorted(range(len(sizes)), key=lambda k: layer.axes[k])
        places = {layer.axes[k]: sizes[k] for k in order}
        return rows.permute(order).reshape([places.get(axis, 1) for axis in range(len(shape))]).expand(shape)

    def _moved(self, node: fx.Node) -> Any:
        others: Any = fx.node.map_aggregate(node.args[1:], _constant)
        return [node.target(part, *others, **node.kwargs) for part in self.of(source_of(node))]  # type: ignore[operator]

    def _factor(self, node: fx.Node) -> Any:
        """Follow the one factor that comes from layers; a number or a table of positions is the other."""
        followed = []
        for operand in node.args[:2]:
            if isinstance(operand, fx.Node):
                try:
                    followed.append([self._fit(part, node) for part in self.of(operand)])
                except NotLinearError:
                    continue
        if len(followed) != 1:
            raise NotLinearError
        return followed[0]

    def _fit(self, part: Tensor, node: fx.Node) -> Tensor:
        return part.expand(shape_of(node))

    def _joined(self, node: fx.Node) -> Any:
        sources: list[fx.Node] = list(argument(node, 0))
        parts = [self.of(source) for source in sources]
        count = max(len(part) for part in parts)
        none = [torch.full(shape_of(source), -1) for source in sources]
        rows = [
            [part[i] if i < len(part) else empty for part, empty in zip(parts, none, strict=True)] for i in range(count)
        ]
        return [node.target(row, *node.args[1:], **node.kwargs) for row in rows]  # type: ignore[operator]
