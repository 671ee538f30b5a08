"""Rescaling: rows of a given norm, the same function, gradients that scale as they should."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import oicsr
from tests.oicsr.networks import Basic, Chain, randomize_norms


def _loss_gradient(model: nn.Module, x: Tensor, weight: nn.Parameter) -> Tensor:
    return torch.autograd.grad(model(x).square().sum(), weight)[0]


def test_one_row_by_hand() -> None:
    """Row (3, 4) of norm 5 to norm 10: s = 2; mean 1, variance 3, eps 1, scale 6: 6 sqrt(13) / (2 sqrt(4))."""
    model = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1, eps=1.0)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 4.0]]))
        model[0].bias.fill_(0.5)
        model[1].weight.fill_(6.0)
        model[1].running_mean.fill_(1.0)
        model[1].running_var.fill_(3.0)
    done = oicsr.rescale(model, torch.zeros(2, 2).double(), 10.0)
    assert done.factors["0"].tolist() == [2.0]
    assert (model[0].weight.tolist(), model[0].bias.tolist()) == ([[6.0, 8.0]], [1.0])
    assert (model[1].running_mean.item(), model[1].running_var.item()) == (2.0, 12.0)
    assert model[1].weight.item() == pytest.approx(6 * 13**0.5 / 4, rel=1e-14)
    assert model[1].bias.item() == 0.0


@pytest.mark.parametrize("build", [Chain, Basic])
def test_function_is_unchanged_and_gradients_scale(build: type[nn.Module]) -> None:
    model = randomize_norms(build()).double().eval()
    x = torch.randn(2, 3, 8, 8).double()
    before, output = copy.deepcopy(model), model(x)
    done = oicsr.rescale(model, x, 3.0)
    assert torch.allclose(model(x), output, rtol=0, atol=1e-9)
    assert len(done.factors) >= 2
    for name, factors in done.factors.items():
        new, old = model.get_parameter(f"{name}.weight"), before.get_parameter(f"{name}.weight")
        assert torch.allclose(new.flatten(1).norm(dim=1), torch.full((len(factors),), 3.0).double())
        gradient, expected = _loss_gradient(model, x, new), _loss_gradient(before, x, old)
        assert torch.allclose(gradient * factors.reshape(-1, 1, 1, 1), expected, rtol=1e-9, atol=1e-9)


def test_in_training_mode_the_function_differs_by_eps_only() -> None:
    model = randomize_norms(Chain()).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-14
    x = torch.randn(4, 3, 8, 8).double()
    output = copy.deepcopy(model)(x)
    oicsr.rescale(model, x, 0.01)
    assert torch.allclose(model(x), output, rtol=0, atol=1e-9)


def test_norms_of_the_dense_network_after_surgery() -> None:
    dense = randomize_norms(Chain())
    x = torch.randn(2, 3, 8, 8)
    norms = oicsr.row_norms(dense)
    assert norms["conv1"] == pytest.approx(dense.conv1.weight.flatten(1).norm(dim=1).mean().item(), rel=1e-6)
    couplings = oicsr.find_couplings(dense, x)
    with torch.no_grad():
        dense.conv1.weight.mul_(0.1)
    small = oicsr.remove_channels(dense, oicsr.PruningPlan.from_kept(couplings, {"conv1": [0, 2], "conv2": [1, 3]}))
    done = oicsr.rescale(small, x, norms)
    assert torch.allclose(small.conv1.weight.flatten(1).norm(dim=1), torch.tensor(norms["conv1"]))
    assert dict(done.left) == {"fc": "its output is not read by one BatchNorm alone"}
    assert str(done) == "4 rows in 2 layers rescaled, 1 layer left as it is"


def test_a_norm_per_row_and_layers_without_one() -> None:
    model = randomize_norms(Chain()).double().eval()
    x = torch.randn(2, 3, 8, 8).double()
    output = model(x)
    done = oicsr.rescale(model, x, {"conv1": torch.arange(1.0, 7.0)})
    assert torch.allclose(model.conv1.weight.flatten(1).norm(dim=1), torch.arange(1.0, 7.0).double())
    assert done.left["conv2"] == "no norm is given for it"
    assert torch.allclose(model(x), output, rtol=0, atol=1e-9)


def test_dead_rows_stay() -> None:
    model = randomize_norms(Chain()).double().eval()
    x = torch.randn(2, 3, 8, 8).double()
    with torch.no_grad():
        model.conv1.weight[1] = 0.0
        model.conv1.weight[2] *= 1e-12
    statistics, output = model.bn1.running_var.clone(), model(x)
    done = oicsr.rescale(model, x, 1.0)
    assert done.factors["conv1"][1:3].tolist() == [1.0, 1.0]
    assert torch.equal(model.bn1.running_var[1:3], statistics[1:3])
    assert torch.allclose(model(x), output, rtol=0, atol=1e-9)


def test_normalisation_without_scale_and_transposed_convolution() -> None:
    layers = [nn.ConvTranspose2d(3, 5, 2, stride=2), nn.BatchNorm2d(5, affine=False), nn.Conv1d(5, 4, 1)]
    model = nn.Sequential(layers[0], layers[1], nn.Flatten(2), layers[2], nn.BatchNorm1d(4)).double().eval()
    randomize_norms(model)
    layers[1].running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 4, 4).double()
    output = model(x)
    assert set(oicsr.rescale(model, x, {"0": 0.7, "3": 2.0}).factors) == {"0", "3"}
    assert torch.allclose(model(x), output, rtol=0, atol=1e-9)
    assert torch.allclose(layers[0].weight.transpose(0, 1).flatten(1).norm(dim=1), torch.tensor(0.7).double())


class _Awkward(nn.Module):
    """Every layer has a reason of its own to be left as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.norm_a, self.norm_b = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4)
        self.read_twice, self.norm_c = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.scaled, self.norm_d = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.BatchNorm1d(4)
        self.first, self.second, self.shared = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.batch, self.norm_e = nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)
        self.wide, self.norm_f = nn.Linear(4, 4), nn.BatchNorm1d(2)
        self.grouped, self.norm_g = nn.ConvTranspose1d(4, 4, 1, groups=2), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm_b(self.twice(self.norm_a(self.twice(x))))
        y = self.read_twice(x)
        x = self.norm_d(self.scaled(y + self.norm_c(y)))
        x = self.shared(self.second(self.shared(self.first(x))))
        x = self.norm_e(self.batch(x))
        x = self.norm_f(self.wide(x.reshape(-1, 2, 4)))
        return self.norm_g(self.grouped(x.reshape(-1, 4, 2)))


def test_other_places_are_left_alone_with_a_reason() -> None:
    model = _Awkward()
    before = copy.deepcopy(model.state_dict())
    done = oicsr.rescale(model, torch.randn(6, 4), 1.0)
    assert done.factors == {}
    reasons = list(done.left.values())
    for part, count in [("weight is computed", 1), ("used more than once", 3), ("no running statistics", 1)]:
        assert sum(part in reason for reason in reasons) == count, (part, done.left)
    assert "not read by one BatchNorm alone" in done.left["read_twice"]
    assert "another axis" in done.left["wide"]
    assert "grouped transposed" in done.left["grouped"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_layer_whose_weight_is_computed_is_left_by_its_name() -> None:
    wrapped = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
    done = oicsr.rescale(nn.Sequential(wrapped, nn.BatchNorm2d(8)), torch.randn(2, 3, 8, 8), 1.0)
    assert done.left == {"0": "its weight is computed"}


@pytest.mark.parametrize(
    ("norms", "message"),
    [
        (0.0, "norm for 'conv1' is 0.0; it must be positive"),
        ({"conv2": float("nan")}, "norm for 'conv2' is nan"),
        ({"conv2": torch.ones(3)}, r"norms\['conv2'\] has shape \(3,\); the layer has 8 rows"),
        ({"conv9": 1.0}, "norms names 'conv9', but the model has no weight"),
    ],
)
def test_bad_norms_change_nothing(norms: object, message: str) -> None:
    model = randomize_norms(Chain())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        oicsr.rescale(model, torch.randn(2, 3, 8, 8), norms)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_rows_whose_variance_would_be_negative_stay() -> None:
    model = nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4, affine=False)).eval()
    model[1].running_var.copy_(torch.tensor([1.0, 1e-7, 1.0, 1e-7]))
    x = torch.randn(2, 3, 5)
    output, norms = model(x), oicsr.row_norms(model)["0"]
    done = oicsr.rescale(model, x, 0.01 * norms)
    assert done.factors["0"][[1, 3]].tolist() == [1.0, 1.0] and bool((done.factors["0"][[0, 2]] < 0.1).all())
    assert bool((model[1].running_var >= 0).all())
    torch.testing.assert_close(model(x), output, rtol=1e-4, atol=1e-4)


def test_rows_whose_statistics_would_overflow_stay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).half().eval()
    with torch.no_grad():
        model[0].weight[0].mul_(2**-12)  # type: ignore[index, union-attr]
    oicsr.rescale(model, torch.randn(1, 3, 4, 4).half(), 1.0)
    assert all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())
