"""Multiply-accumulates as other counters count them, so that numbers from papers can be compared.

The suite's own are `oicsr.count_macs`: convolutions and linear layers. fvcore adds two per element of a BatchNorm
(evaluation mode, with scale and shift) and one per input element of an adaptive average pooling; papers that count
"FLOPs" as operations report twice the first number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from oicsr import count_macs
from oicsr.networks.copying import mode
from oicsr.networks.inputs import as_inputs

NORMS = {functional.batch_norm, torch.batch_norm}

POOLINGS = {functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d, functional.adaptive_avg_pool3d}

PER_NORM_ELEMENT, PER_POOLED_ELEMENT = 2, 1


class _Extras(TorchFunctionMode):
    """Sum what BatchNorm and adaptive average pooling cost; a mean over the image's axes is such a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        source = args[0] if args else kwargs.get("input")
        if isinstance(source, Tensor):
            self.total += source.numel() * _per_element(func, source, args, kwargs)
        return result


def _per_element(func: Callable[..., Any], source: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    if func in NORMS:
        return PER_NORM_ELEMENT
    if func in POOLINGS:
        return PER_POOLED_ELEMENT
    if func in (torch.mean, Tensor.mean) and source.dim() > 2:
        axes = args[1] if len(args) > 1 else kwargs.get("dim")
        image_axes = set(range(2, source.dim()))
        over_image = isinstance(axes, Sequence) and {axis % source.dim() for axis in axes} == image_axes
        return PER_POOLED_ELEMENT if over_image else 0
    return 0


def count_macs_with_norm_pool(model: nn.Module, example_inputs: Tensor | Sequence[Tensor]) -> int:
    """Return MACs as fvcore counts them: `count_macs`, and BatchNorm and adaptive average pooling.

    Args:
        model: A network; left as it is.
        example_inputs: Inputs of one forward call; axis 0 is the batch.
    """
    inputs = as_inputs(example_inputs)
    counter = _Extras()
    with mode(model, training=False), torch.no_grad(), counter:
        inputs.call(model)
    return count_macs(model, example_inputs) + counter.total // inputs.tensors()[0].shape[0]
