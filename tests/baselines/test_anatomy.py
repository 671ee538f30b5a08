"""The anatomy of Group Lasso: every selection of sides is there, and each is what its formula says."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

import oicsr
from baselines import Scoring
from baselines.anatomy import GROUPS, Group, regularizers
from benchmarks.methods.registry import IMPORTANCES, METHODS, REGULARIZERS
from oicsr.coupling import SIDES
from tests.baselines.networks import NETWORKS, prepared

SCORING = Scoring(torch.Generator(), lambda: [])


def test_every_selection_of_sides_is_there_once() -> None:
    subsets = [s for k in (1, 2, 3) for s in itertools.combinations(SIDES, k)]
    expected = [(s, True) for s in subsets] + [(s, False) for s in subsets if len(s) > 1]
    found = [(group.sides, group.joint) for group in GROUPS]
    assert sorted(found) == sorted(set(expected) - {(("out", "in"), True)})  # that one is OICSR-GL
    assert REGULARIZERS["oicsr-gl"].sides == REGULARIZERS["oicsr-gl-prox"].sides == ("out", "in")
    assert {spec.name for spec in regularizers()} <= set(METHODS) & set(REGULARIZERS)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_a_method_scores_by_the_sides_that_it_shrinks(group: Group) -> None:
    for name in (group.name, f"{group.name}-prox"):
        assert METHODS[name].importance.sides == METHODS[name].regularizer.sides == group.sides
        assert METHODS[name].importance.name == "-".join(group.sides)


@pytest.mark.parametrize("net", list(NETWORKS))
@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_value_by_a_loop(group: Group, net: str) -> None:
    model, couplings = prepared(net)
    expected = 0.0
    for coupling in couplings:
        for channel in range(coupling.num_channels):
            energies = [_energy(model, coupling, channel, side) for side in group.sides]
            expected += math.sqrt(sum(energies)) if group.joint else sum(map(math.sqrt, energies))
    for name in (group.name, f"{group.name}-prox"):
        regularizer = REGULARIZERS[name].make(couplings, 0.3)
        assert regularizer is not None
        assert float(regularizer(model).detach()) == pytest.approx(0.3 * expected, rel=1e-10)


@torch.no_grad()
def _energy(model: nn.Module, coupling: oicsr.Coupling, channel: int, side: str) -> float:
    total = 0.0
    for member in coupling.members:
        if member.counts and member.side == side:
            for position in (member.channels == channel).nonzero().flatten().tolist():
                total += float(model.get_parameter(member.parameter).select(member.dim, position).square().sum())
    return total


def test_scale_energy_falls_back_to_filters_where_there_is_no_scale() -> None:
    layers = [nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)]
    model = nn.Sequential(*layers).eval()
    model[1].weight.data = torch.tensor([1.0, -3.0])
    model[2].weight.data = torch.tensor([[0.0, 1.0], [3.0, 0.0]])
    couplings = oicsr.find_couplings(model, torch.zeros(2, 2))
    scores = IMPORTANCES["norm"].score(model, couplings, SCORING)
    assert [s.tolist() for s in scores] == [pytest.approx([0.2, 1.8]), pytest.approx([0.2, 1.8])]


def test_importance_with_scale_by_hand() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2), nn.Linear(2, 1, bias=False)).eval()
    model[0].weight.data = torch.tensor([[1.0, 2.0], [0.0, 1.0]])  # energies 5 and 1
    model[1].weight.data = torch.tensor([1.0, -2.0])  # 1 and 4
    model[2].weight.data = torch.tensor([[3.0, 1.0]])  # 9 and 1
    couplings = oicsr.find_couplings(model, torch.zeros(2, 2))
    for name, energies in {"norm": (1, 4), "out-norm": (6, 5), "in-norm": (10, 5), "out-in-norm": (15, 6)}.items():
        (scores,) = IMPORTANCES[name].score(model, couplings, SCORING)
        assert scores.tolist() == pytest.approx([2 * e / sum(energies) for e in energies]), name


# ----------------------------------------------------------------------------------------------------------------
# the algebra of docs/anatomy.md
# ----------------------------------------------------------------------------------------------------------------


def test_filters_before_batchnorm_have_no_scale() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4, eps=1e-20), nn.ReLU(), nn.Linear(4, 3))
    model.double()
    images = torch.randn(16, 5, dtype=torch.float64)
    before = model(images)
    loss = before.square().sum()
    (gradient,) = torch.autograd.grad(loss, model[0].weight)
    assert torch.allclose((gradient * model[0].weight).sum(1), torch.zeros(4).double(), atol=1e-9)  # orthogonal
    with torch.no_grad():
        model[0].weight.mul_(torch.tensor([[0.1], [2.0], [5.0], [0.5]]))
    torch.testing.assert_close(model(images), before, rtol=1e-9, atol=1e-9)
    (after,) = torch.autograd.grad(model(images).square().sum(), model[0].weight)
    torch.testing.assert_close(
        after, gradient / torch.tensor([[0.1], [2.0], [5.0], [0.5]])
    )  # 1/r: the step over r, 1/r²


@pytest.mark.parametrize("normalize", [True, False])
def test_what_a_channel_can_trade(normalize: bool) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(4) if normalize else nn.Identity()
    model = nn.Sequential(nn.Linear(5, 4), norm, nn.ReLU(), nn.Linear(4, 3)).double().eval()
    images = torch.randn(16, 5, dtype=torch.float64)
    before = model(images)
    factors = torch.tensor([0.1, 2.0, 5.0, 0.5], dtype=torch.float64)
    with torch.no_grad():
        producer = model[1] if normalize else model[0]
        producer.weight.mul_(factors if normalize else factors[:, None])
        producer.bias.mul_(factors)
        model[3].weight.div_(factors)
    torch.testing.assert_close(model(images), before, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("x", "y"), [(1.0, 1.0), (0.2, 3.0), (4.0, 0.1)])
def test_penalties_that_are_left_once_the_trade_is_made(x: float, y: float) -> None:
    a = torch.logspace(-4, 4, 400_001, dtype=torch.float64)
    p, strength, decay = x * y, 0.3, 0.01
    left = {
        "joint": (strength * ((a * x).square() + (y / a).square()).sqrt(), strength * math.sqrt(2 * p)),
        "separate": (strength * (a * x + y / a), 2 * strength * math.sqrt(p)),
        "weight decay": (strength / 2 * ((a * x).square() + (y / a).square()), strength * p),
        "decay of the other": (
            strength * y / a + decay / 2 * (a * x).square(),
            1.5 * decay ** (1 / 3) * (strength * p) ** (2 / 3),
        ),
    }
    for name, (values, expected) in left.items():
        assert float(values.min()) == pytest.approx(expected, rel=1e-6), name
    assert float((strength * y / a).min()) < 1e-3  # one side alone: nothing


def test_without_normalisation_the_scale_changes_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 3)).double()
    couplings = oicsr.find_couplings(model, torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    for with_scale, without in (
        ("oicsr-gl-norm", "oicsr-gl"),
        ("gl-in-norm", "gl-in"),
        ("depgraph", "depgraph-noscale"),
    ):
        both = [REGULARIZERS[name].make(couplings, 0.1) for name in (with_scale, without)]
        assert all(one is not None for one in both)
        values = [float(one(model).detach()) for one in both if one is not None]
        assert values[0] == values[1] > 0
    for with_scale, without in (("out-in-norm", "out-in"), ("in-norm", "in")):
        pairs = zip(*(IMPORTANCES[n].score(model, couplings, SCORING) for n in (with_scale, without)), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
