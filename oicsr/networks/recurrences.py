"""Layers where shapes alone count: one step of a recurrent one tells them, and PyTorch would take all, in Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from oicsr.networks.grouped import in_any_precision

LAYERS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
FUNCTIONS = frozenset(getattr(torch, name) for name in LAYERS)
OPERATORS = tuple(getattr(torch.ops.aten, name).input for name in LAYERS)  # those of packed sequences are others


class OneStep(TorchFunctionMode):
    """On the meta device, recurrent layers by the shapes of one step; products by groups in any precision.

    Linear layers go without their bias there: PyTorch has that sum in Python, at ten times the cost of the product.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        is_layer = func in FUNCTIONS and not kwargs and len(args) == 9 and isinstance(args[3], bool)  # and not packed
        if is_layer and isinstance(args[0], Tensor) and args[0].is_meta:
            return _of_one_step(func, *args)
        if func is functional.linear and len(args) == 3 and not kwargs and _takes_bias(*args):
            args = args[:2]
        return in_any_precision(func)(*args, **(kwargs or {}))


def _takes_bias(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Return whether a linear layer on the meta device can add its bias; where it cannot, PyTorch says why."""
    if bias is None or not x.is_meta or not x.dtype == weight.dtype == bias.dtype:
        return False
    return weight.ndim == 2 and x.shape[-1:] == weight.shape[1:] and bias.shape == weight.shape[:1]


@contextmanager
def one_step_exported() -> Iterator[None]:
    """Let the exporter find the shapes of recurrent layers by one step; the graph is that of the whole sequence.

    It runs what PyTorch has written in Python for tensors without values: 500 steps of two layers take half a minute.
    """
    kernels = [(operator, dict(getattr(operator, "py_kernels", {}))) for operator in OPERATORS]
    for operator, own in kernels:
        _set_kernels(operator, {key: partial(_of_one_step, kernel) for key, kernel in own.items()})
    try:
        yield
    finally:
        for operator, own in kernels:
            _set_kernels(operator, own)


def _set_kernels(operator: Any, kernels: Mapping[Any, Callable[..., Any]]) -> None:
    if kernels:
        operator.py_kernels.update(kernels)
        operator._dispatch_cache.clear()


def _of_one_step(layer: Callable[..., Any], x: Tensor, *options: Any) -> Any:
    """Return what a layer gives for a sequence: outputs without values `(steps, batch, width)`, and the states."""
    axis = 1 if options[-1] else 0  # batch_first
    steps = x.shape[axis]
    if x.ndim != 3 or steps < 2:
        return layer(x, *options)
    outputs, *states = layer(x.narrow(axis, 0, 1), *options)
    whole = outputs.new_empty((steps, *outputs.transpose(0, axis).shape[1:]))  # steps first in memory, as in a layer
    return whole.transpose(0, axis), *states
