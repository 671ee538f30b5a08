"""Which rows of which layers a value is made of, by a linear way: what may be multiplied in its place."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from oicsr.coupling import Rescaled
from oicsr.rules.calls import argument, operator_name, shape_of, source_of
from oicsr.rules.names import JOINED as IN_A_ROW
from oicsr.rules.registry import aten
from oicsr.state import indices_on_cpu

VIEWS = frozenset(
    aten(
        "view reshape _unsafe_view flatten unflatten permute transpose t mT squeeze unsqueeze expand unbind select "
        "slice narrow chunk split split_with_sizes flip roll movedim swapaxes index_select repeat"
    )
)
SAME = frozenset(aten("contiguous clone detach alias to _to_copy type_as dropout neg float half lift_fresh_copy"))
FACTORS = frozenset(aten("mul multiply div divide true_divide"))
SUMS = frozenset(aten("add sub subtract"))
JOINED = frozenset([*IN_A_ROW, *aten("stack")])
LAYERS = frozenset(aten("linear conv1d conv2d conv3d"))
PRODUCTS = frozenset(aten("addmm matmul mm linalg_matmul"))  # with a weight `(inputs, outputs)` on the right


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
    for layer, start, size in walk.layers:
        rows = tuple((found[(found >= start) & (found < start + size)] - start).unique().tolist())
        for tensor, dim in _tensors(layer):
            if isinstance(tensor, fx.Node) and rows:
                if tensor not in parameters:
                    return None
                entry = Rescaled(parameters[tensor], dim, rows, power)
                entries[entry.parameter, rows] = entry
    return tuple(entries.values()) or None


def _tensors(layer: fx.Node) -> list[tuple[Any, int]]:
    """Return weight and bias of a layer, the weight first, each with the axis of its outputs."""
    name = operator_name(layer)
    if name == "aten::addmm":
        return [(argument(layer, 2), 1), (argument(layer, 0), 0)]
    return [(argument(layer, 1), 1)] if name in PRODUCTS else [(argument(layer, 1), 0), (argument(layer, 2), 0)]


class _Walk:
    """Number the rows of the layers behind a value, and carry the numbers through what the graph does to them.

    A value is a list of tensors of its shape: an element that is the sum of several rows has one in each. -1 is none.
    """

    def __init__(self, parameters: Mapping[fx.Node, str]) -> None:
        self.layers: list[tuple[fx.Node, int, int]] = []
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
        if name in LAYERS | PRODUCTS:
            return [self._layer(node, name)]
        if name in SAME:
            return self.of(source_of(node))
        if name in VIEWS:
            return [node.target(part, *node.args[1:], **node.kwargs) for part in self.of(source_of(node))]  # type: ignore[operator]
        if name in FACTORS:
            return self._factor(node)
        if name in SUMS:
            return [self._fit(part, node) for source in self._operands(node) for part in self.of(source)]
        if name in JOINED:
            return self._joined(node)
        raise NotLinearError

    def _operands(self, node: fx.Node) -> list[fx.Node]:
        operands = list(node.args[:2])
        if not all(isinstance(operand, fx.Node) for operand in operands):
            raise NotLinearError
        return operands  # type: ignore[return-value]

    def _layer(self, node: fx.Node, name: str) -> Tensor:
        (weight, dim), shape = _tensors(node)[0], shape_of(node)
        if weight not in self._parameters or (name in PRODUCTS and len(shape_of(weight)) != 2):
            raise NotLinearError
        size = shape_of(weight)[dim]
        last = name in PRODUCTS or name == "aten::linear"
        axis = len(shape) - 1 if last else len(shape) - len(shape_of(weight)) + 1
        self.layers.append((node, self._rows, size))
        rows = torch.arange(self._rows, self._rows + size)
        self._rows += size
        return rows.reshape([size if k == axis else 1 for k in range(len(shape))]).expand(shape)

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
