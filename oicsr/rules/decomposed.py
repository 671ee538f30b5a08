"""Operators without a rule that PyTorch itself writes in terms of ones that have one: `hstack`, `ravel`, `flipud`.

They are written out in the graph, unless something in them has no rule either, or makes a product or runs a layer, as
such calls are numbered (see `oicsr.complexity`).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.fx.experimental.proxy_tensor import make_fx

from oicsr.rules.calls import operator_name
from oicsr.rules.evaluated import ERRORS
from oicsr.rules.names import NUMBERED
from oicsr.rules.table import find_rule

COMPOSITE = "CompositeImplicitAutograd"


def decompose(graph: fx.Graph) -> fx.Graph:
    """Write out the calls of composite operators without a rule, in place, and return the graph."""
    for node in list(graph.nodes):
        if node.op == "call_function" and _is_composite(node):
            _write_out(graph, node)
    return graph


def _is_composite(node: fx.Node) -> bool:
    target = node.target
    if not isinstance(target, OpOverload) or not target.name().startswith("aten::") or find_rule(node) is not None:
        return False
    is_composite: bool = torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), COMPOSITE)
    return is_composite and not target._schema.is_mutable


def _write_out(graph: fx.Graph, node: fx.Node) -> None:
    """Put what a call consists of in its place, where all of that has rules."""
    sources = node.all_input_nodes
    if not all(isinstance(source.meta.get("val"), Tensor) for source in sources):
        return
    try:
        inner = _traced(node, sources)
    except ERRORS:  # it looks at values, or makes tensors of its own
        return
    outputs = next(iter(inner.find_nodes(op="output"))).args[0]
    parts = [part for part in inner.nodes if part.op not in ("placeholder", "output")]
    is_single = isinstance(outputs, fx.Node)
    is_read = is_single or all(user.target is operator.getitem for user in node.users)
    if not is_read or not isinstance(outputs, fx.Node | list | tuple) or not all(map(_is_known, parts)):
        return
    with graph.inserting_before(node):
        copies = dict(zip(inner.find_nodes(op="placeholder"), sources, strict=True))
        result: Any = graph.graph_copy(inner, copies)
    for part in parts:
        copies[part].meta = {**node.meta, "val": part.meta["val"]}
    for user in [] if is_single else list(node.users):
        user.replace_all_uses_with(result[user.args[1]])
        graph.erase_node(user)
    if is_single:
        node.replace_all_uses_with(result)
    graph.erase_node(node)


def _is_known(part: fx.Node) -> bool:
    """Return whether a call in what was traced has a rule, and is none of those that are numbered."""
    if part.op != "call_function" or "val" not in part.meta:
        return False
    return part.target is operator.getitem or (find_rule(part) is not None and operator_name(part) not in NUMBERED)


def _traced(node: fx.Node, sources: Sequence[fx.Node]) -> fx.Graph:
    """Return the graph of a call, from its tensors to what it gives."""

    def call(*tensors: Tensor) -> Any:
        """Call the operator with other tensors."""
        given = dict(zip(sources, tensors, strict=True))
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda source: given[source])
        return node.target(*args, **kwargs)  # type: ignore[operator]

    with torch.no_grad():
        return make_fx(call)(*[source.meta["val"] for source in sources]).graph
