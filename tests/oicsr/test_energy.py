"""Energies and Group Lasso against hand-computed values, a brute-force loop and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from torch import Tensor, nn

import oicsr
from benchmarks.models import MODELS
from tests.oicsr.attentions import Separate
from tests.oicsr.networks import Basic, Chain, Mixed, narrowed

SIDES = [("out", "in"), ("out",), ("in",), ("norm",), ("out", "in", "norm")]


def two_by_two() -> tuple[nn.Module, list[oicsr.Coupling]]:
    """Two linear layers of two channels: rows (1, 2) and (3, 4), then columns (5, 7) and (6, 8)."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[0].weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    model[1].weight.data = torch.tensor([[5.0, 6.0], [7.0, 8.0]])
    return model, oicsr.find_couplings(model, torch.zeros(1, 2))


def test_hand_computed_energies() -> None:
    model, couplings = two_by_two()
    assert [e.tolist() for e in oicsr.channel_energy(model, couplings)] == [[5.0 + 74.0, 25.0 + 100.0]]
    assert oicsr.channel_energy(model, couplings, sides=("out",))[0].tolist() == [5.0, 25.0]
    assert oicsr.channel_energy(model, couplings, sides=("in",))[0].tolist() == [74.0, 100.0]


def test_complex_weights_count_by_their_absolute_values() -> None:
    model, couplings = two_by_two()
    model[0].weight.data = model[0].weight.data * (0.6 + 0.8j)  # of the same absolute values
    model[1].weight.data = model[1].weight.data * 1j
    (energy,) = oicsr.channel_energy(model, couplings)
    assert energy.tolist() == pytest.approx([79.0, 125.0])
    oicsr.GroupLasso(couplings, strength=1.0)(model).backward()
    norms = torch.tensor([79.0, 125.0]).sqrt()
    torch.testing.assert_close(model[0].weight.grad, model[0].weight.detach() / norms[:, None])
    torch.testing.assert_close(model[1].weight.grad, model[1].weight.detach() / norms)


def test_hand_computed_penalties() -> None:
    model, couplings = two_by_two()
    joint = oicsr.GroupLasso(couplings, strength=0.5)(model)
    separated = oicsr.GroupLasso(couplings, sides=("out",), strength=0.5)(model)
    apart = oicsr.GroupLasso(couplings, strength=0.5, joint=False)(model)
    assert joint.item() == pytest.approx(0.5 * (math.sqrt(79) + math.sqrt(125)))
    assert separated.item() == pytest.approx(0.5 * (math.sqrt(5) + 5))
    assert apart.item() == pytest.approx(0.5 * (math.sqrt(5) + 5 + math.sqrt(74) + 10))


def test_hand_computed_gradient() -> None:
    model, couplings = two_by_two()
    oicsr.GroupLasso(couplings, strength=1.0)(model).backward()
    # the gradient of a norm is the weight over the norm of its group
    assert torch.allclose(model[0].weight.grad[0], torch.tensor([1.0, 2.0]) / math.sqrt(79))
    assert torch.allclose(model[1].weight.grad[:, 1], torch.tensor([6.0, 8.0]) / math.sqrt(125))


def brute_force(model: nn.Module, coupling: oicsr.Coupling, sides: tuple[str, ...]) -> Tensor:
    """Sum squares channel by channel and slice by slice, through autograd."""
    energies = []
    for channel in range(coupling.num_channels):
        total = torch.zeros((), dtype=torch.float64)
        for member in coupling.members:
            if member.counts and member.side in sides:
                weight = model.get_parameter(member.parameter)
                for index in (member.channels == channel).nonzero().flatten().tolist():
                    total = total + weight.select(member.dim, index).square().sum()
        energies.append(total)
    return torch.stack(energies)


NETWORKS = {
    "chain": (Chain, (2, 3, 8, 8)),
    "basic": (Basic, (2, 3, 8, 8)),
    "mixed": (Mixed, (2, 3, 8, 8)),
    "resnet20": (lambda: MODELS["resnet20"](10), (1, 3, 32, 32)),
    "vgg16": (lambda: narrowed(MODELS["vgg16"](10), torch.zeros(1, 3, 32, 32), 8), (1, 3, 32, 32)),
    "mobilenetv2": (lambda: MODELS["mobilenetv2"](10), (1, 3, 32, 32)),
    "densenet": (lambda: torchvision.models.DenseNet(8, (2, 3), 16, num_classes=10), (1, 3, 64, 64)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_energy_and_penalty_equal_brute_force(name: str) -> None:
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = build().double()
    couplings = oicsr.find_couplings(model, torch.zeros(shape, dtype=torch.float64))
    few = couplings if len(couplings) < 8 else couplings[:2] + couplings[-2:]
    expected = [brute_force(model, coupling, ("out", "in")) for coupling in few]
    energies = oicsr.channel_energy(model, few)
    for got, want in zip(energies, expected, strict=True):
        assert torch.allclose(got, want, rtol=1e-10, atol=0)
    penalty = oicsr.GroupLasso(few, strength=1.0)(model)
    reference = sum(energy.sqrt().sum() for energy in expected)
    assert penalty.item() == pytest.approx(reference.item(), rel=1e-12)
    weights = [p for p in model.parameters() if p.ndim > 1]
    got_gradients = torch.autograd.grad(penalty, weights, allow_unused=True)
    want_gradients = torch.autograd.grad(reference, weights, allow_unused=True)
    for got, want in zip(got_gradients, want_gradients, strict=True):
        assert (got is None) == (want is None)
        assert got is None or torch.allclose(got, want, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("network", [Chain, Basic, Mixed])
def test_gradient_equals_finite_differences(network: type[nn.Module], sides: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    model = network().double()
    couplings = oicsr.find_couplings(model, torch.zeros(2, 3, 8, 8, dtype=torch.float64), scope="all")
    penalty = oicsr.GroupLasso(couplings, sides=sides, strength=0.7)
    names = [name for name, _ in model.named_parameters()]

    def value(*weights: Tensor) -> Tensor:
        replaced = nn.Module()
        replaced.get_parameter = dict(zip(names, weights, strict=True)).__getitem__  # type: ignore[method-assign]
        return penalty(replaced)

    assert torch.autograd.gradcheck(value, tuple(model.parameters()), fast_mode=True)


def test_gradient_of_a_dead_channel_is_zero() -> None:
    model, couplings = two_by_two()
    with torch.no_grad():
        model[0].weight[0] = 0
        model[1].weight[:, 0] = 0
    oicsr.GroupLasso(couplings, strength=1.0)(model).backward()
    assert model[0].weight.grad[0].tolist() == [0.0, 0.0]
    assert model[1].weight.grad[:, 0].tolist() == [0.0, 0.0]
    assert bool(torch.isfinite(model[1].weight.grad).all())


def test_depthwise_and_grouped_weights_count_on_the_out_side() -> None:
    model = Mixed()
    couplings = {c.name: c for c in oicsr.find_couplings(model, torch.zeros(2, 3, 8, 8))}
    before = oicsr.channel_energy(model, [couplings["expand"]], sides=("out",))[0]
    with torch.no_grad():
        model.depthwise.weight.zero_()
    after = oicsr.channel_energy(model, [couplings["expand"]], sides=("out",))[0]
    assert bool((after < before).all())


def test_importance_normalisations() -> None:
    model, couplings = two_by_two()
    assert oicsr.out_in_energy(model, couplings, "none")[0].tolist() == [79.0, 125.0]
    assert oicsr.out_in_energy(model, couplings, "size")[0].tolist() == [79.0 / 4, 125.0 / 4]
    assert oicsr.out_in_energy(model, couplings, "layer_mean")[0].tolist() == pytest.approx([79 / 102, 125 / 102])
    assert oicsr.out_in_energy(model, couplings, "layer_max")[0].tolist() == pytest.approx([79 / 125, 1.0])


def test_importance_of_an_empty_layer_is_zero_not_nan() -> None:
    model, couplings = two_by_two()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert oicsr.out_in_energy(model, couplings)[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("normalize", ["none", "size", "layer_mean"])
def test_where_no_weight_is_on_the_side_all_weights_count(normalize: str) -> None:
    """No columns read the rows of queries and keys: with zeros, all of these channels would go first."""
    model = Separate().double()
    couplings = oicsr.find_couplings(model, torch.zeros(1, 5, 12, dtype=torch.float64))
    readers = [any(member.side == "in" for member in coupling.members) for coupling in couplings]
    assert sorted(readers) == [False, True]
    both, columns = (oicsr.out_in_energy(model, couplings, normalize, sides=s) for s in (("out", "in"), ("in",)))
    for has_readers, own, one in zip(readers, both, columns, strict=True):
        assert bool((one > 0).all())
        assert torch.equal(own, one) != has_readers
    rows = model.q.weight.square().sum(1) + model.k.weight.square().sum(1)
    if normalize == "none":
        assert torch.allclose(columns[readers.index(False)], rows.unflatten(0, (3, 4)).sum(0).detach())


def test_bad_arguments_quote_the_value() -> None:
    model, couplings = two_by_two()
    with pytest.raises(ValueError, match="sides is 'out'"):
        oicsr.channel_energy(model, couplings, sides="out")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"strength is tensor\(\[0.1000\]\); it must be a number"):
        oicsr.GroupLasso([], strength=torch.tensor([0.1]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="strength is -1"):
        oicsr.GroupLasso(couplings, strength=-1)
    with pytest.raises(ValueError, match="normalize is 'l2'"):
        oicsr.out_in_energy(model, couplings, "l2")
    with pytest.raises(ValueError, match="not those of this"):
        oicsr.channel_energy(Chain(), couplings)


@pytest.mark.parametrize("normalize", ["layer_mean", "layer_max"])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e-12])
def test_importance_of_small_weights_is_normalised_as_any(normalize: str, scale: float) -> None:
    """A network near zero has the relative importances of the same network at its own scale; one of zeros has none."""
    model = Chain().double()
    couplings = oicsr.find_couplings(model, torch.zeros(1, 3, 8, 8).double())
    expected = oicsr.out_in_energy(model, couplings, normalize)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    for found, reference in zip(oicsr.out_in_energy(model, couplings, normalize), expected, strict=True):
        assert torch.allclose(found, reference, rtol=1e-9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(bool((found == 0).all()) for found in oicsr.out_in_energy(model, couplings, normalize))


def test_gradients_have_the_type_of_their_weights_where_types_mix() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    couplings = oicsr.find_couplings(model, torch.zeros(1, 3))
    model[2].double()
    oicsr.GroupLasso(couplings, strength=0.1).add_gradient(model)
    assert [p.grad.dtype for p in (model[0].weight, model[2].weight)] == [torch.float32, torch.float64]
    added = [p.grad.clone() for p in (model[0].weight, model[2].weight)]
    model.zero_grad()
    oicsr.GroupLasso(couplings, strength=0.1)(model).backward()
    torch.testing.assert_close(added, [model[0].weight.grad, model[2].weight.grad])


def test_energies_of_no_weights_are_where_the_network_is() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    couplings = oicsr.find_couplings(model, torch.zeros(1, 4).double())
    [energy] = oicsr.channel_energy(model, couplings, ("norm",))
    assert energy.dtype == torch.float64 and torch.equal(energy, torch.zeros(8, dtype=torch.float64))
