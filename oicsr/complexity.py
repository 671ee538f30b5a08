"""Size and cost of a network.

MACs (the paper's FLOPs) are the multiply-accumulates of convolutions and linear layers for one input (batch 1),
without bias, normalisation, activation and pooling: the convention of the authors' own counter. torchvision's
ResNet-50 at 224x224 has 4,089,184,256 of them and 25,557,032 parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from oicsr.arguments import check_call
from oicsr.tracing import as_inputs, mode

CONVOLUTIONS = {torch.conv1d, torch.conv2d, torch.conv3d}
TRANSPOSED = {torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d}


class _Positions(TorchFunctionMode):
    """Note, for each weight, at how many positions it is applied."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, int]] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in CONVOLUTIONS or func in TRANSPOSED or func is functional.linear:
            source, weight = args[0], args[1] if len(args) > 1 else (kwargs or {})["weight"]
            values = source if func in TRANSPOSED else result
            # every weight is used once per value of the output that belongs to one output channel
            channels = weight.shape[0]
            self.calls.append((weight, values.numel() // channels))
        return result


def weight_positions(model: nn.Module, example_inputs: Tensor | Sequence[Tensor]) -> tuple[dict[str, int], int]:
    """Return how often each element of each weight is used for one input.

    Args:
        model: A network; run once, in evaluation mode, without gradient. (A run for shapes alone, on the meta device,
            takes longer: there, normalisation layers are traced in Python.)
        example_inputs: The input tensor, or the sequence of them, of one forward call; axis 0 is the batch.

    Returns:
        Parameter name to the number of positions (for a convolution: output height times width), and the MACs of
        weights that are not parameters of the model but computed from them.
    """
    check_call(model, example_inputs)
    inputs = as_inputs(example_inputs)
    batch = inputs[0].shape[0]
    if batch < 1:
        raise ValueError(f"example_inputs have shape {tuple(inputs[0].shape)}; at least one input is needed")
    counter = _Positions()
    with mode(model, training=False), torch.no_grad(), counter:
        model(*inputs)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    positions: dict[str, int] = {}
    others = 0
    for weight, count in counter.calls:
        if id(weight) in names:
            name = names[id(weight)]
            positions[name] = positions.get(name, 0) + count // batch
        else:
            others += count // batch * weight.numel()
    return positions, others


def count_macs(model: nn.Module, example_inputs: Tensor | Sequence[Tensor]) -> int:
    """Return the multiply-accumulates of all convolutions and linear layers for one input (batch 1).

    The paper's FLOPs: no bias, normalisation, activation, pooling or attention product. See the module's docstring.

    Args:
        model: A network; left as it is.
        example_inputs: The input tensor, or the sequence of them, of one forward call; axis 0 is the batch.
    """
    positions, others = weight_positions(model, example_inputs)
    parameters = dict(model.named_parameters())
    return others + sum(count * parameters[name].numel() for name, count in positions.items())


def count_params(model: nn.Module) -> int:
    """Return the number of parameters (buffers, such as running statistics, are none)."""
    return sum(parameter.numel() for parameter in model.parameters())
