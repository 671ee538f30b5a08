"""One pass over the graph of a model: the channels of each value, and what the rules say about them."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from oicsr.coupling import Side
from oicsr.labels import ChannelSets
from oicsr.rules.ids import vector_along
from oicsr.rules.registry import Result, Value, find_rule, shape_of

MAX_LABELLED_ELEMENTS = 1 << 17  # a parameter read elementwise gets one label per element, up to this many


@dataclass(frozen=True)
class Slot:
    """An axis of a parameter or buffer whose slices belong to channels. `counts`: part of the energy of its side."""

    parameter: str
    dim: int
    ids: Tensor  # (size of the axis,)
    side: Side
    counts: bool


@dataclass
class Tracer:
    """State of one pass over the graphs of a model: values by node, slots by parameter axis, joined channels."""

    sets: ChannelSets = field(default_factory=ChannelSets)
    values: dict[fx.Node, Result] = field(default_factory=dict)
    parameters: dict[fx.Node, str] = field(default_factory=dict)
    slots: dict[tuple[str, int], Slot] = field(default_factory=dict)
    producers: list[tuple[str, int]] = field(default_factory=list)
    elementwise: dict[str, Tensor] = field(default_factory=dict)  # parameter -> ids of its shape
    added: list[tuple[fx.Node, bool, Tensor]] = field(default_factory=list)  # sums of activations, whether they joined
    unruled: list[str] = field(default_factory=list)
    cuts_by_number: bool = False  # a channel axis is cut at positions that may be numbers in the code
    thinned: dict[str, bool] = field(default_factory=dict)  # grouped weight -> whether its groups all stay, but thinner

    def run(self, graph: fx.Graph, parameters: dict[str, str]) -> None:
        """Follow the channels through `graph`; `parameters` maps placeholder names to qualified names."""
        for node in graph.nodes:
            if node.op == "placeholder":
                self._read_placeholder(node, parameters)
            elif node.op == "call_function":
                self.values[node] = self._call(node)
            elif node.op == "output":
                for source in node.all_input_nodes:
                    self.fix(source, "is an output of the model")

    def _read_placeholder(self, node: fx.Node, parameters: dict[str, str]) -> None:
        if node.name in parameters:
            self.parameters[node] = parameters[node.name]
            self.values[node] = Value(None, "a parameter", depends_on_input=False)
        else:
            self.values[node] = Value(None, "is read from the model's input")

    def _call(self, node: fx.Node) -> Result:
        if node.target is operator.getitem:
            source = self.values[node.args[0]]  # type: ignore[index]
            return source[node.args[1]] if isinstance(source, list) else source  # type: ignore[index]
        found = find_rule(node)
        result = found(self, node) if found else self.opaque(node)
        if isinstance(result, Value):
            depends = any(self.depends_on_input(n) for n in node.all_input_nodes)
            result = Value(result.ids, result.reason, depends)
        return result

    def depends_on_input(self, node: fx.Node) -> bool:
        """Return whether a value depends on the model's input (and not on parameters alone)."""
        value = self.values[node]
        return value.depends_on_input if isinstance(value, Value) else True

    def where(self, node: fx.Node) -> str:
        """Return how a message names the place of `node`: operator and module path."""
        stack = node.meta.get("nn_module_stack") or {}
        path = next(reversed(stack.values()))[0] if stack else ""
        path = path.removeprefix("L['self'].").removeprefix("L__self__.")
        return f"operator {node.target} in module {path or '(root)'!r}"

    def ids(self, node: fx.Node) -> Tensor | None:
        """Return the channel ids of a value; a parameter in an elementwise role gets labels of its own here."""
        if node in self.parameters:
            return self._elementwise_ids(node)
        value = self.values[node]
        return value.ids if isinstance(value, Value) else None

    def _elementwise_ids(self, node: fx.Node) -> Tensor | None:
        name, shape = self.parameters[node], shape_of(node)
        if math.prod(shape) > MAX_LABELLED_ELEMENTS or not shape:
            return None
        if name not in self.elementwise:
            self.elementwise[name] = self.sets.new(math.prod(shape)).reshape(shape)
        return self.elementwise[name]

    def reason(self, node: fx.Node) -> str:
        """Return why the channels of a value are not followed."""
        value = self.values[node]
        return value.reason if isinstance(value, Value) and value.reason else "holds channels that are not followed"

    def fix(self, node: fx.Node, reason: str) -> bool:
        """Fix every channel of a value, because of `reason`; return whether it had any."""
        value = self.values[node]
        found = [part.ids for part in (value if isinstance(value, list) else [value])]
        found.append(self.elementwise.get(self.parameters.get(node, "")))
        for ids in found:
            if ids is not None:
                self.sets.fix(ids, reason)
        return any(ids is not None for ids in found)

    def opaque(self, node: fx.Node, why: str = "has no rule") -> Value:
        """Fix every channel that an operator reads, and follow none of its output's."""
        reason = f"{self.where(node)} {why}"
        for source in node.all_input_nodes:
            if self.fix(source, reason):
                self.unruled.append(reason)
        return Value(None, reason)

    def computed_weight(self, node: fx.Node) -> Value:
        """Fix the channels that a layer reads whose weight is no parameter; its own ones cannot be sliced either."""
        value = self.opaque(node, "has a weight that is computed, not a parameter")
        self.unruled.append(value.reason)
        return value

    def add_slot(self, node: fx.Node | None, dim: int, ids: Tensor, side: Side, counts: bool) -> None:
        """Record that axis `dim` of the parameter at `node` belongs to the channels `ids`; a shared parameter ties."""
        if node is None or node not in self.parameters:
            return
        key = (self.parameters[node], dim)
        if key in self.slots:
            self.sets.join(self.slots[key].ids, ids)
        else:
            self.slots[key] = Slot(key[0], dim, ids, side, counts)
            if side == "out" and counts:
                self.producers.append(key)

    # what layers do with their weights

    def read_channels(
        self, node: fx.Node, source: fx.Node, weight: fx.Node, *, axis: int, dim: int, groups: int = 1
    ) -> None:
        """Let axis `dim` of a weight follow the channels on `axis` of the layer's input; ties those of all groups."""
        ids, size = self.ids(source), shape_of(weight)[dim]
        if ids is None:
            return
        vector = vector_along(ids, axis, size * groups)
        if vector is None:
            self.fix(source, f"{self.where(node)} reads channels that do not lie on one axis")
            return
        self.tie_pieces(vector, 0, size)
        self.add_slot(weight, dim, vector[:size], "in", counts=True)

    def start_channels(self, weight: fx.Node, *, dim: int) -> Tensor:
        """Return the channels that a layer produces: new ones, or those of an earlier call with the same weight."""
        key = (self.parameters[weight], dim)
        if key not in self.slots:
            self.add_slot(weight, dim, self.sets.new(shape_of(weight)[dim]), "out", counts=True)
        return self.slots[key].ids

    def add_bias(self, bias: Any, ids: Tensor) -> None:
        """Let the bias of a layer, where it has one, follow the channels that the layer produces."""
        if isinstance(bias, fx.Node):
            self.add_slot(bias, 0, ids, "out", counts=False)

    def tie_pieces(self, ids: Tensor, axis: int, size: int) -> None:
        """Tie channel `i` of every piece of `size` channels to channel `i` of the first piece."""
        first = ids.narrow(axis, 0, size)
        for begin in range(size, ids.shape[axis], size):
            self.sets.join(first, ids.narrow(axis, begin, size))
