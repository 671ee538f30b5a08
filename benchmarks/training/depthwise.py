"""Depthwise convolutions in bfloat16 on a CPU: their gradients are computed in float32, which is faster there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_DEFAULTS = {"stride": 1, "padding": 0, "dilation": 1}


class FastDepthwiseGradients(TorchFunctionMode):
    """Lets the gradients of depthwise `conv2d` be computed in float32 from the bfloat16 inputs of its forward pass.

    The backward pass of oneDNN's depthwise convolution takes about four times as long in bfloat16 as in float32 and
    was half of a training step of MobileNetV2. The forward pass is faster in bfloat16, and stays as it is. What the
    gradients are computed from is rounded to bfloat16 either way.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function; `_Depthwise` runs a depthwise convolution that needs gradients."""
        kwargs = kwargs or {}
        if func is torch.conv2d and torch.is_grad_enabled():
            named = dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
            if _is_depthwise(named):
                return _Depthwise.apply(*(named.get(key, _DEFAULTS.get(key)) for key in _ARGUMENTS))
        return func(*args, **kwargs)


def _is_depthwise(named: dict[str, Any]) -> bool:
    weight, images = named["weight"], named["input"]
    return (
        images.dim() == 4
        and named.get("groups", 1) == images.shape[1] > 1
        and not isinstance(named.get("padding", 0), str)
        and (weight.requires_grad or images.requires_grad)
    )


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution in bfloat16 whose gradients are computed in float32."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
    ) -> Tensor:
        narrow, filters = images.to(torch.bfloat16), weight.to(torch.bfloat16)
        ctx.save_for_backward(narrow, filters)
        ctx.how = [_pair(stride), _pair(padding), _pair(dilation), False, [0, 0], groups]
        ctx.bias = None if bias is None else [bias.numel()]
        ctx.types = [None if tensor is None else tensor.dtype for tensor in (images, weight, bias)]
        with torch.autocast(images.device.type, enabled=False):
            shift = None if bias is None else bias.to(torch.bfloat16)
            return torch.conv2d(narrow, filters, shift, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, filters = (saved.float() for saved in ctx.saved_tensors)
        asked = list(ctx.needs_input_grad[:3])
        found = torch.ops.aten.convolution_backward(gradient.float(), images, filters, ctx.bias, *ctx.how, asked)
        typed = [None if part is None else part.to(kind) for part, kind in zip(found, ctx.types, strict=True)]
        return (*typed, None, None, None, None)


def _pair(value: int | Sequence[int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)
