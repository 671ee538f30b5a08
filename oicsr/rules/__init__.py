"""How channels pass through each operator: one short rule per operator, in one file per family.

A value (activation or parameter) carries `ids`, an integer tensor that is broadcastable to the value's shape and names
the channel that each of its elements belongs to. An activation of shape `(batch, channels, height, width)` has ids of
shape `(1, channels, 1, 1)`; flattened, ids of shape `(1, channels * height * width)` in which each channel stands
`height * width` times. Every rule is arithmetic on such tensors, so that concatenation, flattening, channel shuffles
and broadcasting need no special cases. `ids is None` means that no channel of the value is followed.

An operator without a rule fixes every channel that reaches it: the channels stay, and the reason names the operator
and the module it was called in. A missing rule can therefore cost prunable channels, never a wrong coupling.

To add an operator, write a function `(tracer, node) -> Value | list[Value]` and decorate it with `register_rule`.
"""

from oicsr.rules import convolution, elementwise, indexing, linear, normalization, reduction, shape, spatial
from oicsr.rules.registry import Rule, Value, follows, register_rule
from oicsr.rules.tracer import Slot, Tracer

__all__ = [
    "Rule",
    "Slot",
    "Tracer",
    "Value",
    "convolution",
    "elementwise",
    "follows",
    "indexing",
    "linear",
    "normalization",
    "reduction",
    "register_rule",
    "shape",
    "spatial",
]
