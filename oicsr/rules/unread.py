"""Values that nothing reads: a statistic that a module keeps for a log, a map or an auxiliary output that it keeps."""

from __future__ import annotations

import operator
from collections.abc import Container

from torch import fx

from oicsr.rules.calls import operator_name
from oicsr.rules.names import ELEMENTWISE, NUMBERED
from oicsr.rules.tracer import Tracer

CHECKS = "aten::_assert"
SUMS = frozenset(("aten::add", "aten::add_", "aten::sub", "aten::sub_"))
UNREAD = "is computed and not read: the module may keep it as an output of its own"


def drop_unread(graph: fx.Graph, parameters: Container[str]) -> None:
    """Take the calls out of a graph whose results nothing reads, as channels may go whatever these are.

    A layer stays, as it reads channels though nothing reads its own: the smaller network runs it, too. So does a
    product, which is counted by its place among the others, and a sum that alone reads a layer: the last one of a
    residual stream (WaveNet), whose layer must stay as wide as the stream.

    Args:
        graph: What `torch.export` gave; changed in place.
        parameters: The placeholders of parameters and buffers, by name.
    """
    layers = _layers(graph, parameters)
    for node in reversed(list(graph.nodes)):
        unread = node.op == "call_function" and not node.users and not node.is_impure()
        if unread and node not in layers and _is_plain(node) and not _alone_reads_a_layer(node, layers):
            graph.erase_node(node)


def keep_unread(tracer: Tracer, graph: fx.Graph, parameters: Container[str]) -> None:
    """Fix the channels that a layer gives and nothing reads: a module that keeps them (`self.auxiliary`) wants all.

    What is only multiplied with a parameter (a state that decays, after the last step of a loop) has no own ones.
    """
    for node in _layers(graph, parameters):
        own = operator_name(node).rstrip("_") not in ELEMENTWISE
        if own and not node.users and not node.is_impure():
            tracer.fix(node, UNREAD)


def _layers(graph: fx.Graph, parameters: Container[str]) -> set[fx.Node]:
    """Return the calls that read both weights, or what is computed from weights alone, and activations."""
    weights, layers = set[fx.Node](), set[fx.Node]()
    for node in graph.nodes:
        sources = set(node.all_input_nodes)
        if node.name in parameters or (node.op == "call_function" and sources and sources <= weights):
            weights.add(node)
        elif node.op == "call_function" and sources & weights:
            layers.add(node)
    return layers


def _alone_reads_a_layer(node: fx.Node, layers: set[fx.Node]) -> bool:
    """Return whether a sum of two values is all that reads what a layer gives, through calls of one value each."""
    if operator_name(node) not in SUMS or len(node.all_input_nodes) < 2:
        return False
    for source in node.all_input_nodes:
        while source not in layers and len(source.users) == 1 and len(source.all_input_nodes) == 1:
            (source,) = source.all_input_nodes
        if source in layers and len(source.users) == 1:
            return True
    return False


def _is_plain(node: fx.Node) -> bool:
    name = operator_name(node)
    is_aten = name.startswith("aten::") and not name.startswith(CHECKS) and name not in NUMBERED
    return is_aten or node.target is operator.getitem
