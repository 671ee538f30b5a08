"""What to do about a width that is a number in a model's code, by the error that a narrower network ends in."""

from __future__ import annotations

from traceback import walk_tb

from torch.nn.functional import multi_head_attention_forward

ATTENTION = multi_head_attention_forward.__code__
VIEWS = "is invalid for input of size"  # of view and reshape, in PyTorch's words


def advice(error: BaseException) -> str:
    """Return what sets the width free that `error` is about."""
    if any(frame.f_code is ATTENTION for frame, _ in walk_tb(error.__traceback__)):
        return "nn.MultiheadAttention checks it: oicsr.open_attention(model) sets it free"
    if VIEWS in str(error):
        return "write -1 in its place, or keep it in an attribute of the module"
    return "take it from the shape of a tensor, or keep it in an attribute of the module"
