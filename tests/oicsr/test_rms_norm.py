"""RMSNorm: channels that are zero go exactly, with the weight and the epsilon changed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import oicsr
from oicsr import PruningPlan


class Stream(nn.Module):
    """A residual stream of six channels under two RMSNorms."""

    def __init__(self, eps: float | None = 1e-2) -> None:
        super().__init__()
        self.start = nn.Linear(4, 6)
        self.norm, self.up, self.down = nn.RMSNorm(6, eps=eps), nn.Linear(6, 5), nn.Linear(5, 6)
        self.last, self.head = nn.RMSNorm(6, eps=eps), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        x = x + self.down(torch.relu(self.up(self.norm(x))))
        return self.head(self.last(x))


def test_the_width_of_a_stream_under_rms_norms_goes_exactly() -> None:
    torch.manual_seed(0)
    model, x = Stream().double(), torch.randn(3, 4, dtype=torch.float64)
    for norm in (model.norm, model.last):
        norm.weight.data.uniform_(0.5, 1.5)
    couplings = oicsr.find_couplings(model, x, scope="all")
    assert {c.name: c.num_channels for c in couplings} == {"start": 6, "up": 5}
    with torch.no_grad():
        for layer in (model.start, model.down):
            layer.weight[[1, 4]] = 0
            layer.bias[[1, 4]] = 0
    before = copy.deepcopy(model)
    plan = PruningPlan.from_kept(couplings, {"start": [0, 2, 3, 5]})
    small = oicsr.remove_channels(model, plan)
    torch.testing.assert_close(small(x), before(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(small.norm.weight, model.norm.weight[[0, 2, 3, 5]] * (6 / 4) ** 0.5)
    assert small.norm.eps == pytest.approx(1e-2 * 6 / 4)
    assert small.norm.normalized_shape == (4,) and model.norm.eps == 1e-2
    twice = oicsr.remove_channels(
        small, PruningPlan.from_kept(oicsr.shrink_couplings(couplings, plan), {"start": [0, 1]})
    )
    assert twice.norm.eps == pytest.approx(1e-2 * 6 / 2)
    small(x).sum().backward()
    assert small.norm.weight.grad is not None


def test_hand_computed_correction() -> None:
    norm = nn.Sequential(nn.Linear(1, 2, bias=False), nn.RMSNorm(2, eps=0.5), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        norm[0].weight.copy_(torch.tensor([[3.0], [0.0]]))
        norm[1].weight.copy_(torch.tensor([2.0, 1.0]))
        norm[2].weight.copy_(torch.tensor([[1.0, 1.0]]))
    x = torch.ones(1, 1, dtype=torch.float64)
    couplings = oicsr.find_couplings(norm, x)
    small = oicsr.remove_channels(norm, PruningPlan.from_kept(couplings, {"0": [0]}))
    assert norm(x).item() == pytest.approx(3 / 5**0.5 * 2)  # the mean of squares is 4.5, plus 0.5
    assert small[1].weight.item() == pytest.approx(2 * 2**0.5) and small[1].eps == pytest.approx(1.0)
    assert small(x).item() == pytest.approx(3 / 10**0.5 * 2 * 2**0.5)


class Called(nn.Module):
    """The function, with the epsilon on the module."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.rand(width) + 0.5), 1e-2
        self.normalized_shape = (width,)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, self.normalized_shape, self.weight, self.eps)


class Written(nn.Module):
    """Written out, as Llama's is: in a type of its own, with the epsilon under another name."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.rand(width) + 0.5), 1e-2

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float64)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * wide.to(x.dtype)


class Divided(nn.Module):
    """Divides by the root, without an epsilon."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x / (x * x).mean(dim=-1, keepdim=True).sqrt() * self.gain


class Images(nn.Module):
    """Over the channels of an image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.rand(width, 1, 1) + 0.5), 1e-2

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(1, keepdim=True) + self.eps) ** -0.5 * self.weight


class Literal(nn.Module):
    """The epsilon is a number in the code."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 0.0625) * self.weight


@pytest.mark.parametrize("norm", [Called, Written, Divided, Images])
def test_other_forms_of_the_same_go_exactly(norm: type[nn.Module]) -> None:
    torch.manual_seed(0)
    image = norm is Images
    first, last = (nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)) if image else (nn.Linear(3, 8), nn.Linear(8, 2))
    model = nn.Sequential(first, norm(8), last).double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64) if image else torch.randn(5, 3, dtype=torch.float64)
    (coupling,) = oicsr.find_couplings(model, x)
    assert (coupling.name, coupling.num_channels) == ("0", 8)
    with torch.no_grad():
        first.weight[[1, 4, 6]] = 0
        first.bias[[1, 4, 6]] = 0
    small = oicsr.remove_channels(model, PruningPlan.from_kept([coupling], {"0": [0, 2, 3, 5, 7]}))
    torch.testing.assert_close(small(x), model(x), rtol=1e-12, atol=1e-12)
    before, after = next(model[1].parameters()).flatten(), next(small[1].parameters()).flatten()
    torch.testing.assert_close(after, before[[0, 2, 3, 5, 7]] * (8 / 5) ** 0.5)
    for name in {"eps", "variance_epsilon"} & set(vars(model[1])):
        assert vars(small[1])[name] == pytest.approx(1e-2 * 8 / 5) and vars(model[1])[name] == 1e-2


def test_an_epsilon_in_the_code_is_refused_by_its_value() -> None:
    model, x = nn.Sequential(nn.Linear(3, 8), Literal(8), nn.Linear(8, 2)), torch.randn(5, 3)
    with pytest.warns(oicsr.UnprunedChannelsWarning, match=r"with 0\.0625 added, .* keep it in an attribute of the"):
        assert oicsr.find_couplings(model, x) == []


class Squares(nn.Module):
    """A mean of squares that is itself the result."""

    def forward(self, x: Tensor) -> Tensor:
        return x.pow(2).mean(-1, keepdim=True)


def test_a_mean_of_squares_that_divides_nothing_keeps_its_channels() -> None:
    model, x = nn.Sequential(nn.Linear(3, 8), Squares(), nn.Sigmoid(), nn.Linear(1, 2)), torch.randn(5, 3)
    with pytest.warns(oicsr.UnprunedChannelsWarning, match="reduces over the channels"):
        assert oicsr.find_couplings(model, x) == []


class Response(nn.Module):
    """Global response normalisation as timm writes it, channels first or last, or with the sum written out."""

    def __init__(self, width: int, last: bool = False, written: bool = False) -> None:
        super().__init__()
        self.eps, self.last, self.written = 1e-2, last, written
        self.weight, self.bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1) if self.last else x
        shape, axis, places = ((1, 1, 1, -1), 3, (1, 2)) if self.last else ((1, -1, 1, 1), 1, (2, 3))
        size = x.norm(p=2, dim=places, keepdim=True)
        share = size / (size.mean(dim=axis, keepdim=True) + self.eps)
        weight, bias = self.weight.view(shape), self.bias.view(shape)
        x = weight * (x * share) + bias + x if self.written else x + torch.addcmul(bias, weight, x * share)
        return x.permute(0, 3, 1, 2) if self.last else x


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_global_response_normalisation_goes_exactly(last: bool, written: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GELU(), Response(8, last, written), nn.Conv2d(8, 2, 1)).double()
    nn.init.uniform_(model[2].weight)
    nn.init.uniform_(model[2].bias)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    (coupling,) = oicsr.find_couplings(model, x)
    assert (coupling.name, coupling.num_channels) == ("0", 8)
    with torch.no_grad():
        for parameter in (model[0].weight, model[0].bias, model[2].bias):
            parameter[[1, 4, 6]] = 0
    small = oicsr.remove_channels(model, PruningPlan.from_kept([coupling], {"0": [0, 2, 3, 5, 7]}))
    torch.testing.assert_close(small(x), model(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(small[2].weight, model[2].weight[[0, 2, 3, 5, 7]] * 8 / 5)
    assert small[2].eps == pytest.approx(1e-2 * 8 / 5) and model[2].eps == 1e-2


def test_hand_computed_response() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), Response(2), nn.Conv2d(2, 1, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([3.0, 0.0]).view(2, 1, 1, 1))
        model[1].weight.fill_(2.0)
        model[2].weight.fill_(1.0)
    model[1].eps = 0.5
    x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    small = oicsr.remove_channels(model, PruningPlan.from_kept(oicsr.find_couplings(model, x), {"0": [0]}))
    assert model(x).item() == pytest.approx(3 + 2 * 3 * 3 / (1.5 + 0.5))  # the norms are 3 and 0, their mean 1.5
    assert small[1].weight.item() == pytest.approx(4.0) and small[1].eps == pytest.approx(1.0)
    assert small(x).item() == pytest.approx(3 + 4 * 3 * 3 / (3 + 1))


class Unit(nn.Module):
    """Divides by the length of the channels, which zeros leave as it is, with a factor that is stored."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.gamma = width**0.5, nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x, dim=-1) * self.scale * self.gamma


class UnitOfSquares(Unit):
    """The same, from a sum of squares."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-3) * self.scale * self.gamma


class UnitOfItsWidth(Unit):
    """The factor is computed from the width, and changes with it: what reads the channels makes up for it."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x, dim=-1) * x.shape[-1] ** 0.5 * self.gamma


@pytest.mark.parametrize("norm", [Unit, UnitOfSquares, UnitOfItsWidth])
def test_channels_divided_by_their_length_go_exactly(norm: type[Unit]) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 8), norm(8), nn.Linear(8, 2)).double(), torch.randn(5, 3).double()
    (coupling,) = oicsr.find_couplings(model, x)
    assert (coupling.name, coupling.num_channels) == ("0", 8)
    with torch.no_grad():
        model[0].weight[[1, 4, 6]] = 0
        model[0].bias[[1, 4, 6]] = 0
    small = oicsr.remove_channels(model, PruningPlan.from_kept([coupling], {"0": [0, 2, 3, 5, 7]}))
    torch.testing.assert_close(small(x), model(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(small[1].gamma, model[1].gamma[[0, 2, 3, 5, 7]])


class OutsideTheRoot(nn.Module):
    """Adds epsilon to the root of the mean of squares."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.rand(width) + 0.5), 1e-2

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x / (x.pow(2).mean(-1, keepdim=True).sqrt() + self.eps))


@pytest.mark.parametrize("norm", [OutsideTheRoot, nn.RMSNorm], ids=["epsilon outside the root", "no epsilon"])
def test_channels_of_zeros_go_under_rarer_norms(norm: type[nn.Module]) -> None:
    model, x = nn.Sequential(nn.Linear(6, 8), norm(8), nn.Linear(8, 4)).double(), torch.randn(3, 6).double()
    [coupling] = oicsr.find_couplings(model, x)
    gone = range(4, 8)
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias):
            tensor[list(gone)] = 0  # type: ignore[index, operator]
    plan = oicsr.PruningPlan.from_kept([coupling], {"0": range(4)})
    torch.testing.assert_close(oicsr.remove_channels(model, plan)(x), model(x), rtol=0, atol=1e-12)
