"""What the next layer sees of a channel, by hand, by quadrature and by data."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import oicsr
from baselines import Scoring
from baselines.activation_importance import rectified_moment
from benchmarks.methods.registry import IMPORTANCES

SCORING = Scoring(torch.Generator(), lambda: [])


def score(name: str, model: nn.Module, inputs: Tensor) -> list[list[float]]:
    couplings = oicsr.find_couplings(model, inputs)
    return [scores.tolist() for scores in IMPORTANCES[name].score(model, couplings, SCORING)]


def shares(*values: float) -> list[float]:
    """Return values over their mean."""
    return pytest.approx([len(values) * value / sum(values) for value in values], rel=1e-6)


def test_moments_worked_out_by_hand() -> None:
    scale = torch.tensor([1.0, 2.0, 0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    shift = torch.tensor([0.0, 0.0, 3.0, -3.0, 1e3, -1e3], dtype=torch.float64)
    # half of a normal variable's variance; a constant; all of it passes; none of it does
    assert rectified_moment(scale, shift).tolist() == pytest.approx([0.5, 2.0, 9.0, 0.0, 1e6 + 1, 0.0])


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("shift", [-2.0, -0.3, 0.0, 0.5, 4.0])
def test_moments_by_quadrature(scale: float, shift: float) -> None:
    z = torch.linspace(-12, 12, 400_001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    expected = float(torch.trapezoid((scale * z + shift).clamp(min=0).square() * density, z))
    found = rectified_moment(torch.tensor(scale).double(), torch.tensor(shift).double())
    assert float(found) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def two_channels(norm: nn.Module | None) -> nn.Module:
    """Filters of energy 4 and 9, then columns of energy 5 and 2; scales 1 and -2, shifts 0 and 1."""
    first, last = nn.Linear(1, 2, bias=norm is None), nn.Linear(2, 2, bias=False)
    first.weight.data = torch.tensor([[2.0], [3.0]])
    last.weight.data = torch.tensor([[1.0, 1.0], [2.0, -1.0]])
    if norm is not None:
        norm.weight.data, norm.bias.data = torch.tensor([1.0, -2.0]), torch.tensor([0.0, 1.0])
    return nn.Sequential(first, *([norm] if norm is not None else []), nn.ReLU(), last).eval()


def test_scores_with_batchnorm_by_hand() -> None:
    norm = nn.BatchNorm1d(2, eps=1e-30)
    norm.running_var.copy_(torch.tensor([4.0, 1.0]))
    model = two_channels(norm)
    assert score("scale-in", model, torch.zeros(2, 1)) == [shares(1 * 5, 4 * 2)]
    cdf, density = 0.5 * (1 + math.erf(0.5 / math.sqrt(2))), math.exp(-0.125) / math.sqrt(2 * math.pi)
    moment = (1 + 4) * cdf + 1 * 2 * density  # of γ = 2, β = 1
    assert score("seen", model, torch.zeros(2, 1)) == [shares(0.5 * 5, moment * 2)]
    assert score("folded", model, torch.zeros(2, 1)) == [shares(4 * 1 / 4 + 5, 9 * 4 / 1 + 2)]


def test_scores_with_groupnorm_by_hand() -> None:
    """A channel is a whole group, which GroupNorm divides by its own deviation: filters are free of scale."""
    model = two_channels(nn.GroupNorm(2, 2))
    assert score("folded", model, torch.zeros(2, 1)) == [shares(1 + 5, 4 + 2)]
    assert score("scale-in", model, torch.zeros(2, 1)) == [shares(1 * 5, 4 * 2)]


class Gated(nn.Module):
    """A convolution with BatchNorm whose output is multiplied by a gate, as in squeeze-and-excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)
        self.gate, self.last = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.first(x))) * torch.sigmoid(self.gate(x)))


@pytest.mark.filterwarnings("ignore:.*nearly zero:oicsr.UntriedWarning")
def test_a_gate_is_left_out() -> None:
    model = Gated().eval()
    model.norm.weight.data = torch.tensor([1.0, 2.0])
    model.last.weight.data = torch.tensor([3.0, 1.0]).reshape(1, 2, 1, 1)
    assert score("scale-in", model, torch.zeros(1, 1, 4, 4)) == [shares(1 * 9, 4 * 1)]


@pytest.mark.filterwarnings("ignore:.*nearly zero:oicsr.UntriedWarning")
def test_without_normalisation_the_filters_stand_in_for_the_scale() -> None:
    model = two_channels(None)
    model[0].bias.data = torch.tensor([0.0, 0.0])
    assert score("scale-in", model, torch.zeros(2, 1)) == [shares(4 * 5, 9 * 2)]
    assert score("seen", model, torch.zeros(2, 1)) == [shares(4 / 2 * 5, 9 / 2 * 2)]
    assert score("folded", model, torch.zeros(2, 1)) == [shares(4 + 5, 9 + 2)]
    model[0].bias.data = torch.tensor([0.0, 1e4])  # so large that ReLU passes everything
    assert score("seen", model, torch.zeros(2, 1)) == [shares(4 / 2 * 5, (9 + 1e8) * 2)]


def test_batchnorm_without_scale_and_shift() -> None:
    norm = nn.BatchNorm1d(2, affine=False, eps=1e-30)
    norm.running_var.copy_(torch.tensor([4.0, 1.0]))
    filters = two_channels(None)
    model = nn.Sequential(nn.Linear(1, 2, bias=False), norm, nn.ReLU(), filters[2]).eval()
    model[0].weight.data = filters[0].weight.data
    assert score("scale-in", model, torch.zeros(2, 1)) == [shares(5, 2)]
    assert score("seen", model, torch.zeros(2, 1)) == [shares(0.5 * 5, 0.5 * 2)]
    assert score("folded", model, torch.zeros(2, 1)) == [shares(4 / 4 + 5, 9 / 1 + 2)]


def test_the_last_normalisation_layer_before_a_reader_counts() -> None:
    layers = [nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2), nn.ReLU()]
    layers += [nn.Conv2d(2, 2, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 3, 1)]
    model = nn.Sequential(*layers).eval()
    model[1].weight.data, model[4].weight.data = torch.tensor([9.0, 7.0]), torch.tensor([1.0, 2.0])
    columns = model[6].weight.detach().square().sum((0, 2, 3)).tolist()
    assert score("scale-in", model, torch.zeros(1, 1, 4, 4)) == [shares(columns[0], 4 * columns[1])]


class TwoReaders(nn.Module):
    """One layer, read by two others through a normalisation layer of their own, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 2, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(2) for _ in range(2))
        self.readers = nn.ModuleList(nn.Conv2d(2, 1, 1, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        pair = [read(torch.relu(norm(x))) for norm, read in zip(self.norms, self.readers, strict=True)]
        return torch.cat(pair, 1)


@pytest.mark.filterwarnings("ignore:.*nearly zero:oicsr.UntriedWarning")
def test_every_reader_has_its_own_normalisation_layer() -> None:
    model = TwoReaders().eval()
    for norm, scales in zip(model.norms, ([1.0, 2.0], [3.0, 1.0]), strict=True):
        norm.weight.data = torch.tensor(scales)
    for reader, weights in zip(model.readers, ([1.0, 1.0], [2.0, 1.0]), strict=True):
        reader.weight.data = torch.tensor(weights).reshape(1, 2, 1, 1)
    found = score("scale-in", model, torch.zeros(1, 1, 4, 4))
    assert found[0] == shares(1 * 1 + 9 * 4, 4 * 1 + 1 * 1)


def test_what_is_seen_is_what_data_give() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.rand(16) + 0.2)
        model[1].bias.normal_(0, 0.7)
        activation = model[2](model[1](model[0](torch.randn(20_000, 64, dtype=torch.float64))))
        expected = activation.square().mean(0) * model[3].weight.square().sum(0)
    assert score("seen", model.eval(), torch.zeros(2, 64).double())[0] == pytest.approx(
        (expected / expected.mean()).tolist(), rel=0.05, abs=1e-3
    )
