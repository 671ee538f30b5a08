"""Products over axes of any form are written as plain equations of two factors, which channels are followed through."""

from __future__ import annotations

from collections.abc import Container

import torch
from torch import Tensor, fx

from oicsr.contractions import plain_steps, tensordot_equation
from oicsr.rules.calls import argument, operator_name, shape_of

EINSUM = torch.ops.aten.einsum.default
CONTRACTIONS = ("aten::tensordot", "aten::inner")


def split_einsums(graph: fx.Graph, weights: Container[str]) -> None:
    """Put plain calls of `einsum` in the place of others, and of `tensordot` and `inner`, in place.

    Those of weights alone stay.

    Args:
        graph: The graph.
        weights: Names of the placeholders of parameters and buffers.
    """
    from_inputs: set[fx.Node] = set()
    for node in list(graph.nodes):
        is_input = node.op == "placeholder" and node.name not in weights
        if is_input or not from_inputs.isdisjoint(node.all_input_nodes):
            from_inputs.add(node)
        if node in from_inputs and operator_name(node) in CONTRACTIONS:
            _write_as_einsum(node)
        if node in from_inputs and node.target is EINSUM:
            _split(graph, node)


def _write_as_einsum(node: fx.Node) -> None:
    factors = [argument(node, 0), argument(node, 1)]
    first, second = (shape_of(factor) for factor in factors)
    is_inner = operator_name(node) == "aten::inner"
    axes = ([-1], [-1]) if is_inner else (argument(node, 2), argument(node, 3))
    equation = tensordot_equation(first, second, axes) if first and second else ""
    if equation:
        node.target, node.args, node.kwargs = EINSUM, (equation, factors), {}


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
