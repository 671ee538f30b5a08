"""Operators that are written out as those that PyTorch itself makes them of, and others that came with them."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import oicsr
from oicsr.complexity import count_work
from tests.oicsr.networks import check_every_channel

OPERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "hstack": lambda y: torch.hstack([y, y.relu()]).view(len(y), 2, -1, *y.shape[2:]).sum(1),
    "vstack": lambda y: torch.vstack([y, y]),
    "dstack": lambda y: torch.dstack([y, y]),
    "ravel": lambda y: y.ravel().view(y.shape),
    "expit": lambda y: torch.special.expit(y) * y,
    "hsplit": lambda y: torch.cat([part * k for k, part in enumerate(y.hsplit(2))], 1),
    "dsplit": lambda y: torch.cat(y.dsplit(2), 2),
    "atleast_3d": lambda y: torch.atleast_3d(y),
    "flipud": lambda y: y.flipud(),
    "fliplr": lambda y: y.fliplr().fliplr(),
    "trapezoid": lambda y: torch.trapezoid(y, dim=-1)[..., None],
    "quantile": lambda y: y - y.flatten(2).quantile(0.5, -1)[..., None, None],
    "broadcast_tensors": lambda y: torch.broadcast_tensors(y, y[:, :, :1], y.mean((0, 2, 3))[:, None, None])[2],
    "select_scatter": lambda y: y.select_scatter(y[:, :, 0] * 2, 2, 1),
    "slice_scatter": lambda y: y.slice_scatter(y[:, :, :2] * 2, 2, 1, 3),
    "index_fill_": lambda y: y.clone().index_fill_(2, torch.tensor([1]), 0.0),
    "index_fill": lambda y: y.index_fill(3, torch.tensor([0, 2]), 1.0),
    "fake_quantize": lambda y: torch.fake_quantize_per_tensor_affine(y, 0.1, 0, -128, 127),
    "bucketize": lambda y: y * torch.bucketize(y, torch.tensor([0.0, 1.0])),
}


class Between(nn.Module):
    """An operator between two convolutions."""

    def __init__(self, operator: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 5, 1)
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.operator(self.one(x)))


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_followed(name: str) -> None:
    network, x = Between(OPERATORS[name]), torch.randn(2, 3, 4, 4)
    couplings = oicsr.find_couplings(network, x)
    assert [coupling.name for coupling in couplings] == ["one"]
    assert set(check_every_channel(network, x)) == {"one"}


@pytest.mark.filterwarnings("ignore:the outputs of Between")  # random, in evaluation mode as well
def test_numbers_that_are_drawn_in_place_are_in_no_channels_way() -> None:
    network = Between(lambda y: functional.gumbel_softmax(y.flatten(2), dim=-1).view_as(y))
    assert [coupling.name for coupling in oicsr.find_couplings(network, torch.randn(2, 3, 4, 4))] == ["one"]


@pytest.mark.parametrize(
    "operator",
    [
        lambda y: y.select_scatter(y[:, 0] * 2, 1, 3),
        lambda y: y.index_fill(1, torch.tensor([3]), 0.0),
        lambda y: y * torch.bucketize(y, y.mean((0, 2, 3)).sort()[0]),
    ],
)
def test_what_is_done_along_the_channels_keeps_them(operator: Callable[[Tensor], Tensor]) -> None:
    with pytest.warns(oicsr.UnprunedChannelsWarning):
        assert oicsr.find_couplings(Between(operator), torch.randn(2, 3, 4, 4)) == []


def test_products_are_numbered_as_they_are_counted() -> None:
    """A chain of matrices is not written out: the products in it would be numbered in the graph alone."""

    def multiply(y: Tensor) -> Tensor:
        chain = torch.linalg.multi_dot([torch.eye(4), torch.eye(4), y[0, 0].detach() * 0])
        flat = y.flatten(2)
        return ((flat.mT @ flat).softmax(-1).mean((1, 2))[:, None, None] * flat).view_as(y) + chain

    network, x = Between(multiply), torch.randn(2, 3, 4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        couplings = oicsr.find_couplings(network, x)
    assert len(count_work(network, x).products) == 1
    assert {number for coupling in couplings for number in coupling.products} <= {0}
