"""Depthwise convolutions in bfloat16 on a CPU: their gradients are computed in float32, which is faster there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class FastDepthwiseGradients(TorchFunctionMode):
    """Lets the gradients of depthwise `conv2d` be computed in float32 from the bfloat16 inputs of its forward pass.

    The backward pass of oneDNN's depthwise convolution takes about four times as long in bfloat16 as in float32 and
    was half of a training step of MobileNetV2. The forward pass is faster in bfloat16, and stays as it is. What the
    gradients are computed from is rounded to bfloat16 either way.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function; `_Depthwise` runs a depthwise convolution."""
        return (_conv2d if func is torch.conv2d else func)(*args, **(kwargs or {}))


def _conv2d(
    input: Tensor,  # the names are those of torch.conv2d
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Any:
    depthwise = input.dim() == 4 and groups == input.shape[1] > 1 and not isinstance(padding, str)
    convolve = _Depthwise.apply if depthwise else torch.conv2d
    return convolve(input, weight, bias, stride, padding, dilation, groups)


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
