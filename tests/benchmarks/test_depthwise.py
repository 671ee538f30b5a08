"""Depthwise convolutions in bfloat16: the forward pass as it was, gradients in float32 of what it rounded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.training.depthwise import FastDepthwiseGradients
from benchmarks.training.step import autocast

CPU = torch.device("cpu")


def _gradients(layer: nn.Conv2d, images: Tensor, weights: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the output, and the gradients of input and parameters for the loss `(weights * output).sum()`."""
    given = images.clone().requires_grad_()
    output = layer(given)
    (weights * output.float()).sum().backward()
    found = [given.grad, *(parameter.grad for parameter in layer.parameters())]
    for parameter in layer.parameters():
        parameter.grad = None
    return output, [gradient for gradient in found if gradient is not None]


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"dilation": (2, 1)}, {"bias": False}, {"padding": (0, 2)}])
def test_gradients_are_those_of_float32_for_the_rounded_tensors(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 6, 3, **{"padding": 1, "groups": 6} | options)
    images = torch.randn(4, 6, 9, 9)
    weights = torch.randn_like(layer(images)).bfloat16().float()  # the gradient of the output passes in bfloat16
    with autocast(CPU, "bfloat16"):
        output, found = _gradients(layer, images, weights)
    with torch.autocast("cpu", torch.bfloat16):
        usual, _ = _gradients(layer, images, weights)
    assert output.dtype is torch.bfloat16 and torch.equal(output, usual)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(parameter.bfloat16().float())
    _, exact = _gradients(layer, images.bfloat16().float(), weights)
    assert len(found) == len(exact) == 2 + ("bias" not in options)
    for gradient, reference in zip(found, exact, strict=True):
        assert gradient.dtype is torch.float32
        torch.testing.assert_close(gradient, reference, rtol=1e-5, atol=1e-5)


def test_a_width_of_two_by_hand() -> None:
    weight = torch.tensor([2.0, 3.0]).reshape(2, 1, 1, 1).requires_grad_()
    images = torch.tensor([[1.0, 4.0], [5.0, 7.0]]).reshape(1, 2, 1, 2).requires_grad_()
    with FastDepthwiseGradients():
        output = functional.conv2d(images, weight, groups=2)
        output.float().sum().backward()
    assert output.flatten().tolist() == [2, 8, 15, 21]
    assert weight.grad is not None and weight.grad.flatten().tolist() == [5, 12]
    assert images.grad is not None and images.grad.flatten().tolist() == [2, 2, 3, 3]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 4, 3), (1, 4, 5, 5)),
        (nn.Conv2d(4, 8, 3, groups=2), (1, 4, 5, 5)),
        (nn.Conv2d(4, 4, 3, padding="same", groups=4), (1, 4, 5, 5)),
        (nn.Conv2d(4, 4, 3, groups=4), (4, 5, 5)),  # no batch
    ],
)
def test_other_convolutions_stay_as_they_are(layer: nn.Conv2d, shape: tuple[int, ...]) -> None:
    with autocast(CPU, "bfloat16"):
        assert "Convolution" in layer(torch.ones(shape)).grad_fn.__class__.__name__ or len(shape) == 3
    with autocast(CPU, "float32"):
        assert layer(torch.ones(shape)).dtype is torch.float32


def test_only_what_needs_gradients_in_bfloat16_changes() -> None:
    layer, images = nn.Conv2d(4, 4, 3, groups=4), torch.ones(1, 4, 5, 5)
    with autocast(CPU, "bfloat16"):
        assert "Depthwise" in layer(images).grad_fn.__class__.__name__
        with torch.no_grad():
            assert layer(images).grad_fn is None
    with autocast(CPU, "float32"):
        assert "Convolution" in layer(images).grad_fn.__class__.__name__
