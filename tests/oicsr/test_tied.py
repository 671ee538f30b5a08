"""Weights with more than one role: used as they are and transposed, or several in one module."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import oicsr
from oicsr.coupling import Coupling
from tests.oicsr.networks import check_every_channel


class TiedAutoencoder(nn.Module):
    """`(batch, 3, 8, 8)` to `(batch, 2, 8, 8)`; the weight reads the image itself, and gives it back transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Conv2d(3, 8, 2, stride=2, bias=False)
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        code = torch.tanh(self.code(x))
        return self.head(functional.conv_transpose2d(code, self.code.weight, stride=2))


class ThreeWeights(nn.Module):
    """`(batch, 6)` to `(batch, 2)`: three weights in one module, without layers."""

    def __init__(self) -> None:
        super().__init__()
        shapes = ((12, 6), (10, 12), (2, 10))
        self.one, self.two, self.three = (nn.Parameter(torch.randn(shape)) for shape in shapes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(functional.linear(x, self.one))
        return functional.linear(torch.relu(functional.linear(x, self.two)), self.three)


class Block(nn.Module):
    """Such a module inside another."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = ThreeWeights()

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


def roles(coupling: Coupling) -> list[tuple[str, int, str]]:
    return [(member.parameter, member.dim, member.side) for member in coupling.members]


def test_what_a_transposed_weight_gives_back_stays_where_it_reads_what_stays() -> None:
    """Found without any trial: the rule itself knows."""
    torch.manual_seed(0)
    model, images = TiedAutoencoder().eval(), torch.randn(2, 3, 8, 8)
    [code] = oicsr.find_couplings(model, images, scope="all", verify="off")
    assert (code.name, code.num_channels, roles(code)) == ("code", 8, [("code.weight", 0, "out")])


def test_couplings_of_several_weights_in_one_module_have_names_of_their_own() -> None:
    torch.manual_seed(0)
    model, inputs = Block().eval(), torch.randn(2, 6)
    couplings = oicsr.find_couplings(model, inputs)
    assert [coupling.name for coupling in couplings] == ["mlp", "mlp.two[0]"]
    assert [roles(coupling) for coupling in couplings] == [
        [("mlp.one", 0, "out"), ("mlp.two", 1, "in")],
        [("mlp.two", 0, "out"), ("mlp.three", 1, "in")],
    ]
    assert check_every_channel(Block(), inputs) == {"mlp": 12, "mlp.two[0]": 10}
    result = oicsr.prune(model, inputs, macs_kept=0.5)
    assert result.model.mlp.one.shape[0] < 12 or result.model.mlp.two.shape[0] < 10


class Pieces(nn.Module):
    """The channels of two layers in one piece of a cut, whose size the module keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(3, 6, 1)
        self.sizes = [16, 6]
        self.p, self.q = nn.Conv2d(16, 5, 1), nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.cat([self.a(x), self.b(x), self.c(x)], 1).split(self.sizes, 1)
        return self.p(parts[0].relu()) + self.q(parts[1].relu())


def test_a_number_follows_each_of_the_couplings_that_are_tied() -> None:
    model, images = Pieces(), torch.zeros(1, 3, 4, 4)
    couplings = oicsr.find_couplings(model, images)
    tied = oicsr.tie_couplings(couplings, [("a", "b")])
    plan = oicsr.PruningPlan.from_kept(tied, {"a": range(5)})
    small = oicsr.remove_channels(model, plan)
    assert small.sizes == [10, 6]
    assert small(images).shape == (1, 5, 4, 4)
    assert oicsr.shrink_couplings(tied, plan)[0].num_channels == 5
    with pytest.raises(ValueError, match=r"it keeps 10\. Where couplings were tied, pass those that"):
        oicsr.shrink_couplings(couplings, plan)  # of b, the plan says nothing by its name
