"""Equations of any form are written as plain ones of two factors, which is what channels are followed through."""

from __future__ import annotations

from collections.abc import Container

import torch
from torch import Tensor, fx

from oicsr.contractions import plain_steps
from oicsr.rules.calls import shape_of

EINSUM = torch.ops.aten.einsum.default


def split_einsums(graph: fx.Graph, weights: Container[str]) -> None:
    """Put plain calls of `einsum` in the place of others, in place; those of weights alone stay.

    Args:
        graph: The graph.
        weights: Names of the placeholders of parameters and buffers.
    """
    from_inputs: set[fx.Node] = set()
    for node in list(graph.nodes):
        is_input = node.op == "placeholder" and node.name not in weights
        if is_input or not from_inputs.isdisjoint(node.all_input_nodes):
            from_inputs.add(node)
        if node.target is EINSUM and node in from_inputs:
            _split(graph, node)


def _split(graph: fx.Graph, node: fx.Node) -> None:
    equation, factors = node.args[:2]
    assert isinstance(factors, list | tuple)
    sources = [factor for factor in factors if isinstance(factor, fx.Node)]
    steps = plain_steps((equation, [torch.empty(shape_of(source), device="meta") for source in sources]))
    left, rest = sources[:1], sources[1:]
    for step in steps[:-1]:
        with graph.inserting_before(node):
            left = [_call(graph, step, [*left, rest.pop(0)], node)]
    if steps:
        node.args, node.kwargs = (steps[-1], [*left, *rest]), {}


def _call(graph: fx.Graph, equation: str, factors: list[fx.Node], whole: fx.Node) -> fx.Node:
    """Return a call that makes part of a product, in the place and module of the whole."""
    part = graph.call_function(EINSUM, (equation, factors))
    value: Tensor = torch.einsum(equation, *[factor.meta["val"] for factor in factors])
    part.meta = {**whole.meta, "val": value}
    return part
