"""What keeps channels for a reason that nobody is warned of elsewhere: attentions in residual streams.

A network keeps its residual streams in the scope `"inner"`, and what is added to the model's input in any scope. That
needs no warning for the last layer of every block; for the projections inside an attention it comes as a surprise.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from torch import fx

from oicsr.names import layer_name
from oicsr.rules import Tracer
from oicsr.rules.calls import module_path, operator_name, shape_of, source_of
from oicsr.rules.collect import STREAM, ChannelIndex
from oicsr.rules.names import AFFINE, MULTIPLICATIONS, UNCHANGED, VIEWS
from oicsr.rules.products import ATTENTIONS
from oicsr.rules.registry import aten
from oicsr.rules.tracer import INPUT, OUTPUT

SOFTMAX = frozenset(aten("softmax _softmax"))
SAID = {
    STREAM: STREAM,
    INPUT: "is joined to what is read from the model's input (added to it, without a layer in between)",
    OUTPUT: OUTPUT,
}


def said_of_kept(tracer: Tracer, index: ChannelIndex, graph: fx.Graph, unpruned: Mapping[str, str]) -> list[str]:
    """Return what to warn of: for each attention, which projections inside it keep all their channels, and why.

    Args:
        tracer: After it ran over the graph.
        index: The numbers of the channels.
        graph: The graph.
        unpruned: Layer to the reason why its channels stay.
    """
    products = {product.node for product in tracer.products if product.kind != "weight"}
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for node in graph.nodes:
        if node in products or (node.op == "call_function" and operator_name(node) in MULTIPLICATIONS):
            path = module_path(node)
            layers, attends = _behind(tracer, node, path)
            for layer, parameter in layers if attends else ():
                reason = unpruned.get(layer, "")
                slot = tracer.slots.get((parameter, 0))
                if reason in SAID and slot is not None and not index.names_of(slot.ids):
                    found[path][layer] = SAID[reason]
    said = []
    for path, reasons in found.items():
        name = type((tracer.modules or {})[path]).__name__
        whole = ", ".join(f"{layer!r} {reason}" for layer, reason in reasons.items())
        said.append(f"the attention in {path or '(root)'!r} ({name}) keeps channels: {whole}")
    return said


def _behind(tracer: Tracer, node: fx.Node, path: str) -> tuple[list[tuple[str, str]], bool]:
    """Return the layers of a module that a product is computed from, and whether it mixes values by a softmax.

    Layers of one output, such as those that give a score, are looked through; each layer is given with its weight.
    """
    if operator_name(node) in MULTIPLICATIONS and not _weighs_values(tracer, node):
        return [], False
    attends = operator_name(node) in ATTENTIONS
    layers: dict[tuple[str, str], None] = {}
    seen: set[fx.Node] = set()
    waiting = list(node.all_input_nodes)
    while waiting:
        source = waiting.pop()
        if source in seen or source.op != "call_function" or not _within(source, path):
            continue
        seen.add(source)
        attends |= operator_name(source) in SOFTMAX
        weights = [tracer.parameters[n] for n in source.all_input_nodes if n in tracer.parameters]
        if operator_name(source) in AFFINE and weights and shape_of(source.args[1])[0] > 1:  # type: ignore[arg-type]
            layers[layer_name(weights[0]), weights[0]] = None
        else:
            waiting += source.all_input_nodes
    return sorted(layers), attends


def _within(node: fx.Node, path: str) -> bool:
    own = module_path(node)
    return not path or own == path or own.startswith(f"{path}.")


def _weighs_values(tracer: Tracer, node: fx.Node) -> bool:
    """Return whether a product weighs activations by a softmax: not the expected place of a box, of fixed places."""
    sources = node.all_input_nodes
    weights = [source for source in sources if _is_softmax(source)]
    return bool(weights) and any(tracer.depends_on_input(source) for source in sources if source not in weights)


def _is_softmax(node: fx.Node) -> bool:
    return any(operator_name(source) in SOFTMAX for source in _views(node))


def _views(node: fx.Node) -> Iterator[fx.Node]:
    """Yield a value, and what it is a view of."""
    while node.op == "call_function":
        yield node
        if operator_name(node) not in VIEWS | UNCHANGED:
            return
        node = source_of(node)
