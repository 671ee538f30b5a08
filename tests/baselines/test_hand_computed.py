"""Every regulariser and importance on a network of two layers that can be worked out on paper."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

import oicsr
from baselines import Scoring, Target
from baselines.cges import Cges
from baselines.depgraph import GroupNormPenalty
from baselines.elementwise import ElementwisePenalty
from baselines.growing_reg import GrowingPenalty
from benchmarks.methods.registry import IMPORTANCES, REGULARIZERS
from oicsr.growl import SLOPE
from tests.baselines.networks import gradient

SCORING = Scoring(torch.Generator(), lambda: [])


def two_by_two() -> tuple[nn.Module, list[oicsr.Coupling]]:
    """Rows (1, -2) and (3, 4), then columns (5, -7) and (6, 8): energies 5, 25 out and 74, 100 in."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)).double()
    model[0].weight.data = torch.tensor([[1.0, -2.0], [3.0, 4.0]], dtype=torch.float64)
    model[1].weight.data = torch.tensor([[5.0, 6.0], [-7.0, 8.0]], dtype=torch.float64)
    return model, oicsr.find_couplings(model, torch.zeros(1, 2, dtype=torch.float64))


def with_norm() -> tuple[nn.Module, list[oicsr.Coupling]]:
    """The same with a BatchNorm between, of scales 2 and -3."""
    pair, _ = two_by_two()
    model = nn.Sequential(pair[0], nn.BatchNorm1d(2).double(), pair[1])
    model[1].weight.data = torch.tensor([2.0, -3.0], dtype=torch.float64)
    return model, oicsr.find_couplings(model, torch.zeros(2, 2, dtype=torch.float64))


OUT, IN, BOTH = (math.sqrt(5), 5.0), (math.sqrt(74), 10.0), (math.sqrt(79), math.sqrt(125))
VALUES = {
    "l1-weights": 36.0,
    "l2-weights": (1 + 4 + 9 + 16 + 25 + 36 + 49 + 64) / 2,
    "gl-out": sum(OUT),
    "gl-out-prox": sum(OUT),
    "gl-in": sum(IN),
    "gl-separate": sum(OUT) + sum(IN),
    "oicsr-gl": sum(BOTH),
    "oicsr-gl-prox": sum(BOTH),
    "growl": sum(IN),  # two channels: the falling part of PLD is empty
    "growl-prox": sum(IN),
    "growl-oscar": (1 + SLOPE) * IN[1] + IN[0],
    "oicsr-growl": sum(BOTH),
    "oicsr-growl-prox": sum(BOTH),
    "oicsr-growl-oscar": (1 + SLOPE) * BOTH[1] + BOTH[0],
    "cges": 0.8 * sum(IN) + 0.1 * (12**2 + 14**2),  # one coupling: μ = 0.2
    "cges-prox": 0.8 * sum(IN) + 0.1 * (12**2 + 14**2),
    "oicsr-cges": 0.8 * sum(BOTH) + 0.1 * (15**2 + 21**2),
    "slimming": 0.0,
    "gl-norm": 0.0,
    "depgraph": (16 * 79 + 125) / 2,
    "depgraph-noscale": (16 * 79 + 125) / 2,
    "greg1": 0.0,  # before the first step
}


@pytest.mark.parametrize("name", list(VALUES))
def test_penalties(name: str) -> None:
    model, couplings = two_by_two()
    regularizer = REGULARIZERS[name].make(couplings, 0.5)
    assert regularizer is not None
    assert float(regularizer(model).detach()) == pytest.approx(0.5 * VALUES[name], rel=1e-12)


def test_no_regularizer_is_none() -> None:
    assert REGULARIZERS["none"].make(two_by_two()[1], 0.5) is None


WITH_SCALES = {  # 2 and -3
    "gl-norm": 2 + 3,
    "gl-out-norm": math.sqrt(5 + 4) + math.sqrt(25 + 9),
    "gl-in-norm": math.sqrt(74 + 4) + math.sqrt(100 + 9),
    "oicsr-gl-norm": math.sqrt(79 + 4) + math.sqrt(125 + 9),
    "gl-separate-out-norm": sum(OUT) + 5,
    "gl-separate-in-norm": sum(IN) + 5,
    "gl-separate-out-in-norm": sum(OUT) + sum(IN) + 5,
    "oicsr-gl": sum(BOTH),
    "depgraph": (16 * 83 + 134) / 2,
    "depgraph-noscale": (16 * 79 + 125) / 2,
}


@pytest.mark.parametrize("name", list(WITH_SCALES))
def test_penalties_that_may_hold_scales(name: str) -> None:
    model, couplings = with_norm()
    for form in (name, f"{name}-prox"):
        if form in REGULARIZERS:
            regularizer = REGULARIZERS[form].make(couplings, 0.5)
            assert regularizer is not None
            assert float(regularizer(model).detach()) == pytest.approx(0.5 * WITH_SCALES[name], rel=1e-12)


@pytest.mark.parametrize("joint", [True, False])
def test_proximal_step_takes_scale_and_columns(joint: bool) -> None:
    model, couplings = with_norm()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([4.0, -6.0]))
        model[2].weight.copy_(torch.tensor([[3.0, 8.0], [0.0, 0.0]]))  # with the scales, groups of norm 5 and 10
    step = REGULARIZERS["gl-in-norm-prox" if joint else "gl-separate-in-norm-prox"].make(couplings, 7.0)
    assert isinstance(step, oicsr.ProximalRegularizer)
    step.proximal_step(model, 0.5)  # threshold 3.5: of 5 remain 1.5, of 10 remain 6.5
    scales, columns = ([1.2, -3.9], [0.9, 5.2]) if joint else ([0.5, -2.5], [0.0, 4.5])
    assert model[1].weight.tolist() == pytest.approx(scales)
    assert model[2].weight[0].tolist() == pytest.approx(columns)


SCORES = {
    "out-in": [79 / 102, 125 / 102],
    "out-in-raw": [79, 125],
    "out-in-size": [79 / 4, 125 / 4],
    "out-in-max": [79 / 125, 1],
    "out": [5 / 15, 25 / 15],
    "in": [74 / 87, 100 / 87],
    "l1": [3 / 5, 7 / 5],
    "l2": [2 * OUT[0] / sum(OUT), 2 * OUT[1] / sum(OUT)],
    "fpgm": [1, 1],  # of two filters each is as far from the other
    "bn-scale": [2 * OUT[0] / sum(OUT), 2 * OUT[1] / sum(OUT)],  # no BatchNorm: the fallback
    "group-norm": [79 / 125, 1],
}


@pytest.mark.parametrize("name", list(SCORES))
def test_importances(name: str) -> None:
    (scores,) = IMPORTANCES[name].score(*two_by_two(), SCORING)
    assert scores.tolist() == pytest.approx(SCORES[name], rel=1e-12)


def test_batchnorm_scales() -> None:
    model, couplings = with_norm()
    slimming = REGULARIZERS["slimming"].make(couplings, 0.5)
    assert slimming is not None and float(slimming(model).detach()) == 2.5
    assert gradient(slimming, model)["1.weight"].tolist() == [0.5, -0.5]
    assert IMPORTANCES["bn-scale"].score(model, couplings, SCORING)[0].tolist() == [2, 3]
    assert IMPORTANCES["group-norm"].score(model, couplings, SCORING)[0].tolist() == [83 / 134, 1]


def test_a_coupling_without_batchnorm_is_scored_on_the_scale_of_those_that_have_one() -> None:
    layers = [nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)]
    model = nn.Sequential(*layers).eval()
    model[1].weight.data = torch.tensor([2.0, -4.0])
    model[2].weight.data = torch.tensor([[0.0, 1.0], [3.0, 0.0]])
    couplings = oicsr.find_couplings(model, torch.zeros(2, 2))
    scores = IMPORTANCES["bn-scale"].score(model, couplings, SCORING)
    assert [s.tolist() for s in scores] == [[2, 4], [0.5 * 3, 1.5 * 3]]


def test_group_norm_pressure_is_1_for_the_most_and_16_for_the_least_important() -> None:
    model, couplings = two_by_two()
    found = gradient(GroupNormPenalty(couplings, 0.5), model)
    torch.testing.assert_close(found["0.weight"], 0.5 * torch.tensor([16.0, 1.0])[:, None] * model[0].weight.detach())
    torch.testing.assert_close(found["1.weight"], 0.5 * torch.tensor([16.0, 1.0]) * model[1].weight.detach())


def test_group_norm_pressure_between_the_extremes() -> None:
    _, couplings = two_by_two()
    penalty = GroupNormPenalty(couplings, 1.0)
    assert penalty.pressure(torch.tensor([4.0, 4.0])).tolist() == [1, 1]  # equal channels: no 0/0
    three = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    penalty = GroupNormPenalty(oicsr.find_couplings(three, torch.zeros(1, 2)), 1.0)
    assert penalty.pressure(torch.tensor([1.0, 4.0, 9.0])).tolist() == [16, 4, 1]  # norms 1, 2, 3


def test_growing_penalty_chooses_the_small_half_once_and_grows_to_its_ceiling() -> None:
    model, couplings = two_by_two()
    penalty = GrowingPenalty(couplings, growth=0.1)
    for step in range(1, 4):
        penalty.advance(model)
        assert penalty.strength == pytest.approx(0.1 * step)
    assert float(penalty(model).detach()) == pytest.approx(0.3 / 2 * 5)  # the row (1, -2) has the smaller L1 norm
    model[0].weight.data[0] = 100.0  # the choice stands
    assert float(penalty(model).detach()) == pytest.approx(0.3 / 2 * 20000)
    for _ in range(20):
        penalty.advance(model)
    assert penalty.strength == 1.0
    resumed = GrowingPenalty(couplings, growth=0.1)
    resumed.load_state_dict(penalty.state_dict())
    assert float(resumed(model).detach()) == float(penalty(model).detach()) and resumed.strength == 1.0
    with pytest.raises(ValueError, match="for 3 channels; there are 2"):
        resumed.load_state_dict({"steps": torch.tensor(1), "chosen": torch.zeros(3, dtype=torch.bool)})


def test_growing_penalty_takes_exactly_the_filters_that_go_at_the_target() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 99, 3), nn.ReLU(), nn.Conv2d(99, 99, 3), nn.ReLU(), nn.Conv2d(99, 2, 3))
    model.double()
    images = torch.zeros(1, 3, 12, 12, dtype=torch.float64)
    couplings = oicsr.find_couplings(model, images)

    def plan(network: nn.Module, scores: Sequence[Tensor]) -> oicsr.PruningPlan:
        return oicsr.select_channels(scores, couplings, network, images, macs_kept=0.15, max_removed=0.9)

    spec = REGULARIZERS["greg1"]
    penalty = spec.build(couplings, 0.1, Target(macs_kept=0.15, steps=10, plan=plan))
    assert isinstance(penalty, GrowingPenalty) and spec.uses_target
    penalty.advance(model)
    chosen = penalty.state_dict()["chosen"].split([99, 99])
    kept = plan(model, IMPORTANCES["l1"].score(model, couplings, SCORING)).kept
    for coupling, mask in zip(couplings, chosen, strict=True):
        assert mask.logical_not().nonzero().flatten().tolist() == list(kept[coupling.name])
    assert int(torch.cat(chosen).sum()) > 99  # more than half, as the cap allows
    assert type(spec.build(couplings, 0.1)) is GrowingPenalty and not REGULARIZERS["oicsr-gl"].uses_target


def test_exclusive_share_grows_with_depth() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(4))).double()
    for layer in model:
        layer.weight.data.fill_(1)  # columns: ‖w‖₂ = √2, ‖w‖₁ = 2
    couplings = oicsr.find_couplings(model, torch.zeros(1, 2, dtype=torch.float64))
    value = float(Cges(couplings, ("in",), 1.0)(model).detach())
    assert value == pytest.approx(2 * sum((1 - mu) * math.sqrt(2) + mu / 2 * 4 for mu in (0.2, 0.5, 0.8)))


def test_cges_steps_shrink_groups_then_weights() -> None:
    model, couplings = two_by_two()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[3.0, 6.0], [-4.0, 0.5]]))  # columns of norm 5 and √36.25
    step = REGULARIZERS["cges-prox"].make(couplings, 2.0)
    assert isinstance(step, oicsr.ProximalRegularizer)
    step.proximal_step(model, 0.5)  # one coupling: μ = 0.2, thresholds 0.8 for groups and 0.2 ‖g‖₁ for weights
    columns = []
    for column in ([3.0, -4.0], [6.0, 0.5]):
        factor = 1 - 0.8 / math.hypot(*column)
        threshold = 0.2 * factor * sum(map(abs, column))
        columns.append([math.copysign(max(0.0, factor * abs(w) - threshold), w) for w in column])
    assert model[1].weight.T.tolist() == [pytest.approx(column) for column in columns]
    assert model[1].weight[1, 1] == 0  # weights of a column compete: the small one goes


def test_proximal_group_lasso_shrinks_each_group_by_its_norm() -> None:
    model, couplings = two_by_two()
    rows = model[0].weight.detach().clone()
    out = REGULARIZERS["gl-out-prox"].make(couplings, 3.0)
    assert isinstance(out, oicsr.ProximalRegularizer)
    out.proximal_step(model, 1.0)  # the row of norm √5 < 3 goes, that of norm 5 keeps 2
    torch.testing.assert_close(model[0].weight.detach(), torch.stack([0 * rows[0], rows[1] * 2 / 5]))
    assert model[1].weight.tolist() == [[5, 6], [-7, 8]]


@pytest.mark.filterwarnings("ignore:.*nearly zero:oicsr.UntriedWarning")
def test_proximal_step_of_overlapping_groups_takes_both_factors() -> None:
    wide = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    wide.double()
    with torch.no_grad():
        wide[0].weight.copy_(torch.tensor([[3.0], [0.2]]))
        wide[1].weight.copy_(torch.tensor([[4.0, 0.4], [0.0, 0.0]]))
        wide[2].weight.copy_(torch.tensor([[1.0, 0.5]]))
    couplings = oicsr.find_couplings(wide, torch.zeros(1, 1, dtype=torch.float64))
    step = REGULARIZERS["oicsr-gl-prox"].make(couplings, 0.5)
    assert isinstance(step, oicsr.ProximalRegularizer)
    step.proximal_step(wide, 1.0)
    first = [(5 - 0.5) / 5, 0.0]  # norms 5 and 0.45
    second = [1 - 0.5 / math.sqrt(4**2 + 0.4**2 + 1), 0.0]  # norms of (4, 0.4, 1) and (0, 0, 0.5)
    assert wide[0].weight.flatten().tolist() == pytest.approx([3 * first[0], 0])
    assert wide[1].weight.flatten().tolist() == pytest.approx([4 * first[0] * second[0], 0, 0, 0])
    assert wide[2].weight.flatten().tolist() == pytest.approx([second[0], 0])


def test_impossible_settings_are_refused() -> None:
    _, couplings = two_by_two()
    with pytest.raises(ValueError, match=r"margin is 0\.7"):
        Cges(couplings, ("in",), 1.0, margin=0.7)
    with pytest.raises(ValueError, match="power is 3"):
        ElementwisePenalty(couplings, 1.0, power=3)
    with pytest.raises(ValueError, match="share is 1"):
        GrowingPenalty(couplings, 1.0, share=1)
