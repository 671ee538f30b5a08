"""Products by groups: each group of rows is multiplied by a matrix of its own, out of a stack (mixtures of experts)."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from oicsr.rules.calls import argument, shape_of, source_of
from oicsr.rules.ids import on_axis, varying
from oicsr.rules.notes import Product
from oicsr.rules.pairs import single
from oicsr.rules.products import multiply_matrices
from oicsr.rules.registry import Result, Value, register_rule
from oicsr.rules.tracer import Tracer
from oicsr.rules.weighted import is_weight
from oicsr.rules.weights import labels_of

BLOCK = 8  # PyTorch's kernels want rows of a multiple of 16 bytes: so many numbers in half precision
BY_GROUPS = ("aten::_grouped_mm", "oicsr::grouped_mm", "transformers::grouped_mm_fallback")


@register_rule(*BY_GROUPS)
def multiply_by_groups(tracer: Tracer, node: fx.Node) -> Result:
    """Rows `(rows, in)`, a stack `(groups, in, out)` and the end of each group: `(rows, out)`.

    Channel `i` goes from all matrices of the stack at once, and blocks of channels go together: the operator takes no
    other widths. Without ends, it is a product of two stacks.
    """
    source, stack, ends = source_of(node), argument(node, 1), argument(node, 2)
    if not isinstance(ends, fx.Node):
        result = single(tracer, multiply_matrices(tracer, node))
        _tie_blocks(tracer, tracer.ids(source), 2)
        return result
    if len(shape_of(source)) != 2 or len(shape_of(stack)) != 3 or isinstance(argument(node, "bias"), fx.Node):
        return tracer.opaque(node, "multiplies groups in a form without a rule")
    if not is_weight(tracer, stack):
        return tracer.computed_weight(node, stack)
    ids = tracer.ids(source)
    if ids is not None and ids.shape[0] > 1:
        return tracer.opaque(node, "makes groups of channels")
    tracer.read_channels(node, source, stack, axis=1, dim=1)
    out = on_axis(tracer.start_channels(stack, dim=2), 1, 2)
    _tie_blocks(tracer, tracer.ids(source), 1)
    if stack.meta["val"].stride(2) == 1:
        _tie_blocks(tracer, out, 1)
    read, rows = (labels_of(tracer, stack, dim) for dim in (1, 2))
    tracer.note_product(Product(node, "weight", torch.zeros(0, dtype=torch.int64), rows, None, read))
    return Value(out)


def _tie_blocks(tracer: Tracer, ids: Tensor | None, axis: int) -> None:
    """Tie the channels of each block of an axis."""
    for block in () if ids is None or axis not in varying(ids) else ids.split(BLOCK, axis):
        tracer.tie_axis(block, axis)
