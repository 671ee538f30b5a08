"""A strength that fits a training, and what shows that it did its work."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import oicsr
from oicsr.penalties import DEFAULT_STRENGTH
from tests.oicsr.networks import Chain

IMAGES = torch.zeros(1, 3, 8, 8)

# small networks by hand: with a few channels at zero, nothing may come through that could be compared
pytestmark = pytest.mark.filterwarnings("ignore:.*nearly zero:oicsr.UntriedWarning")


def _two_layers() -> tuple[nn.Sequential, list[oicsr.Coupling]]:
    """Return a network whose channels have the norms 5, 13 and 0."""
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 5.0], [0.0, 0.0]]))
        model[2].weight.copy_(torch.tensor([[4.0, 12.0, 0.0]]))
    return model, oicsr.find_couplings(model, torch.zeros(1, 2))


def test_strength_by_hand() -> None:
    """Mean norm 6, pull 2, 100 steps at 0.1 with momentum 0.5: 2 * 6 * 0.5 / 10."""
    model, couplings = _two_layers()
    strength = oicsr.suggest_strength(model, couplings, learning_rate=0.1, steps=100, momentum=0.5)
    assert strength == pytest.approx(0.6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_suggestion_takes_that_much_off_a_channel_that_nothing_holds(momentum: float) -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    couplings = oicsr.find_couplings(model, torch.zeros(1, 3))
    before = oicsr.channel_energy(model, couplings)[0].sqrt().mean().item()
    options = {"learning_rate": 0.01, "steps": 400, "momentum": momentum}
    strength = oicsr.suggest_strength(model, couplings, pull=0.4, **options)
    penalty = oicsr.GroupLasso(couplings, strength=strength)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=momentum)
    for _ in range(400):
        optimizer.zero_grad()
        penalty(model).backward()
        optimizer.step()
    after = oicsr.channel_energy(model, couplings)[0].sqrt().mean().item()
    assert before - after == pytest.approx(0.4 * before, rel=0.05)


def test_the_default_strength_does_something_in_a_fine_tuning() -> None:
    """Three hundred steps of regression: energy moves into few channels with the penalty, and not without."""
    torch.manual_seed(0)
    target = torch.randn(8, 1)
    held = {}
    for strength in (0.0, DEFAULT_STRENGTH):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
        couplings = oicsr.find_couplings(model, torch.zeros(1, 8))
        penalty = oicsr.GroupLasso(couplings, strength=strength)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        for _ in range(1500):
            x = torch.randn(64, 8)
            optimizer.zero_grad()
            ((model(x) - torch.relu(x @ target)).square().mean() + penalty(model)).backward()
            optimizer.step()
        held[strength] = oicsr.weak_energy(model, couplings)
    assert held[0.0] > 0.1
    assert held[DEFAULT_STRENGTH] < 0.02
    assert oicsr.GroupLasso([]).strength == oicsr.ProximalGroupLasso([]).strength == DEFAULT_STRENGTH


def test_weak_energy_by_hand() -> None:
    """Energies 25, 169 and 0."""
    model, couplings = _two_layers()
    assert oicsr.weak_energy(model, couplings, 1 / 3) == 0.0
    assert oicsr.weak_energy(model, couplings, 2 / 3) == pytest.approx(25 / 194)
    assert oicsr.weak_energy(model, couplings, 1.0) == pytest.approx(1.0)
    plan = oicsr.PruningPlan.from_kept(couplings, {"0": [0, 2]})
    assert oicsr.weak_energy(model, couplings, plan=plan) == pytest.approx(169 / 194)


def test_layers_count_alike() -> None:
    model = Chain()
    couplings = oicsr.find_couplings(model, IMAGES)
    before = oicsr.weak_energy(model, couplings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(100.0)
    assert oicsr.weak_energy(model, couplings) == pytest.approx(before, rel=1e-5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert oicsr.weak_energy(model, couplings) == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"pull": float("inf")}, "pull is inf"),
        ({"couplings": []}, "there are no couplings"),
    ],
)
def test_arguments_out_of_range(options: dict[str, object], message: str) -> None:
    model, couplings = _two_layers()
    arguments = {"couplings": couplings, "learning_rate": 0.1, "steps": 10, **options}
    with pytest.raises(ValueError, match=message):
        oicsr.suggest_strength(model, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="share is 2"):
        oicsr.weak_energy(model, couplings, 2)
    with pytest.raises(ValueError, match="does not name the coupling '0'"):
        oicsr.weak_energy(model, couplings, plan=oicsr.PruningPlan({}, ()))
    with pytest.raises(ValueError, match="no couplings"):
        oicsr.weak_energy(model, [])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_network_that_diverged_is_neither_sparse_nor_given_a_strength(value: float) -> None:
    model, couplings = _two_layers()
    with torch.no_grad():
        model[2].weight[0, 1] = value
    assert math.isnan(oicsr.weak_energy(model, couplings))
    with pytest.raises(ValueError, match=rf"is {value}: '2\.weight' holds numbers that are not finite\. .*lower"):
        oicsr.suggest_strength(model, couplings, learning_rate=0.1, steps=10)
    with pytest.raises(ValueError, match=r"'0' contain NaN: . of 3 channels\. '2\.weight' holds numbers"):
        oicsr.select_channels(oicsr.out_in_energy(model, couplings), couplings, model, torch.zeros(1, 2))
