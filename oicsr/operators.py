"""How channels pass through each ATen operator: one short rule per operator.

A value (activation or parameter) carries `ids`, an integer tensor that is broadcastable to the value's shape and names
the channel that each of its elements belongs to. An activation of shape `(batch, channels, height, width)` has ids of
shape `(1, channels, 1, 1)`; flattened, ids of shape `(1, channels * height * width)` in which each channel stands
`height * width` times. Every rule below is arithmetic on such tensors, so that concatenation, flattening, channel
shuffles and broadcasting need no special cases. `ids is None` means that no channel of the value is followed.

An operator without a rule fixes every channel that reaches it: the channels stay, and the reason names the operator
and the module it was called in. A missing rule can therefore cost prunable channels, never a wrong coupling.

To add an operator, write a function `(tracer, node) -> Value | list[Value]` and decorate it with its ATen names.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from oicsr.coupling import Side
from oicsr.labels import ChannelSets

MAX_LABELLED_ELEMENTS = 1 << 17  # a parameter read elementwise gets one label per element, up to this many
FEW_GROUPS = 4  # a convolution of so many wide groups keeps them all, and loses channels of each


@dataclass(frozen=True)
class Value:
    """What is known of a value in the graph: the channel of each element, or why there are none."""

    ids: Tensor | None
    reason: str = ""
    depends_on_input: bool = True


@dataclass(frozen=True)
class Slot:
    """An axis of a parameter or buffer whose slices belong to channels. `counts`: part of the energy of its side."""

    parameter: str
    dim: int
    ids: Tensor  # (size of the axis,)
    side: Side
    counts: bool


Result = Value | list[Value]
Rule = Callable[["Tracer", fx.Node], Result]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for the ATen operators `names` (the in-place variants included)."""

    def register(function: Rule) -> Rule:
        """Put a rule into the table; a name that has one already is an error."""
        for name in names:
            if name in RULES:
                raise ValueError(f"operator {name!r} already has a rule")
            RULES[name] = function
        return function

    return register


def operator_name(node: fx.Node) -> str:
    """Return the ATen name of a call without overload, namespace and in-place underscore: `aten.relu_` -> `relu`."""
    packet = getattr(node.target, "overloadpacket", node.target)
    name = str(getattr(packet, "__name__", packet)).split(".")[-1]
    return name.rstrip("_") if not name.startswith("_") else name


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Return the static shape of the value that `node` produces."""
    return tuple(int(size) for size in node.meta["val"].shape)


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """Return an argument of an ATen call by position or name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def tensor_inputs(node: fx.Node) -> list[fx.Node]:
    """Return the nodes that `node` reads and that hold one tensor."""
    return [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]


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
        found = RULES.get(operator_name(node))
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


# ----------------------------------------------------------------------------------------------------------------
# helpers on ids
# ----------------------------------------------------------------------------------------------------------------


def varying(ids: Tensor) -> list[int]:
    """Return the axes along which the channel changes."""
    return [axis for axis, size in enumerate(ids.shape) if size > 1]


def vector_along(ids: Tensor, axis: int, size: int) -> Tensor | None:
    """Return the channel of each of the `size` slices along `axis`, or None where it also changes elsewhere."""
    if any(other != axis % ids.ndim for other in varying(ids)):
        return None
    vector = ids.flatten()
    return vector if vector.numel() == size else None


def on_axis(vector: Tensor, axis: int, ndim: int) -> Tensor:
    """Return ids of `ndim` axes that change along `axis` only."""
    shape = [1] * ndim
    shape[axis] = vector.numel()
    return vector.reshape(shape)


def squeeze_constant_axes(ids: Tensor) -> Tensor:
    """Shrink to size 1 every axis along which the ids do not change."""
    for axis in varying(ids):
        first = ids.narrow(axis, 0, 1)
        if bool((ids == first).all()):
            ids = first
    return ids


def reshape_ids(ids: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """Return the ids of a value reshaped from `old` to `new`, both shapes of the same number of elements."""
    lead = 0
    while lead < min(len(old), len(new)) and old[lead] == new[lead] and ids.shape[lead] == 1:
        lead += 1
    tail = 0
    while (
        tail < min(len(old), len(new)) - lead
        and old[-1 - tail] == new[-1 - tail]
        and ids.shape[len(old) - 1 - tail] == 1
    ):
        tail += 1
    inner_old, inner_new = old[lead : len(old) - tail], new[lead : len(new) - tail]
    core = ids.reshape(ids.shape[lead : len(old) - tail]).expand(tuple(inner_old)).reshape(tuple(inner_new))
    core = squeeze_constant_axes(core)
    return core.reshape([1] * lead + list(core.shape) + [1] * tail)


def pad_left(shape: Sequence[int], ndim: int) -> list[int]:
    """Return `shape` with ones in front, as broadcasting does."""
    return [1] * (ndim - len(shape)) + list(shape)


# ----------------------------------------------------------------------------------------------------------------
# layers that hold weights
# ----------------------------------------------------------------------------------------------------------------


@rule("conv1d", "conv2d", "conv3d", "convolution")
def convolve(tracer: Tracer, node: fx.Node) -> Result:
    """Weight `(out, in / groups, *kernel)`: dim 0 starts new channels, dim 1 reads the input's."""
    source, weight = node.args[0], node.args[1]
    assert isinstance(source, fx.Node) and isinstance(weight, fx.Node)
    if operator_name(node) == "convolution":
        if node.args[6]:
            return tracer.opaque(node, "is a transposed convolution in a form without a rule")
        groups = argument(node, 8, "groups")
    else:
        groups = argument(node, 6, "groups", 1)
    if weight not in tracer.parameters:
        return tracer.computed_weight(node)
    return _layer(tracer, node, source, weight, argument(node, 2, "bias"), axis=1, groups=groups)


@rule("linear")
def linear(tracer: Tracer, node: fx.Node) -> Result:
    """Weight `(out, in)`: reads the last axis. Where the channels lie on another axis, they pass through."""
    source, weight = node.args[0], node.args[1]
    assert isinstance(source, fx.Node) and isinstance(weight, fx.Node)
    if weight not in tracer.parameters:
        return tracer.computed_weight(node)
    ids = tracer.ids(source)
    if ids is not None and varying(ids) and ids.shape[-1] == 1:
        return Value(ids)
    return _layer(
        tracer,
        node,
        source,
        weight,
        argument(node, 2, "bias"),
        axis=len(shape_of(node)) - 1,
        groups=1,
    )


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def convolve_transposed(tracer: Tracer, node: fx.Node) -> Result:
    """Weight `(in, out / groups, *kernel)`: the axes of a convolution, exchanged. Ungrouped only."""
    source, weight, bias = node.args[0], node.args[1], argument(node, 2, "bias")
    assert isinstance(source, fx.Node) and isinstance(weight, fx.Node)
    if weight not in tracer.parameters or argument(node, 6, "groups", 1) != 1:
        return tracer.opaque(node, "is a grouped or computed transposed convolution")
    _read_channels(tracer, node, source, weight, axis=1, dim=0)
    out = _start_channels(tracer, weight, dim=1)
    _add_bias(tracer, bias, out)
    return Value(on_axis(out, 1, len(shape_of(node))))


def _layer(
    tracer: Tracer,
    node: fx.Node,
    source: fx.Node,
    weight: fx.Node,
    bias: Any,
    *,
    axis: int,
    groups: int,
) -> Value:
    if groups == 1:
        _read_channels(tracer, node, source, weight, axis=axis, dim=1)
        out = _start_channels(tracer, weight, dim=0)
    elif tracer.thinned.setdefault(tracer.parameters[weight], _has_few_groups(shape_of(weight), groups)):
        _read_channels(tracer, node, source, weight, axis=axis, dim=1, groups=groups)
        out = _start_channels(tracer, weight, dim=0)
        _tie_pieces(tracer, out, 0, len(out) // groups)
    else:
        found = _follow_groups(tracer, node, source, shape_of(weight)[0], axis, groups)
        if found is None:
            return Value(None, tracer.reason(source))
        out = found
        tracer.add_slot(weight, 0, out, "out", counts=True)
    _add_bias(tracer, bias, out)
    return Value(on_axis(out, axis, len(shape_of(node))))


def _has_few_groups(weight: tuple[int, ...], groups: int) -> bool:
    """Return whether a group is better thinned out than removed: a group of few is most of a layer.

    Channel `i` of a group then goes with channel `i` of every other group, and the inputs without the outputs.
    """
    return groups <= FEW_GROUPS and groups < min(weight[1], weight[0] // groups)


def _read_channels(
    tracer: Tracer, node: fx.Node, source: fx.Node, weight: fx.Node, *, axis: int, dim: int, groups: int = 1
) -> None:
    """Let axis `dim` of a weight follow the channels on `axis` of the layer's input; ties those of all groups."""
    ids, size = tracer.ids(source), shape_of(weight)[dim]
    if ids is None:
        return
    vector = vector_along(ids, axis, size * groups)
    if vector is None:
        tracer.fix(source, f"{tracer.where(node)} reads channels that do not lie on one axis")
        return
    _tie_pieces(tracer, vector, 0, size)
    tracer.add_slot(weight, dim, vector[:size], "in", counts=True)


def _start_channels(tracer: Tracer, weight: fx.Node, *, dim: int) -> Tensor:
    """Return the channels that a layer produces: new ones, or those of an earlier call with the same weight."""
    key = (tracer.parameters[weight], dim)
    if key not in tracer.slots:
        tracer.add_slot(weight, dim, tracer.sets.new(shape_of(weight)[dim]), "out", counts=True)
    return tracer.slots[key].ids


def _follow_groups(
    tracer: Tracer, node: fx.Node, source: fx.Node, out_channels: int, axis: int, groups: int
) -> Tensor | None:
    """Tie inputs and outputs of each group of a grouped convolution: the group goes as a whole (depthwise: size 1)."""
    ids = tracer.ids(source)
    in_channels = shape_of(source)[axis]
    vector = None if ids is None else vector_along(ids, axis, in_channels)
    if vector is None:
        tracer.fix(source, f"{tracer.where(node)} reads channels that do not lie on one axis")
        return None
    by_group = vector.reshape(groups, in_channels // groups)
    tracer.sets.join(by_group[:, 1:], by_group[:, :1].expand_as(by_group[:, 1:]))
    return by_group[:, 0].repeat_interleave(out_channels // groups)


def _add_bias(tracer: Tracer, bias: Any, ids: Tensor) -> None:
    if isinstance(bias, fx.Node):
        tracer.add_slot(bias, 0, ids, "out", counts=False)


# ----------------------------------------------------------------------------------------------------------------
# normalisation
# ----------------------------------------------------------------------------------------------------------------


@rule(
    "batch_norm",
    "instance_norm",
    "_native_batch_norm_legit_no_training",
    "_native_batch_norm_legit",
)
def batch_norm(tracer: Tracer, node: fx.Node) -> Result:
    """Scale, shift and running statistics, each `(channels,)`, follow axis 1.

    Of a weight (standardisation), the statistics of each filter run over all channels that it reads: a column of zeros
    is none after it, so that nothing exact exists.
    """
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if not tracer.depends_on_input(source):
        return tracer.opaque(node, "standardises a weight over the channels that it reads")
    ids = tracer.ids(source)
    if ids is None:
        return Value(None, tracer.reason(source))
    vector = vector_along(ids, 1, shape_of(source)[1])
    if vector is None:
        return tracer.opaque(node, "normalises channels that do not lie on axis 1")
    _follow_norm(tracer, [argument(node, i, "") for i in range(1, 5)], vector)
    return Value(ids)


def _follow_norm(tracer: Tracer, parameters: Sequence[Any], vector: Tensor) -> None:
    """Let `(scale, shift, ...)` of a normalisation follow the channels; only the scale carries energy."""
    for position, parameter in enumerate(parameters):
        if isinstance(parameter, fx.Node):
            tracer.add_slot(parameter, 0, vector, "norm", counts=position == 0)


@rule("group_norm")
def group_norm(tracer: Tracer, node: fx.Node) -> Result:
    """A normalisation group goes as a whole, so that the statistics of the others do not change."""
    source, groups = node.args[0], node.args[1]
    assert isinstance(source, fx.Node) and isinstance(groups, int)
    ids = tracer.ids(source)
    if ids is None:
        return Value(None, tracer.reason(source))
    vector = vector_along(ids, 1, shape_of(source)[1])
    if vector is None:
        return tracer.opaque(node, "normalises channels that do not lie on axis 1")
    by_group = vector.reshape(groups, -1)
    tracer.sets.join(by_group[:, 1:], by_group[:, :1].expand_as(by_group[:, 1:]))
    _follow_norm(tracer, [argument(node, 2, "weight"), argument(node, 3, "bias")], vector)
    return Value(ids)


@rule("layer_norm")
def layer_norm(tracer: Tracer, node: fx.Node) -> Result:
    """Scale and shift follow the last axis.

    The statistics run over all channels, so removing a channel of zeros changes those of the others: the shapes are
    right, the outputs are not preserved. Nothing exact exists for this operator.
    """
    source, normalized = node.args[0], node.args[1]
    assert isinstance(source, fx.Node) and isinstance(normalized, list | tuple)
    ids = tracer.ids(source)
    if ids is None or not varying(ids):
        return Value(ids, tracer.reason(source))
    weight = argument(node, 2, "weight")
    vector = vector_along(ids, ids.ndim - 1, shape_of(source)[-1])
    if vector is None and all(axis < ids.ndim - len(normalized) for axis in varying(ids)):
        return Value(ids)  # the normalised axes hold no channels
    if vector is None or len(normalized) != 1 or not isinstance(weight, fx.Node):
        return tracer.opaque(node, "normalises over channels in a form without a rule")
    _follow_norm(tracer, [weight, argument(node, 3, "bias")], vector)
    return Value(ids)


# ----------------------------------------------------------------------------------------------------------------
# elementwise
# ----------------------------------------------------------------------------------------------------------------

UNARY = """
    relu relu6 gelu silu sigmoid hardsigmoid hardswish hardtanh leaky_relu elu selu celu tanh mish softplus softsign
    dropout feature_dropout alpha_dropout native_dropout bernoulli clamp clamp_min clamp_max neg exp log sqrt rsqrt
    square abs pow erf reciprocal round floor ceil sign log1p expm1 sin cos logit log_sigmoid hardshrink softshrink
    clone contiguous to _to_copy type_as detach alias lift_fresh_copy detach_copy alias_copy rrelu threshold
""".split()


@rule(*UNARY)
def elementwise(tracer: Tracer, node: fx.Node) -> Result:
    """Each element keeps its channel."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if len(tensor_inputs(node)) > 1 and operator_name(node) == "pow":
        return tracer.opaque(node)
    return Value(tracer.ids(source), tracer.reason(source))


@rule("add", "sub", "rsub")
def add(tracer: Tracer, node: fx.Node) -> Result:
    """Ties the channels of both operands; remembers sums of two activations (the residual streams)."""
    result, joined = _broadcast(tracer, node)
    operands = tensor_inputs(node)
    if result.ids is not None and len(operands) == 2 and all(tracer.depends_on_input(n) for n in operands):
        tracer.added.append((node, joined, result.ids))
    return result


@rule("mul", "div", "maximum", "minimum", "where", "logical_and", "floor_divide", "true_divide")
def broadcast(tracer: Tracer, node: fx.Node) -> Result:
    """Ties the channels of the operands, as broadcasting aligns them (squeeze-and-excitation, layer scale)."""
    return _broadcast(tracer, node)[0]


def _broadcast(tracer: Tracer, node: fx.Node) -> tuple[Value, bool]:
    """Combine the operands of an elementwise operator; return the value and whether different channels were joined."""
    operands, out = tensor_inputs(node), shape_of(node)
    current: Tensor | None = None
    shape: list[int] = pad_left((), len(out))
    reason, joined = "", False
    for position, operand in enumerate(operands):
        ids = tracer.ids(operand)
        if ids is not None:
            ids = ids.reshape(pad_left(ids.shape, len(out)))
        new_shape = pad_left(shape_of(operand), len(out))
        if position == 0:
            current, shape, reason = ids, new_shape, tracer.reason(operand)
            continue
        current, tied = _combine(tracer, node, (current, shape, reason), (ids, new_shape, tracer.reason(operand)))
        joined |= tied
        shape = [max(a, b) for a, b in zip(shape, new_shape, strict=True)]
        reason = reason or tracer.reason(operand)
    return Value(current, reason), joined


Operand = tuple[Tensor | None, list[int], str]


def _combine(tracer: Tracer, node: fx.Node, first: Operand, second: Operand) -> tuple[Tensor | None, bool]:
    """Combine the ids of two operands of equal rank."""
    for (ids, shape, _), (other, other_shape, reason) in ((first, second), (second, first)):
        if ids is None or not varying(ids):
            continue
        axes = varying(ids)
        full = [axis for axis in axes if other_shape[axis] == shape[axis]]
        if not full:
            if other is not None and varying(other):  # two independent channel axes in one value
                tracer.opaque(node, "multiplies values whose channels lie on different axes")
                return None, False
            return ids, False
        if len(full) < len(axes):
            tracer.opaque(node, "broadcasts along a part of the channels")
            return None, False
        if other is None or any(other.shape[axis] == 1 for axis in axes):
            tracer.sets.fix(ids, reason)
            if other is not None:
                tracer.sets.fix(other, reason)
            return ids, False
    a, b = first[0], second[0]
    if a is None or b is None or (not varying(a) and first[1] != second[1]):
        return None, False  # at most one channel, which is never removed
    a, b = torch.broadcast_tensors(a, b)
    return a, tracer.sets.join(a, b)


@rule("_assert_tensor_metadata", "_assert_scalar", "_assert_async")
def assertion(tracer: Tracer, node: fx.Node) -> Result:
    """Looks at type, layout or a number, and gives nothing."""
    return Value(None, f"{tracer.where(node)} gives no tensor")


@rule("prelu")
def prelu(tracer: Tracer, node: fx.Node) -> Result:
    """The slope, `(channels,)` or `(1,)`, follows axis 1."""
    source, weight = node.args[0], node.args[1]
    assert isinstance(source, fx.Node) and isinstance(weight, fx.Node)
    ids = tracer.ids(source)
    if ids is None:
        return Value(None, tracer.reason(source))
    vector = vector_along(ids, 1, shape_of(source)[1])
    if shape_of(weight) != (1,):
        if vector is None:
            return tracer.opaque(node, "has slopes along channels that do not lie on axis 1")
        tracer.add_slot(weight, 0, vector, "norm", counts=False)
    return Value(ids)


@rule("softmax", "log_softmax", "_softmax")
def softmax(tracer: Tracer, node: fx.Node) -> Result:
    """Keeps channels that do not lie on the axis it normalises."""
    source, axis = node.args[0], int(node.args[1])  # type: ignore[arg-type]
    assert isinstance(source, fx.Node)
    ids = tracer.ids(source)
    if ids is not None and ids.shape[axis] > 1:
        return tracer.opaque(node, "normalises over the channels")
    return Value(ids, tracer.reason(source))


@rule("matmul", "bmm")
def multiply_matrices(tracer: Tracer, node: fx.Node) -> Result:
    """Rows of the first factor that are channels stay channels, where the second holds none (global context)."""
    first, second = node.args[0], node.args[1]
    assert isinstance(first, fx.Node) and isinstance(second, fx.Node)
    ids, others = tracer.ids(first), tracer.ids(second)
    if ids is None and others is None:
        return Value(None, tracer.reason(first))
    same_rank = len(shape_of(first)) == len(shape_of(second)) == len(shape_of(node))
    if ids is None or ids.shape[-1] > 1 or not same_rank or (others is not None and varying(others)):
        return tracer.opaque(node, "multiplies matrices in a form without a rule")
    return Value(ids)


# ----------------------------------------------------------------------------------------------------------------
# spatial
# ----------------------------------------------------------------------------------------------------------------


@rule(
    *"max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d".split(),
    *"adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d max_pool2d_with_indices".split(),
    *"_adaptive_avg_pool2d".split(),
    *"upsample_nearest2d upsample_bilinear2d upsample_bicubic2d interpolate avg_pool2d_with_indices".split(),
)
def pool(tracer: Tracer, node: fx.Node) -> Result:
    """Works on the spatial axes; channels on axis 1 pass."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    ids = tracer.ids(source)
    if ids is not None and any(axis >= 2 for axis in varying(ids)):
        return tracer.opaque(node, "pools over the channels")
    value = Value(ids, tracer.reason(source))
    return value if isinstance(node.meta["val"], Tensor) else [value] * len(node.meta["val"])


@rule("mean", "sum", "amax", "amin", "var", "std", "norm", "linalg_vector_norm")
def reduce(tracer: Tracer, node: fx.Node) -> Result:
    """Removes axes that hold no channels."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    ids = tracer.ids(source)
    if ids is None:
        return Value(None, tracer.reason(source))
    position = 2 if "norm" in operator_name(node) else 1
    dims = argument(node, position, "dim")
    if dims is None or isinstance(dims, bool):
        return tracer.opaque(node, "reduces over the channels")
    axes = {int(dim) % ids.ndim for dim in (dims if isinstance(dims, list | tuple) else [dims])}
    if any(axis in axes for axis in varying(ids)):
        return tracer.opaque(node, "reduces over the channels")
    if len(shape_of(node)) == ids.ndim:  # keepdim
        return Value(ids)
    return Value(ids.reshape([size for axis, size in enumerate(ids.shape) if axis not in axes]))


@rule("pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d", "zero_pad2d", "im2col")
def pad(tracer: Tracer, node: fx.Node) -> Result:
    """Pads axes; a channel axis gets constant channels before and behind its own.

    How many is a number in the code (the option A shortcut of ResNets), so the constant channels stay as they are,
    and the others keep their place between them.
    """
    source = node.args[0]
    assert isinstance(source, fx.Node)
    ids = tracer.ids(source)
    if ids is None:
        return Value(None, tracer.reason(source))
    old, new = shape_of(source), shape_of(node)
    changed = [axis for axis in varying(ids) if len(old) != len(new) or old[axis] != new[axis]]
    if not changed:
        return Value(ids)
    is_constant = operator_name(node) == "constant_pad_nd" or argument(node, 2, "mode", "constant") == "constant"
    widths: list[int] = list(argument(node, 1, "pad")) if is_constant else [-1]
    if len(old) != len(new) or min(widths) < 0:
        return tracer.opaque(node, "changes the channel axis in a form without a rule")
    for axis in changed:
        before, behind = widths[2 * (ids.ndim - 1 - axis) :][:2]  # the last axis comes first
        constant = tracer.sets.new_fixed(1, f"{tracer.where(node)} adds a constant to it").reshape([1] * ids.ndim)
        shape = list(ids.shape)
        parts = [constant.expand([*shape[:axis], count, *shape[axis + 1 :]]) for count in (before, behind)]
        ids = torch.cat([parts[0], ids, parts[1]], axis)
    return Value(ids)


# ----------------------------------------------------------------------------------------------------------------
# shape
# ----------------------------------------------------------------------------------------------------------------


@rule(
    "flatten",
    "view",
    "view_as",
    "reshape",
    "reshape_as",
    "unflatten",
    "_unsafe_view",
    "view_copy",
    "squeeze",
    "unsqueeze",
    "_reshape_alias",
)
def reshape(tracer: Tracer, node: fx.Node) -> Result:
    """Each element keeps its channel under its new index.

    Where the channel axis is split into `(groups, channels / groups)`, the groups are tied to one another, so that
    they stay equally large, and the split in the same place, whatever is removed. The axis of the groups then holds
    one channel alike, and may be summed or normalised over (the radix of split attention).
    """
    source = node.args[0]
    assert isinstance(source, fx.Node)
    ids = tracer.ids(source)
    if ids is None:
        return Value(None, tracer.reason(source))
    result = reshape_ids(ids, shape_of(source), shape_of(node))
    if len(varying(result)) > len(varying(ids)):
        tracer.cuts_by_number = True
        for axis in varying(result)[:-1]:
            _tie_pieces(tracer, result, axis, 1)
            result = result.narrow(axis, 0, 1)
    return Value(result)


@rule("permute", "transpose", "t", "swapaxes", "movedim")
def permute(tracer: Tracer, node: fx.Node) -> Result:
    """Moves axes, and the channels with them."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    ids = tracer.ids(source)
    if ids is None:
        return Value(None, tracer.reason(source))
    name, arguments = operator_name(node), node.args[1:]
    if name == "permute":
        return Value(ids.permute(*arguments))  # type: ignore[arg-type]
    if name == "movedim":
        return Value(torch.movedim(ids, *arguments))  # type: ignore[arg-type]
    return Value(ids.t() if name == "t" else ids.transpose(*arguments))  # type: ignore[arg-type]


@rule("expand", "broadcast_to", "expand_as")
def expand(tracer: Tracer, node: fx.Node) -> Result:
    """Repeats axes of size 1, which hold no channels."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    ids = tracer.ids(source)
    return Value(
        None if ids is None else ids.reshape(pad_left(ids.shape, len(shape_of(node)))),
        tracer.reason(source),
    )


@rule("cat", "concat", "concatenate")
def concatenate(tracer: Tracer, node: fx.Node) -> Result:
    """Along the channel axis the channels stand behind one another; along any other axis they are tied."""
    nodes: list[fx.Node] = list(node.args[0])  # type: ignore[arg-type]
    axis = int(argument(node, 1, "dim", 0)) % len(shape_of(node))
    parts = [tracer.ids(n) for n in nodes]
    if all(part is None for part in parts):
        return Value(None, tracer.reason(nodes[0]))
    if not any(part is not None and part.shape[axis] > 1 for part in parts):
        return _tie(tracer, nodes, parts)
    return Value(torch.cat(_aligned(tracer, nodes, parts, axis), axis))


def _aligned(tracer: Tracer, nodes: list[fx.Node], parts: list[Tensor | None], axis: int) -> list[Tensor]:
    """Give every part ids along `axis` (fixed ones where it has none) and one common shape on the other axes."""
    filled = []
    for source, part in zip(nodes, parts, strict=True):
        size = shape_of(source)[axis]
        if part is None or part.shape[axis] != size:
            if part is not None:
                tracer.sets.fix(part, "is concatenated along an axis that holds other channels")
            part = on_axis(tracer.sets.new_fixed(size, tracer.reason(source)), axis, len(shape_of(source)))
        filled.append(part)
    common = [max(part.shape[k] for part in filled) for k in range(filled[0].ndim)]
    return [part.expand([*common[:axis], part.shape[axis], *common[axis + 1 :]]) for part in filled]


def _tie(tracer: Tracer, nodes: list[fx.Node], parts: list[Tensor | None]) -> Value:
    known = [part for part in parts if part is not None]
    first = max(known, key=lambda part: part.numel())
    for source, part in zip(nodes, parts, strict=True):
        if part is None or part.shape != first.shape:
            tracer.sets.fix(first, tracer.reason(source))
            if part is not None:
                tracer.sets.fix(part, tracer.reason(source))
        else:
            tracer.sets.join(first, part)
    return Value(first)


@rule("stack")
def stack(tracer: Tracer, node: fx.Node) -> Result:
    """Puts values behind one another on a new axis; their channels are tied."""
    nodes: list[fx.Node] = list(node.args[0])  # type: ignore[arg-type]
    axis = int(argument(node, 1, "dim", 0)) % len(shape_of(node))
    parts = [tracer.ids(n) for n in nodes]
    if all(part is None for part in parts):
        return Value(None, tracer.reason(nodes[0]))
    tied = _tie(tracer, nodes, parts)
    return Value(None if tied.ids is None else tied.ids.unsqueeze(axis), tied.reason)


@rule("split", "split_with_sizes", "chunk", "slice", "narrow", "select", "unbind", "tensor_split")
def cut(tracer: Tracer, node: fx.Node) -> Result:
    """Cuts an axis into pieces.

    Equal pieces of the channel axis are tied to one another, so that a cut in halves stays a cut in halves whatever
    is removed; any other cut of the channel axis, whose position is a number in the code, fixes its channels.
    """
    source = node.args[0]
    assert isinstance(source, fx.Node)
    value, many = tracer.ids(source), not isinstance(node.meta["val"], Tensor)
    shapes = [tuple(v.shape) for v in node.meta["val"]] if many else [shape_of(node)]
    if value is None:
        nothing = Value(None, tracer.reason(source))
        return [nothing] * len(shapes) if many else nothing
    pieces = _pieces(tracer, node, value, shapes)
    values = [Value(piece) for piece in pieces]
    return values if many else values[0]


def _pieces(tracer: Tracer, node: fx.Node, ids: Tensor, shapes: list[tuple[int, ...]]) -> list[Tensor]:
    name = operator_name(node)
    axis = int(argument(node, 1 if name in ("slice", "narrow", "select", "unbind") else 2, "dim", 0)) % ids.ndim
    dropped = name in ("select", "unbind")
    if ids.shape[axis] == 1:
        return [ids.squeeze(axis) if dropped else ids for _ in shapes]
    if dropped:
        tracer.opaque(node, "picks single channels")
        return [ids.select(axis, i) for i in range(len(shapes))]
    sizes = [shape[axis] for shape in shapes]
    start = int(argument(node, 2, "start", 0) or 0) if name in ("slice", "narrow") else 0
    start %= ids.shape[axis]
    step = int(argument(node, 4, "step", 1)) if name == "slice" else 1
    if sizes[0] == ids.shape[axis]:
        return [ids] * len(shapes)
    if len(set(sizes)) > 1 or ids.shape[axis] % sizes[0] or start % sizes[0] or step != 1:
        tracer.opaque(node, "cuts the channel axis into unequal pieces")
    else:
        _tie_pieces(tracer, ids, axis, sizes[0])
        tracer.cuts_by_number |= name != "chunk"
    starts = [start + sum(sizes[:i]) for i in range(len(sizes))]
    if step != 1:
        return [ids.narrow(axis, 0, sizes[0])]  # fixed above
    return [ids.narrow(axis, begin, size) for begin, size in zip(starts, sizes, strict=True)]


def _tie_pieces(tracer: Tracer, ids: Tensor, axis: int, size: int) -> None:
    """Tie channel `i` of every piece of `size` channels to channel `i` of the first piece."""
    first = ids.narrow(axis, 0, size)
    for begin in range(size, ids.shape[axis], size):
        tracer.sets.join(first, ids.narrow(axis, begin, size))
