"""Blocks that the exporter sets apart (`torch.no_grad()`, autocast) are written back into the graph that calls them."""

from __future__ import annotations

import operator

from torch import fx

from oicsr.rules.decomposed import decompose


def inline_blocks(module: fx.GraphModule) -> fx.Graph:
    """Return the graph of `module` with the graphs of its blocks in place of the calls; `module` changes too.

    Composite operators without a rule are written out (see `oicsr.rules.decomposed`).
    """
    return decompose(_inlined(module))


def _inlined(module: fx.GraphModule) -> fx.Graph:
    graph = module.graph
    for node in list(graph.nodes):
        block = _block_of(module, node)
        if block is None:
            continue
        inner = _inlined(block)
        inputs = [n for n in inner.nodes if n.op == "placeholder"]
        sources = [n for n in node.args if isinstance(n, fx.Node) and n.op != "get_attr"]
        with graph.inserting_before(node):
            outputs = graph.graph_copy(inner, dict(zip(inputs, sources, strict=True)))
        parts = list(outputs) if isinstance(outputs, list | tuple) else [outputs]
        for user in list(node.users):
            if user.target is operator.getitem:
                user.replace_all_uses_with(parts[user.args[1]])
                graph.erase_node(user)
        graph.erase_node(node)
    return graph


def _block_of(module: fx.GraphModule, node: fx.Node) -> fx.GraphModule | None:
    """Return the block that a node calls, or None where it is no such call."""
    if node.op != "call_function" or getattr(node.target, "namespace", "") != "higher_order":
        return None
    blocks = [n for n in node.args if isinstance(n, fx.Node) and n.op == "get_attr"]
    if len(blocks) != 1 or not str(getattr(node.target, "name", lambda: "")()).startswith("wrap_with"):
        return None
    block = getattr(module, str(blocks[0].target))
    return block if isinstance(block, fx.GraphModule) else None
