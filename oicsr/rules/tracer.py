"""One pass over the graph of a model: the channels of each value, and what the rules say about them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, fx, nn

from oicsr.coupling import Side
from oicsr.rules.axes import Axes, is_pick, is_vector
from oicsr.rules.calls import called, enclosing, module_path, operator_name, shape_of
from oicsr.rules.doubts import Doubts
from oicsr.rules.evaluated import Evaluated
from oicsr.rules.ids import squeeze_constant_axes, varying
from oicsr.rules.labels import ChannelSets
from oicsr.rules.modules import ModuleCall, is_module_call
from oicsr.rules.names import PRODUCTS
from oicsr.rules.notes import Count, Cut, Norm, Passed, Product, Slot, said_of_constant
from oicsr.rules.pairs import ask, held
from oicsr.rules.table import Result, Value, check_ids, find_leaf, find_rule
from oicsr.rules.weights import follow_computed, is_wide, keep_computed, keep_rebuilt, note_layer, start_computed

RULE_ERRORS = (RuntimeError, LookupError, TypeError, AssertionError)  # of a rule that meets an unforeseen form
NO_RULE = "has no rule"
OUTPUT = "is an output of the model"
INPUT = "is read from the model's input"
MAX_LABELLED_ELEMENTS = 1 << 22  # a parameter read elementwise gets one label per element, up to this many


@dataclass
class Tracer:
    """State of one pass over the graphs of a model, and what rules use to say how channels pass.

    Rules read `ids`, tie channels that can only go together (`channels`, `whole`, `tie_axis`, `tie_pieces`,
    `sets.join`), attach axes of parameters to channels (`read_channels`, `start_channels`, `add_bias`, `add_slot`), and
    give up by `opaque` or `fix`.

    Attributes:
        sets: Which labels can only go together, and which stay.
        values: What is known of each value.
        parameters: Nodes that are parameters or buffers of the model, to their qualified names.
        modules: The model's modules by name, or None.
        slots: Parameter axes whose slices belong to channels.
        producers: Those that start channels, in the order in which their layers run.
        elementwise: Parameters that are read elementwise, to the labels of their elements.
        added: Sums of activations, and whether they joined different channels.
        unruled: Why channels stay that a rule could have followed; the user is warned of these.
        cuts_by_number: Whether a channel axis is cut at positions that may be numbers in the code.
        thinned: Grouped weights, and whether their groups all stay, but thinner.
        follow_layer_norm: Whether channels that a LayerNorm runs over may go, although its statistics change then.
        approximate: What may go although outputs change: `"layer_norm"`, channels under one, turned into an RMSNorm.
        granularity: Which part of an attention goes: `"channel"` of each head, or `"head"`.
        modes: The same by module, where that was found to be another one (see `oicsr.tracing.attention`).
        products: Products of activations, in their order.
        passed: Calls of layers that run over channels one by one, along another axis.
        norms: The means of squares over channels.
        counts: Numbers on modules that count slices.
        cuts: Cuts of a channel axis whose places numbers on modules may give.
        computed: Values that are computed from parameters alone.
        weights: The axes of parameters and of weights that are computed from some, as far as they were asked for.
        axes: The labels of the axes of parameters that such weights are computed from.
        uniform: Reasons of values that are one number everywhere, of a size that the code gives.
        evaluated: The numbers that the code makes, to see where they differ.
        rebuilt: Axes of weights that read channels, and start them again in a transposed use.
        doubts: Calls that are followed on trust, for the proof to judge.
        chosen: Which of several axes channels of a weight are followed on (`PASSED`: the input's), and their labels.
        passed_over: Such axes that are to be chosen last, as channels on them were found to stay.
    """

    sets: ChannelSets = field(default_factory=ChannelSets)
    values: dict[fx.Node, Result] = field(default_factory=dict)
    parameters: dict[fx.Node, str] = field(default_factory=dict)
    modules: Mapping[str, nn.Module] | None = None
    slots: dict[tuple[str, int], Slot] = field(default_factory=dict)
    producers: list[tuple[str, int]] = field(default_factory=list)
    elementwise: dict[str, Tensor] = field(default_factory=dict)
    added: list[tuple[fx.Node, bool, Tensor]] = field(default_factory=list)
    unruled: list[str] = field(default_factory=list)
    cuts_by_number: bool = False
    thinned: dict[str, bool] = field(default_factory=dict)
    follow_layer_norm: bool = False
    approximate: str = "none"
    granularity: str = "channel"
    modes: Mapping[str, str] = field(default_factory=dict)
    products: list[Product] = field(default_factory=list)
    passed: list[Passed] = field(default_factory=list)
    norms: list[Norm] = field(default_factory=list)
    counts: list[Count] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
    computed: set[fx.Node] = field(default_factory=set)
    weights: dict[fx.Node, Axes | list[Axes] | None] = field(default_factory=dict)
    axes: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    uniform: set[str] = field(default_factory=set)
    evaluated: Evaluated = field(default_factory=Evaluated)
    rebuilt: set[tuple[str, int]] = field(default_factory=set)
    doubts: Doubts = field(default_factory=Doubts)
    chosen: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    passed_over: frozenset[tuple[str, int]] = frozenset()
    _waiting: set[fx.Node] = field(default_factory=set)  # those whose rules have not been asked yet
    _notable: set[str] = field(default_factory=set)  # reasons to warn of, where they keep channels
    _splits: list[tuple[Tensor, int | None]] = field(default_factory=list)  # channel axes that were split
    _whole_axes: dict[tuple[str, int], str] = field(default_factory=dict)  # axes that read what stays, and why it does

    def run(
        self,
        graph: fx.Graph,
        parameters: Mapping[str, str],
        constants: Mapping[str, str] | None = None,
        modules: Mapping[str, nn.Module] | None = None,
    ) -> None:
        """Follow the channels through a graph.

        Args:
            graph: What `torch.export` gave.
            parameters: Names of placeholders to qualified names of parameters and buffers.
            constants: Names of placeholders of other tensors in the model's code, to the attributes that hold them.
            modules: The model's modules by name.
        """
        self.modules = modules
        for node in graph.nodes:
            self.evaluated.follow(node)
            if node.op == "placeholder":
                self._read_placeholder(node, parameters, constants or {})
            elif node.op == "call_function" and self._is_computed(node):
                self.values[node] = Value(None, depends_on_input=any(map(self.depends_on_input, node.all_input_nodes)))
                self.computed.add(node)
                self._waiting.add(node)
            elif node.op == "call_function":
                self.values[node] = self._call(node)
            elif node.op == "get_attr":  # a block of code that an operator runs (`torch.cond`)
                self.values[node] = Value(None, "is not a tensor", depends_on_input=False)
            elif node.op == "output":
                keep_rebuilt(self, node)
                for source in node.all_input_nodes:
                    self.fix(source, OUTPUT)
        self._settle_splits()
        order = {node: position for position, node in enumerate(graph.nodes)}
        self.products.sort(key=lambda product: order.get(product.node, -1))  # those of earlier graphs stay in front

    def _read_placeholder(self, node: fx.Node, parameters: Mapping[str, str], constants: Mapping[str, str]) -> None:
        if node.name in parameters:
            self.parameters[node] = parameters[node.name]
            self.values[node] = Value(None, "a parameter", depends_on_input=False)
        elif node.name in constants:
            reason = self.notable(said_of_constant(constants[node.name]))
            self.values[node] = Value(None, reason, depends_on_input=False)
        else:
            self.values[node] = Value(None, INPUT)

    def _is_computed(self, node: fx.Node) -> bool:
        """Return whether a value is computed from parameters alone: its rule is asked when something reads it.

        Matrices that the input picks from a stack of them (those of an expert) are as good as that.
        """
        sources = node.all_input_nodes
        known = any(source in self.parameters or source in self.computed for source in sources)
        if not known or is_module_call(node):
            return False
        return is_pick(self, node) or all(n in self.computed or not self.depends_on_input(n) for n in sources)

    def value(self, node: fx.Node) -> Result:
        """Return what is known of a value."""
        if node in self._waiting:
            self._waiting.remove(node)
            self.values[node] = self._call(node)
        return self.values[node]

    def _call(self, node: fx.Node) -> Result:
        if node.target is operator.getitem:
            source = self.value(node.args[0])  # type: ignore[arg-type]
            return source[node.args[1]] if isinstance(source, list) else source  # type: ignore[index]
        rule: Callable[..., Result]
        if is_module_call(node):
            call = ModuleCall.read(node, self.modules or {})
            leaf = find_leaf(call.module)
            assert leaf is not None
            rule, result = leaf.rule, ask(self, node, leaf.rule, call)
            result = [result] if isinstance(result, Value) and len(node.meta["val"]) == 1 else result
        else:
            found = find_rule(node)
            rule = found or type(self).opaque
            try:
                result = ask(self, node, rule, node)
            except RULE_ERRORS as error:  # a form of the operator that its rule did not reckon with
                why = f"{NO_RULE} for this form ({rule.__name__!r} raises {type(error).__name__}: {error})"
                result = self.opaque(node, why)
        check_ids(node, result, f"the rule {rule.__name__!r} of {self.where(node)}")
        depends = any(self.depends_on_input(n) for n in node.all_input_nodes)
        if isinstance(result, Value):
            if operator_name(node) in PRODUCTS and result.reason == INPUT:  # its axes need not be the input's
                result = Value(None, self.notable(f"{self.where(node)} gives values that cannot follow the channels"))
            return replace(result, depends_on_input=depends)
        return [replace(value, depends_on_input=depends) for value in result]

    # what a rule asks

    def depends_on_input(self, node: fx.Node) -> bool:
        """Return whether a value depends on the model's input (and not on parameters alone)."""
        value = self.values.get(node)
        if isinstance(value, list):
            return any(part.depends_on_input for part in value)
        return value is not None and value.depends_on_input

    def where(self, node: fx.Node) -> str:
        """Return how a message names the place of `node`: operator and module path."""
        return f"operator {called(node)} in module {module_path(node) or '(root)'!r}"

    def takes_heads(self, node: fx.Node) -> bool:
        """Return whether heads go in the attention that `node` is part of, rather than channels of each head."""
        modes = (self.modes.get(path) for path in enclosing(module_path(node)))  # of a pooling, those of its attention
        return next(filter(None, modes), self.granularity) in ("head", "both", "none")  # heads are tried last

    def note_product(self, product: Product) -> None:
        """Remember a product of two activations."""
        self.products.append(product)

    def count(self, node: fx.Node, name: str, labels: Tensor) -> None:
        """Remember a number on the module that `node` is called in, which counts slices."""
        self.counts.append(Count(module_path(node), name, labels))

    def ids(self, node: fx.Node) -> Tensor | None:
        """Return the channel ids of a value; a parameter in an elementwise role gets labels of its own here."""
        value = self.value(node)
        own = value.ids if isinstance(value, Value) else None
        ids = self._elementwise_ids(node) if node in self.parameters else own
        if ids is None or len(varying(ids)) < 2:
            return ids
        return squeeze_constant_axes(self.sets.find(ids))  # channels on several axes may have been tied since

    def _elementwise_ids(self, node: fx.Node) -> Tensor | None:
        name, shape = self.parameters[node], [size or 1 for size in shape_of(node)]  # an empty history has a width
        if math.prod(shape) > MAX_LABELLED_ELEMENTS or not shape:
            return None
        if name not in self.elementwise:
            self.elementwise[name] = self.sets.new(math.prod(shape)).reshape(shape)
        return self.elementwise[name]

    def is_uniform(self, node: fx.Node, axis: int) -> bool:
        """Return whether a value is one number all along an axis, of a size that the code gives."""
        rank = len(shape_of(node))
        return self.reason(node) in self.uniform and axis % max(1, rank) not in self.evaluated.differing(node)

    def reason(self, node: fx.Node) -> str:
        """Return why the channels of a value are not followed."""
        value = self.value(node)
        if node in self.parameters and math.prod(shape_of(node)) > MAX_LABELLED_ELEMENTS:
            return self.notable(f"is combined with {self.parameters[node]!r}, which has too many elements to follow")
        if isinstance(value, Value) and value.reason:
            return value.reason
        return self.notable(f"{self.where(node)} gives values that cannot follow the channels")

    # how a rule gives up

    def notable(self, reason: str) -> str:
        """Declare that the user is to be warned where `reason` keeps channels from being removed; return it."""
        self._notable.add(reason)
        return reason

    def is_notable(self, reason: str) -> bool:
        """Return whether the user is to be warned of a reason."""
        return reason in self._notable

    def fix(self, node: fx.Node, reason: str) -> None:
        """Fix every channel of a value, because of `reason`: none of them will be removed."""
        elements = self.elementwise.get(self.parameters.get(node, ""))
        for ids, why in [*held(self.value(node), reason), (elements, reason)]:
            if ids is not None:
                self.sets.fix(ids, why)

    def opaque(self, node: fx.Node, why: str = NO_RULE) -> Value:
        """Fix every channel that an operator reads, and follow none of its output's."""
        weights = self._weights_without_a_rule(node, why)
        stays = f", so that {weights[0]!r} stays as it is" if weights else ""
        reason = self.notable(f"{self.where(node)} {why}{stays}")
        for source in node.all_input_nodes:
            self.fix(source, reason)
        self.unruled += [reason] if weights else []
        return Value(None, reason)

    def _weights_without_a_rule(self, node: fx.Node, why: str) -> list[str]:
        """Return the weights that an operator reads whose channels no rule starts: the user is always told of them."""
        if NO_RULE not in why and operator_name(node) not in PRODUCTS:
            return []
        return [self.parameters[n] for n in node.all_input_nodes if n in self.parameters and is_wide(self, n)]

    def computed_weight(self, node: fx.Node, weight: fx.Node) -> Value:
        """Fix the channels that a layer reads whose weight cannot be followed; its own ones cannot be sliced either."""
        note_layer(self, node, weight)
        made = weight.op == "call_function" or shape_of(weight)[0] == 1  # not that of a layer outside of the modules
        if made and weight not in self.computed and not self.depends_on_input(weight):
            return self.opaque(node, "has a weight of numbers that the code makes, whose size cannot follow channels")
        value = self.opaque(node, "has a weight that is computed, not a parameter")
        self.unruled += [value.reason, *filter(self.is_notable, [self.reason(weight)])]
        return value

    # which channels can only go together

    def channels(self, ids: Tensor, axis: int, size: int) -> Tensor | None:
        """Return the channel of each of the `size` slices along `axis`, or None where no channels lie there.

        Where channels lie on other axes too (a channel axis was split), those are tied: slices go as a whole.
        """
        axis %= ids.ndim
        if ids.shape[axis] != size:
            return None
        for other in varying(ids):
            if other != axis:
                ids = self.tie_axis(ids, other)
        return ids.flatten()

    def whole(self, ids: Tensor, axes: Set[int] | list[int]) -> Tensor | None:
        """Return ids that do not change along `axes`, which an operator takes as a whole (a sum, a softmax).

        Where channels lie on other axes too (a channel axis was split), those along `axes` are tied. None where
        channels lie along `axes` alone: removing one would change what the operator makes of the others.
        """
        inside = [axis for axis in varying(ids) if axis in axes]
        if inside and len(inside) == len(varying(ids)):
            return None
        for axis in inside:
            ids = self.tie_axis(ids, axis)
        return ids

    def tie_axis(self, ids: Tensor, axis: int) -> Tensor:
        """Tie all channels along an axis to the first one; return the ids with size 1 on that axis."""
        first = ids.narrow(axis, 0, 1)
        if ids.shape[axis] > 1:
            self.sets.join(first.expand_as(ids), ids)
        return first

    def tie_pieces(self, ids: Tensor, axis: int, size: int) -> None:
        """Tie channel `i` of every piece of `size` channels to channel `i` of the first piece."""
        first = ids.narrow(axis, 0, size)
        for begin in range(size, ids.shape[axis], size):
            self.sets.join(first, ids.narrow(axis, begin, size))

    def add_split(self, ids: Tensor, free: int | None = None) -> None:
        """Note that a channel axis was split into several, along which `ids` change.

        Whatever is removed must leave the split in place, so that slices of one of these axes only can go, each as a
        whole. What reads the value says which axis that is; where nothing does, it is `free`, or else the last one.
        """
        self.cuts_by_number = True
        self._splits.append((ids, free))

    def _settle_splits(self) -> None:
        for ids, free in self._splits:
            roots = squeeze_constant_axes(self.sets.find(ids))
            axes = varying(roots)
            for axis in set(axes) - {free if free in axes else max(axes, default=0)}:
                roots = self.tie_axis(roots, axis)
        self._splits.clear()

    # what layers do with their weights

    def read_channels(
        self, node: fx.Node, source: fx.Node, weight: fx.Node, *, axis: int, dim: int, groups: int = 1
    ) -> None:
        """Let axis `dim` of a weight follow the channels on `axis` of the layer's input; ties those of all groups."""
        ids, size = self.ids(source), shape_of(weight)[dim]
        if ids is None:
            if not self.is_uniform(source, axis):  # a first state of a kept width can follow
                self.keep_axis(weight, dim, self.reason(source))
            return
        vector = self.channels(ids, axis, size * groups)
        if vector is None:
            why = f"{self.where(node)} reads channels that lie on another axis"
            self.fix(source, self.notable(why) if varying(ids) else why)  # nobody misses single channels
            return
        self.tie_pieces(vector, 0, size)
        self.add_slot(weight, dim, vector[:size], "in", counts=True)

    def start_channels(self, weight: fx.Node, *, dim: int) -> Tensor:
        """Return the channels that a layer produces: new ones, or those of an earlier call with the same weight."""
        if weight not in self.parameters:
            return start_computed(self, weight, dim)
        key = (self.parameters[weight], dim)
        if key not in self.slots:
            self.add_slot(weight, dim, self.sets.new(shape_of(weight)[dim]), "out", counts=True)
        return self.slots[key].ids

    def add_bias(self, bias: Any, ids: Tensor) -> None:
        """Let the bias of a layer, where it has one, follow the channels that the layer produces."""
        self.follow_vector(bias, ids, "out", counts=False)

    def follow_vector(self, vector: Any, ids: Tensor, side: Side, *, counts: bool) -> None:
        """Let a vector with one entry per channel follow the channels, be it a parameter or computed; None is none."""
        if not isinstance(vector, fx.Node):
            return
        if vector in self.parameters or is_vector(self, vector):
            self.add_slot(vector, 0, ids, side, counts)
            return
        computed = self.ids(vector)
        if computed is not None and computed.shape == ids.shape:
            self.sets.join(computed, ids)
        else:
            self.sets.fix(ids, self.reason(vector))

    def add_slot(self, node: fx.Node, dim: int, ids: Tensor, side: Side, counts: bool) -> None:
        """Record that axis `dim` of the parameter at `node` belongs to the channels `ids`; a shared parameter ties.

        Raises:
            ValueError: `node` is no parameter or buffer, or `ids` are not one per slice.
        """
        if node not in self.parameters:
            follow_computed(self, node, dim, ids, side, counts)
            return
        key = (self.parameters[node], dim)
        if dim >= len(shape_of(node)) or tuple(ids.shape) != (shape_of(node)[dim],):
            raise ValueError(
                f"ids of shape {tuple(ids.shape)} do not fit axis {dim} of {key[0]!r}, whose shape is {shape_of(node)}"
            )
        if key in self.slots:
            self.sets.join(self.slots[key].ids, ids)
            return
        self.put_slot(key, ids, side, counts)

    def put_slot(self, key: tuple[str, int], ids: Tensor, side: Side, counts: bool) -> None:
        """Record an axis of a parameter that has no slot yet."""
        if key in self.axes:
            self.sets.join(self.axes[key], ids)
        self.slots[key] = Slot(*key, ids, side, counts)
        if key in self._whole_axes:
            self.sets.fix(ids, self._whole_axes[key])
        if side == "out" and counts:
            self.producers.append(key)

    def keep_axis(self, weight: fx.Node, dim: int, reason: str) -> None:
        """Let an axis of a weight stay whole, whatever else the weight does (a decoder that transposes it)."""
        if weight not in self.parameters:
            keep_computed(self, weight, dim, reason)
            return
        key = (self.parameters[weight], dim)
        self._whole_axes.setdefault(key, reason)
        for ids in (self.slots[key].ids if key in self.slots else None, self.axes.get(key)):
            if ids is not None:
                self.sets.fix(ids, reason)

    def axis_labels(self, key: tuple[str, int], size: int) -> Tensor:
        """Return the labels of an axis of a parameter that a weight is computed from."""
        if key not in self.axes:
            slot = self.slots.get(key)
            self.axes[key] = self.sets.new(size) if slot is None else slot.ids
            if key in self._whole_axes:
                self.sets.fix(self.axes[key], self._whole_axes[key])
        return self.axes[key]
