"""Later rivals: by hand, by plain loops, and against torch-pruning where it has them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import oicsr
from baselines import Target
from baselines.chip import feature_maps, nuclear_losses
from baselines.group_hoyer import GroupHoyer
from baselines.half_space import HalfSpace
from baselines.hessian import drawn_labels, fisher_diagonal
from baselines.hesso import Hesso, saliency
from baselines.isomorphic_selection import classes, select_by_structure
from baselines.lamp import share_of_the_rest
from baselines.polarization import Polarization
from benchmarks.methods.registry import IMPORTANCES, REGULARIZERS
from tests.baselines.networks import IMAGES, LABELS, prepared, scoring
from tests.baselines.test_hand_computed import two_by_two, with_norm


def test_lamp_by_hand() -> None:
    """Energies 1, 4, 2, 3: the least over all of 10, the next over 9, then 3 of 7, and the greatest over itself."""
    found = share_of_the_rest(torch.tensor([1.0, 4.0, 2.0, 3.0]))
    assert found.tolist() == pytest.approx([1 / 10, 1.0, 2 / 9, 3 / 7])
    assert share_of_the_rest(torch.zeros(3)).tolist() == [0, 0, 0]
    (scores,) = IMPORTANCES["lamp"].score(*two_by_two(), scoring())
    assert scores.tolist() == pytest.approx([79 / (79 + 125), 1.0])


def test_lamp_is_that_of_torch_pruning() -> None:
    tp = pytest.importorskip("torch_pruning")
    model, couplings = prepared("chain")
    graph = tp.DependencyGraph().build_dependency(model, IMAGES)
    group = graph.get_pruning_group(model.conv1, tp.prune_conv_out_channels, idxs=list(range(6)))
    expected = tp.importance.LAMPImportance(p=2)(group)
    torch.testing.assert_close(IMPORTANCES["lamp"].score(model, couplings, scoring())[0].float(), expected.float())


def test_fisher_diagonal_by_a_loop() -> None:
    model, _ = prepared("chain")
    found = fisher_diagonal(model, ["conv1.weight", "bn2.weight"], [(IMAGES, LABELS)])
    expected = {name: torch.zeros_like(model.get_parameter(name)) for name in found}
    model.eval()
    for image, label in zip(IMAGES, LABELS, strict=True):
        model.zero_grad()
        functional.cross_entropy(model(image[None]), label[None]).backward()
        for name, total in expected.items():
            total += model.get_parameter(name).grad.square() / len(IMAGES)
    for name, total in expected.items():
        torch.testing.assert_close(found[name], total)


def test_group_hessian_by_hand() -> None:
    """One input (1, 0), two classes: logits a = W2 W1 x, gradient of a is p - y."""
    model, couplings = two_by_two()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    images, labels = torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([0])
    scorer = type(scoring())(torch.Generator(), lambda: [(images, labels)])
    hidden = (1.0, 3.0)  # the first column of W1
    p = 1 / (1 + math.exp(hidden[0] - hidden[1]))  # of the second class
    by_row = [p**2 * h**2 for h in hidden]  # ∂L/∂W1[i, 0] = ±p, times the weight
    by_column = [p**2 * hidden[i] ** 2 for i in range(2)]  # ∂L/∂W2[i, i] = ±p h_i, times the weight of 1
    for name, sums in {"obd-c": by_row, "hessian": [r + c for r, c in zip(by_row, by_column, strict=True)]}.items():
        (scores,) = IMPORTANCES[name].score(model, couplings, scorer)
        assert scores.tolist() == pytest.approx([2 * s / sum(sums) for s in sums]), name


def test_obd_with_drawn_labels_by_hand() -> None:
    """Logits (1, 3): the slope of a row is ±(1 - p) x, where p is the probability of the label that was drawn."""
    model, couplings = two_by_two()
    model[1].weight.data = torch.eye(2, dtype=torch.float64)
    images, labels = torch.tensor([[1.0, 0.0]] * 8, dtype=torch.float64), torch.zeros(8, dtype=torch.int64)
    drawn = drawn_labels(model, images, torch.Generator().manual_seed(3)).tolist()
    assert {*drawn} == {0, 1}
    chances = [1 / (1 + math.exp(2)), 1 / (1 + math.exp(-2))]
    mean = sum((1 - chances[label]) ** 2 for label in drawn) / 8
    scorer = type(scoring())(torch.Generator().manual_seed(3), lambda: [(images, labels)])
    assert IMPORTANCES["obd-c-raw"].score(model, couplings, scorer)[0].tolist() == pytest.approx([mean, 9 * mean])
    model[1].weight.data.mul_(40)  # sure of the second class: no other label is drawn, and nothing can be learnt
    assert IMPORTANCES["obd-c-raw"].score(model, couplings, scorer)[0].tolist() == pytest.approx([0, 0], abs=1e-12)


def test_labels_are_drawn_as_often_as_they_are_predicted() -> None:
    model, _ = two_by_two()
    model[1].weight.data = torch.eye(2, dtype=torch.float64)
    images = torch.tensor([[1.0, 0.0]] * 4000, dtype=torch.float64)
    drawn = drawn_labels(model, images, torch.Generator().manual_seed(0))
    assert float(drawn.double().mean()) == pytest.approx(1 / (1 + math.exp(-2)), abs=0.02)


def test_group_hessian_is_that_of_torch_pruning_on_its_last_image() -> None:
    """Its release 1.6.1 looks a parameter up by its name in a table by parameter, and so starts anew at each image."""
    tp = pytest.importorskip("torch_pruning")
    model, couplings = prepared("chain")
    model.eval()
    scorer = tp.importance.GroupHessianImportance()
    for image, label in zip(IMAGES, LABELS, strict=True):
        model.zero_grad()
        functional.cross_entropy(model(image[None]), label[None]).backward()
        scorer.accumulate_grad(model)
    graph = tp.DependencyGraph().build_dependency(model, IMAGES)
    expected = scorer(graph.get_pruning_group(model.conv1, tp.prune_conv_out_channels, idxs=list(range(6))))
    last = type(scoring())(torch.Generator(), lambda: [(IMAGES[-1:], LABELS[-1:])])
    torch.testing.assert_close(IMPORTANCES["hessian"].score(model, couplings, last)[0].float(), expected.float())
    whole = IMPORTANCES["hessian"].score(model, couplings, scoring())[0]
    assert not torch.allclose(whole.float(), expected.float(), rtol=1e-3)


def test_second_order_and_independence_need_data() -> None:
    model, couplings = prepared("chain")
    empty = type(scoring())(torch.Generator(), lambda: [])
    for name in ("hessian", "obd-c", "obd-c-raw", "chip"):
        with pytest.raises(ValueError, match="gave no batch"):
            IMPORTANCES[name].score(model, couplings, empty)


@pytest.mark.parametrize("shape", [(2, 2), (4, 9), (9, 4)])
def test_nuclear_losses_by_singular_values(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(shape, generator=generator, dtype=torch.float64)
    maps[-1] = maps[0]  # a copy can be spared
    whole = torch.linalg.matrix_norm(maps, "nuc")
    expected = []
    for row in range(len(maps)):
        without = maps.clone()
        without[row] = 0
        expected.append(float(whole - torch.linalg.matrix_norm(without, "nuc")))
    assert nuclear_losses(maps).tolist() == pytest.approx(expected, abs=1e-6)


def test_independence_by_hand() -> None:
    """Rows (3, 0), (0, 4) are orthogonal: each loses its own length. Equal rows (1, 0) twice lose √2 - 1."""
    assert nuclear_losses(torch.tensor([[3.0, 0.0], [0.0, 4.0]])).tolist() == pytest.approx([3, 4])
    assert nuclear_losses(torch.tensor([[1.0, 0.0], [1.0, 0.0]])).tolist() == pytest.approx([math.sqrt(2) - 1] * 2)


def test_feature_maps_are_what_the_next_layer_reads() -> None:
    model, couplings = prepared("chain")
    model.eval()
    maps = feature_maps(model, couplings, IMAGES)
    first = torch.relu(model.bn1(model.conv1(IMAGES))).detach()
    torch.testing.assert_close(maps[0], first.flatten(2))
    second = model.pool(torch.relu(model.bn2(model.conv2(first)))).detach()
    torch.testing.assert_close(maps[1], second.flatten(2))  # through the flattening


def test_group_hoyer_by_hand() -> None:
    """Filters of norm √5 and 5, columns of norm √74 and 10."""
    model, couplings = two_by_two()
    rows = (math.sqrt(5) + 5) ** 2 / 30
    columns = (math.sqrt(74) + 10) ** 2 / 174
    assert float(GroupHoyer(couplings, 0.5)(model).detach()) == pytest.approx(0.5 * (rows + columns))
    model[0].weight.data.mul_(7)
    assert float(GroupHoyer(couplings, 0.5)(model).detach()) == pytest.approx(0.5 * (rows + columns))


def test_polarization_by_hand() -> None:
    """Scales 2 and -3: mean -0.5, distances 2.5 and 2.5; after the clamp 2 and 0: mean 1, distances 1 and 1."""
    model, couplings = with_norm()
    penalty = Polarization(couplings, 0.5)
    assert float(penalty(model).detach()) == pytest.approx(0.5 * (5 - 5))
    penalty.advance(model)
    assert model[1].weight.tolist() == [2, 0]
    assert float(penalty(model).detach()) == pytest.approx(0.5 * (2 - 2))
    assert float(Polarization(couplings, 0.5, shrinkage=1.5)(model).detach()) == pytest.approx(0.5 * (3 - 2))


def test_polarization_is_least_where_scales_are_parted() -> None:
    model, couplings = with_norm()
    values = []
    for scales in ([1.0, 1.0], [0.5, 1.5], [0.0, 2.0]):
        model[1].weight.data = torch.tensor(scales, dtype=torch.float64)
        values.append(float(Polarization(couplings, 1.0)(model).detach()))
    assert values == pytest.approx([2, 1, 0])


def test_half_space_step_by_hand() -> None:
    """Two groups of a filter alone. The step turns the first one round, and leaves the other's direction."""
    model, couplings = two_by_two()
    step = HalfSpace(couplings, strength=0.0)
    step.advance(model)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[-0.1, 0.1], [2.0, 5.0]]))  # was (1, -2) and (3, 4)
    step.proximal_step(model, 0.1)
    assert model[0].weight.tolist() == [[0, 0], [2, 5]]
    step.advance(model)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 1.0], [2.0, 5.0]]))  # what is zero stays so
    step.proximal_step(model, 0.1)
    assert model[0].weight.tolist() == [[0, 0], [2, 5]]


def test_half_space_subtracts_the_gradient_and_waits_for_its_start() -> None:
    model, couplings = two_by_two()
    step = HalfSpace(couplings, strength=2.0, start=1)
    step.advance(model)
    with torch.no_grad():
        model[0].weight[0] = -model[0].weight[0]  # a turn, but too early to be projected
    step.proximal_step(model, 0.5)
    first = [-1 - 1 / math.sqrt(5), 2 + 2 / math.sqrt(5)]
    assert model[0].weight[0].tolist() == pytest.approx(first)
    assert model[0].weight[1].tolist() == pytest.approx([3 - 3 / 5, 4 - 4 / 5])
    resumed = HalfSpace(couplings, strength=2.0, start=1)
    resumed.load_state_dict(step.state_dict())
    resumed.advance(model)
    with torch.no_grad():
        model[0].weight[0] = -model[0].weight[0]
    resumed.proximal_step(model, 0.0)
    assert model[0].weight[0].tolist() == [0, 0]


def test_half_space_sets_scale_and_shift_to_zero_and_keeps_a_tenth_of_a_layer() -> None:
    model = nn.Sequential(nn.Linear(3, 20, bias=False), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 2))
    model[1].bias.data.fill_(0.5)
    couplings = oicsr.find_couplings(model, torch.zeros(2, 3))
    step = HalfSpace(couplings, strength=0.0)
    step.advance(model)
    with torch.no_grad():
        model[0].weight.neg_()
        model[1].weight.neg_()
    step.proximal_step(model, 0.1)
    alive = model[0].weight.abs().sum(1) > 0
    assert int(alive.sum()) == 2
    assert torch.equal(model[1].weight != 0, alive) and torch.equal(model[1].bias != 0, alive)


def test_half_space_says_what_is_missing() -> None:
    model, couplings = two_by_two()
    with pytest.raises(ValueError, match="call advance"):
        HalfSpace(couplings, 1.0).proximal_step(model, 0.1)
    with pytest.raises(ValueError, match="learning_rate is -1"):
        HalfSpace(couplings, 1.0).proximal_step(model, -1)
    with pytest.raises(ValueError, match=r"epsilon is 1\.5"):
        HalfSpace(couplings, 1.0, epsilon=1.5)


def first_goes(couplings: Sequence[oicsr.Coupling], steps: int) -> Target:
    return Target(0.5, steps, lambda model, scores: oicsr.PruningPlan.from_kept(couplings, {couplings[0].name: [1]}))


def test_hesso_shrinks_in_a_straight_line_to_zero() -> None:
    model, couplings = with_norm()
    model[1].bias.data = torch.tensor([1.0, 1.0], dtype=torch.float64)
    method = REGULARIZERS["hesso"].build(couplings, 0.0, first_goes(couplings, steps=8))
    assert isinstance(method, Hesso) and float(method(model)) == 0
    found = []
    for _ in range(6):
        method.advance(model)
        method.proximal_step(model, 0.1)
        found.append([float(model[0].weight[0, 0].detach()), *(float(p[0].detach()) for p in model[1].parameters())])
    for values, share in zip(found, (3 / 4, 2 / 4, 1 / 4, 0, 0, 0), strict=True):
        assert values == pytest.approx([share * 1.0, share * 2.0, share * 1.0])
    assert model[0].weight[1].tolist() == [3, 4] and model[1].weight[1] == -3  # the other one is left alone
    resumed = REGULARIZERS["hesso"].build(couplings, 0.0, first_goes(couplings, steps=8))
    assert isinstance(resumed, Hesso)
    resumed.load_state_dict(method.state_dict())
    resumed.advance(model)
    model[0].weight.data[0] = 1.0
    resumed.proximal_step(model, 0.1)
    assert model[0].weight[0].tolist() == [0, 0]
    with pytest.raises(ValueError, match="for 3 channels; there are 2"):
        resumed.load_state_dict({"steps": torch.tensor(1), "redundant": torch.zeros(3, dtype=torch.bool)})
    with pytest.raises(ValueError, match="needs a target"):
        REGULARIZERS["hesso"].build(couplings, 0.0)


def test_hesso_saliency_by_hand() -> None:
    """Filters (1, -2), (3, 4); gradients (2, 1) across the first and (3, 4) along the second."""
    model, couplings = two_by_two()
    model[0].weight.grad = torch.tensor([[2.0, 1.0], [3.0, 4.0]], dtype=torch.float64)
    (found,) = saliency(model, couplings)
    norms, products, cosines = (math.sqrt(5), 5.0), (0.0, 25.0), (1.0, 2.0)
    criteria = [norms, [n / 2 for n in norms], cosines, products, [p**2 / 2 for p in products]]
    expected = [sum(c[i] / math.hypot(*c) for c in criteria) / 5 for i in range(2)]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


def test_structures_distinguish_layers() -> None:
    widths = [3, 20, 20, 20]
    convs = [nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths)]
    model = nn.Sequential(*convs, nn.Flatten(), nn.Linear(20 * 64, 30), nn.Linear(30, 2)).double()
    couplings = oicsr.find_couplings(model, IMAGES)
    assert list(classes(model, couplings).values()) == [[0, 1], [2], [3]]  # conv to conv, conv to linear, linear


def test_isomorphic_selection_takes_the_same_share_of_every_class_and_ranks_within() -> None:
    model = nn.Sequential(*(nn.Conv2d(a, b, 3, padding=1) for a, b in ((3, 40), (40, 40), (40, 40))), nn.Flatten())
    model.append(nn.Linear(40 * 64, 40)).append(nn.Linear(40, 4)).double()
    couplings = oicsr.find_couplings(model, IMAGES)
    scores: list[Tensor] = [10.0**i * torch.arange(1, 41) for i in range(len(couplings))]
    plan = select_by_structure(scores, couplings, model, IMAGES, macs_kept=0.6, max_removed=0.9, tolerance=0.2)
    gone = [40 - len(plan.kept[c.name]) for c in couplings]
    shares = [sum(gone[i] for i in places) / (40 * len(places)) for places in classes(model, couplings).values()]
    assert max(shares) - min(shares) <= 1 / 40 + 1e-9 and min(shares) > 0
    assert gone[0] > gone[1]  # in one class, the layer of smaller scores gives more
