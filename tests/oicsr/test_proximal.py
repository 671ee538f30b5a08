"""The proximal step against closed forms, a numerical minimum, and what its docstring promises."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import oicsr
from tests.oicsr.networks import Basic, Chain, Mixed

IMAGES = torch.zeros(2, 3, 8, 8)


def two_layers() -> tuple[nn.Module, list[oicsr.Coupling]]:
    """Two linear layers of two channels, of norms 5 and 13: (3, 0 | 4, 0) and (0, 5 | 0, 12)."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)).double()
    model[0].weight.data = torch.tensor([[3.0, 0.0], [0.0, 5.0]]).double()
    model[1].weight.data = torch.tensor([[4.0, 0.0], [0.0, 12.0]]).double()
    return model, oicsr.find_couplings(model, torch.zeros(1, 2).double())


def test_hand_computed_step() -> None:
    model, couplings = two_layers()
    oicsr.ProximalGroupLasso(couplings, strength=10.0).proximal_step(model, 0.1)  # t = 1: norms 5 and 13 lose 1
    assert torch.allclose(model[0].weight, torch.tensor([[3 * 0.8, 0.0], [0.0, 5 * 12 / 13]]).double())
    assert torch.allclose(model[1].weight, torch.tensor([[4 * 0.8, 0.0], [0.0, 12 * 12 / 13]]).double())


def test_groups_within_the_threshold_become_exactly_zero() -> None:
    model, couplings = two_layers()
    penalty = oicsr.ProximalGroupLasso(couplings, strength=5.0)
    assert penalty(model).item() == pytest.approx(5 * 18)
    penalty.proximal_step(model, 1.0)  # t = 5 is the first norm
    assert model[0].weight[0].tolist() == [0.0, 0.0] and model[1].weight[:, 0].tolist() == [0.0, 0.0]
    assert model[0].weight[1, 1].item() == pytest.approx(5 * 8 / 13)
    penalty.proximal_step(model, 0.0)
    assert not bool(model[0].weight.isnan().any())


@pytest.mark.parametrize("sides", [("out", "in"), ("out",), ("in",)])
def test_disjoint_groups_reach_the_minimum_that_defines_the_step(sides: tuple[oicsr.coupling.Side, ...]) -> None:
    """No other point has a lower value of t P(w) + ||w - v||^2 / 2."""
    torch.manual_seed(0)
    model = Basic().double()
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    couplings = oicsr.find_couplings(model, IMAGES.double())
    penalty = oicsr.ProximalGroupLasso(couplings, sides=sides, strength=2.0)
    norms = torch.cat([e.sqrt() for e in oicsr.channel_energy(model, couplings, sides)])
    rate = norms.median().item() / 2.0
    penalty.proximal_step(model, rate)

    def objective(network: nn.Module) -> float:
        now = torch.cat([p.detach().flatten() for p in network.parameters()])
        return rate * penalty(network).item() + 0.5 * (now - before).square().sum().item()

    best = objective(model)
    for size in (1e-1, 1e-3, 1e-5):
        for seed in range(20):
            other = copy.deepcopy(model)
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for p in other.parameters():
                    p.add_(size * torch.randn(p.shape, generator=generator, dtype=p.dtype))
            assert objective(other) > best
    zero = torch.cat(oicsr.channel_energy(model, couplings, sides)) == 0
    assert torch.equal(zero, norms <= 2.0 * rate) and 0 < int(zero.sum()) < len(zero)


def test_overlapping_groups_take_the_product_of_both_factors() -> None:
    torch.manual_seed(0)
    model = Chain().double()
    couplings = {c.name: c for c in oicsr.find_couplings(model, IMAGES.double())}
    norms = {name: oicsr.channel_energy(model, [c])[0].sqrt().detach() for name, c in couplings.items()}
    before = model.conv2.weight.detach().clone()
    oicsr.ProximalGroupLasso(list(couplings.values()), strength=0.3).proximal_step(model, 1.0)
    rows = (1 - 0.3 / norms["conv2"]).clamp(min=0)
    columns = (1 - 0.3 / norms["conv1"]).clamp(min=0)
    assert torch.allclose(model.conv2.weight, before * rows[:, None, None, None] * columns[None, :, None, None])


@pytest.mark.parametrize("network", [Chain, Basic, Mixed])
def test_every_norm_falls_by_at_least_the_threshold(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = network().double()
    couplings = oicsr.find_couplings(model, IMAGES.double(), scope="all")
    penalty = oicsr.ProximalGroupLasso(couplings, strength=0.1)
    before = torch.cat(oicsr.channel_energy(model, couplings)).sqrt().detach()
    signs = [p.detach().sign() for p in model.parameters()]
    for _ in range(3):
        penalty.proximal_step(model, 1.0)
        after = torch.cat(oicsr.channel_energy(model, couplings)).sqrt().detach()
        assert bool((after <= (before - 0.1).clamp(min=0) + 1e-12).all())
        before = after
    kept = [(p.detach() == 0) | (p.detach().sign() == s) for p, s in zip(model.parameters(), signs, strict=True)]
    assert all(bool(k.all()) for k in kept)


def test_first_order_is_the_gradient_step() -> None:
    torch.manual_seed(0)
    model = Chain().double()
    couplings = oicsr.find_couplings(model, IMAGES.double())
    errors = []
    for rate in (1e-3, 1e-4):
        stepped, descended = copy.deepcopy(model), copy.deepcopy(model)
        oicsr.ProximalGroupLasso(couplings, strength=1.0).proximal_step(stepped, rate)
        oicsr.GroupLasso(couplings, strength=1.0).add_gradient(descended)
        torch.optim.SGD(descended.parameters(), lr=rate).step()
        pairs = zip(stepped.parameters(), descended.parameters(), strict=True)
        errors.append(max(float((a - b).detach().abs().max()) for a, b in pairs))
    assert 80 < errors[0] / errors[1] < 120  # a tenth of the rate, a hundredth of the difference
    assert errors[0] > 0


def test_training_to_exact_zeros_matches_the_closed_form_solution() -> None:
    """Least squares towards v plus a Group Lasso has its minimum at (1 - λ / ||v_g||)_+ v_g."""
    model, couplings = two_layers()
    goal = [p.detach().clone() for p in model.parameters()]
    penalty = oicsr.ProximalGroupLasso(couplings, strength=6.0)
    assert isinstance(penalty, oicsr.ProximalRegularizer)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(200):
        optimizer.zero_grad()
        pairs = zip(model.parameters(), goal, strict=True)
        sum((0.5 * (p - g).square().sum() for p, g in pairs), start=torch.zeros(())).backward()
        optimizer.step()
        penalty.proximal_step(model, 0.3)
    assert model[0].weight[0].tolist() == [0.0, 0.0] and model[1].weight[0].tolist() == [0.0, 0.0]
    assert model[0].weight[1, 1].item() == pytest.approx(5 * 7 / 13)
    assert model[1].weight[1, 1].item() == pytest.approx(12 * 7 / 13)


def test_separate_sides_are_groups_of_their_own() -> None:
    model, couplings = two_layers()
    penalty = oicsr.ProximalGroupLasso(couplings, strength=1.0, joint=False)
    assert penalty(model).item() == pytest.approx(3 + 4 + 5 + 12)
    penalty.proximal_step(model, 1.0)
    assert model[0].weight[0, 0].item() == pytest.approx(2) and model[1].weight[1, 1].item() == pytest.approx(11)


def test_frozen_weights_count_but_stay() -> None:
    model, couplings = two_layers()
    model[1].weight.requires_grad_(False)
    oicsr.ProximalGroupLasso(couplings, strength=1.0).proximal_step(model, torch.tensor(1.0, dtype=torch.float64))
    assert model[1].weight.tolist() == [[4.0, 0.0], [0.0, 12.0]]
    assert model[0].weight[0, 0].item() == pytest.approx(3 * 0.8)


def test_half_precision_weights() -> None:
    model, couplings = two_layers()
    model.bfloat16()
    with pytest.warns(UserWarning, match="weights are torch.bfloat16"):
        oicsr.ProximalGroupLasso(couplings, strength=1.0).proximal_step(model, 1.0)
    assert model[0].weight[0, 0].item() == pytest.approx(2.4, rel=2**-8)
    assert model[0].weight.dtype is torch.bfloat16


def test_bad_arguments_quote_the_value() -> None:
    model, couplings = two_layers()
    with pytest.raises(ValueError, match="learning_rate is -1"):
        oicsr.ProximalGroupLasso(couplings).proximal_step(model, -1.0)
    with pytest.raises(ValueError, match="learning_rate is nan"):
        oicsr.ProximalGroupLasso(couplings).proximal_step(model, math.nan)
    with pytest.raises(ValueError, match="strength is inf"):
        oicsr.ProximalGroupLasso(couplings, strength=math.inf)


@pytest.mark.parametrize("kind", [oicsr.ProximalGroupLasso, oicsr.growl.ProximalGrOWL])
def test_steps_that_half_precision_rounds_away_are_said(kind: type[oicsr.ProximalGroupLasso]) -> None:
    model, couplings = two_layers()
    model.bfloat16()
    before = model[0].weight.clone()
    with pytest.warns(UserWarning, match=r"weights are torch.bfloat16, where a proximal step of less than 4e-03"):
        kind(couplings, strength=1.0).proximal_step(model, 1e-4)
    assert torch.equal(model[0].weight, before)
