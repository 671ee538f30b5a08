"""How channels pass through each operator: one short rule per operator, in one file per family.

A value (activation or parameter) carries `ids`, an integer tensor that is broadcastable to the value's shape and names
the channel that each of its elements belongs to. An activation of shape `(batch, channels, height, width)` has ids of
shape `(1, channels, 1, 1)`; flattened, ids of shape `(1, channels * height * width)` in which each channel stands
`height * width` times. Every rule is arithmetic on such tensors, so that concatenation, flattening, channel shuffles
and broadcasting need no special cases. `ids is None` means that no channel of the value is followed.

An operator without a rule fixes every channel that reaches it: the channels stay, and the reason names the operator
and the module it was called in. A missing rule can therefore cost prunable channels, never a wrong coupling.

`register_rule` adds rules, for operators and for classes of modules; `docs/custom_operators.md` shows how.
"""

from oicsr.rules import (
    convolution,
    elementwise,
    flex,
    groups,
    indexing,
    linear,
    lookup,
    normalization,
    products,
    recurrent,
    reduction,
    rms,
    shape,
    spatial,
    sums,
    weighted,
    writing,
)
from oicsr.rules.calls import argument, axes_of, axis_of, shape_of, source_of, tensor_inputs
from oicsr.rules.einsums import split_einsums
from oicsr.rules.ids import on_axis, varying
from oicsr.rules.inline import inline_blocks
from oicsr.rules.modules import ModuleCall, leaf_modules
from oicsr.rules.notes import Product, Slot
from oicsr.rules.registry import Result, Rule, Value, follows, register_rule
from oicsr.rules.tracer import Tracer
from oicsr.rules.unread import drop_unread, keep_unread

FAMILIES = (
    convolution,
    elementwise,
    flex,
    groups,
    indexing,
    linear,
    lookup,
    normalization,
    products,
    recurrent,
    reduction,
    rms,
    shape,
    spatial,
    sums,
    weighted,
    writing,
)  # registered above

__all__ = [
    "FAMILIES",
    "ModuleCall",
    "Product",
    "Result",
    "Rule",
    "Slot",
    "Tracer",
    "Value",
    "argument",
    "axes_of",
    "axis_of",
    "drop_unread",
    "follows",
    "inline_blocks",
    "keep_unread",
    "leaf_modules",
    "on_axis",
    "register_rule",
    "shape_of",
    "source_of",
    "split_einsums",
    "tensor_inputs",
    "varying",
]
