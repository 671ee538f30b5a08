"""Importances against their definitions in plain loops, and the uniform selection."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import oicsr
from baselines import Scoring
from baselines.channels import channel_sums, channel_vectors
from baselines.taylor import gate_gradients
from baselines.uniform_selection import select_uniformly, share_gone
from benchmarks.methods.registry import IMPORTANCES
from tests.baselines.networks import IMAGES, LABELS, by_formula, loss, prepared, scoring
from tests.baselines.test_hand_computed import two_by_two


def test_taylor_gates_are_those_built_into_the_network() -> None:
    model, couplings = prepared("depthwise")
    model.eval()
    places = {"expand": "norm2", "project": "norm3"}  # the last layer of each coupling before what reads it
    assert [c.name for c in couplings] == list(places)
    found = gate_gradients(model, couplings, IMAGES, LABELS)
    for coupling, gradient in zip(couplings, found, strict=True):
        slopes = [_gate_slope(model, model.get_submodule(places[coupling.name]), i) for i in range(len(gradient))]
        assert gradient.tolist() == pytest.approx(slopes, rel=1e-5, abs=1e-9)


@torch.no_grad()
def _gate_slope(model: nn.Module, layer: nn.Module, channel: int, step: float = 1e-6) -> float:
    """Return how the loss changes with a gate on one channel after a layer (a gate above 0 passes through ReLU)."""
    losses = []
    for gate in (1 + step, 1 - step):

        def multiply(module: nn.Module, inputs: object, output: Tensor, gate: float = gate) -> Tensor:
            factors = torch.ones(output.shape[1], dtype=output.dtype)
            factors[channel] = gate
            return output * factors[:, None, None]

        handle = layer.register_forward_hook(multiply)
        losses.append(float(loss(model)))
        handle.remove()
    return (losses[0] - losses[1]) / (2 * step)


def test_taylor_averages_the_squares_of_batches() -> None:
    model, couplings = prepared("chain")
    scores = IMPORTANCES["taylor"].score(model, couplings, scoring())
    parts = [gate_gradients(model, couplings, IMAGES[i : i + 2], LABELS[i : i + 2]) for i in (0, 2)]
    for score, first, second in zip(scores, *parts, strict=True):
        torch.testing.assert_close(score, (first**2 + second**2) / 2)
    with pytest.raises(ValueError, match="gave no batch"):
        IMPORTANCES["taylor"].score(model, couplings, Scoring(torch.Generator(), lambda: []))


def test_taylor_by_layer_has_norm_one_in_every_layer() -> None:
    model, couplings = prepared("chain")
    scores = IMPORTANCES["taylor"].score(model, couplings, scoring())
    for score, scaled in zip(scores, IMPORTANCES["taylor-layer"].score(model, couplings, scoring()), strict=True):
        torch.testing.assert_close(scaled, score / score.square().sum().sqrt())


def test_taylor_stops_after_30_batches() -> None:
    model, couplings = prepared("chain")
    used = itertools.count()
    endless = ((IMAGES, LABELS) for _ in used)
    IMPORTANCES["taylor"].score(model, couplings, Scoring(torch.Generator(), lambda: endless))
    assert next(used) == 30


def test_group_taylor_by_hand() -> None:
    """One input x = (1, 0), two classes, W2 = 1: the slopes of rows are ±p x, those of columns ±p h, h = W1 x = (1, 3).

    A channel is scored by |p h| for its row and |p h| for its column, where Taylor-FO has (p h)².
    """
    model, couplings = two_by_two()
    model[1].weight.data = torch.eye(2, dtype=torch.float64)
    images, labels = torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([0])
    once = Scoring(torch.Generator(), lambda: [(images, labels)])
    (scores,) = IMPORTANCES["group-taylor"].score(model, couplings, once)
    assert scores.tolist() == pytest.approx([1 / 2, 3 / 2])
    (squares,) = IMPORTANCES["taylor"].score(model, couplings, once)
    assert float(squares[1] / squares[0]) == pytest.approx(9)


def test_group_taylor_adds_gradients_before_it_takes_absolute_values() -> None:
    """Equal logits: the slopes of the two labels of one image are opposite, and cancel where both are seen."""
    model, couplings = two_by_two()
    model[1].weight.data = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    image = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    both = Scoring(torch.Generator(), lambda: [(image, torch.tensor([label])) for label in (0, 1)])
    one = Scoring(torch.Generator(), lambda: [(image, torch.tensor([0]))])
    assert IMPORTANCES["group-taylor"].score(model, couplings, one)[0].tolist() == pytest.approx([2, 0])
    assert IMPORTANCES["group-taylor"].score(model, couplings, both)[0].tolist() == pytest.approx([0, 0], abs=1e-12)
    with pytest.raises(ValueError, match="gave no batch"):
        IMPORTANCES["group-taylor"].score(model, couplings, Scoring(torch.Generator(), lambda: []))


def test_group_taylor_is_that_of_torch_pruning_without_batchnorm() -> None:
    tp = pytest.importorskip("torch_pruning")
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU()]
    model = by_formula(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)))
    couplings = oicsr.find_couplings(model, IMAGES)
    found = IMPORTANCES["group-taylor"].score(model, couplings, scoring())
    for start in (0, 2):
        functional.cross_entropy(model(IMAGES[start : start + 2]), LABELS[start : start + 2]).backward()
    graph = tp.DependencyGraph().build_dependency(model, IMAGES)
    for scores, layer in zip(found, (model[0], model[2]), strict=True):
        group = graph.get_pruning_group(layer, tp.prune_conv_out_channels, idxs=list(range(len(scores))))
        torch.testing.assert_close(scores.float(), tp.importance.GroupTaylorImportance()(group).float())


def test_distances_by_a_loop() -> None:
    model, couplings = prepared("depthwise")
    scores = IMPORTANCES["fpgm"].score(model, couplings, scoring())
    filters = torch.cat([model.expand.weight.flatten(1), model.depthwise.weight.flatten(1)], 1).detach()
    sums = torch.stack([sum((f - g).norm() for g in filters) for f in filters])
    torch.testing.assert_close(scores[0], sums / sums.mean())


def test_lines_of_weights_have_the_energies_of_their_channels() -> None:
    for net in ("chain", "mixed"):  # flattening, concatenation, shuffle and groups
        model, couplings = prepared(net)
        for side in ("out", "in"):
            energies = oicsr.channel_energy(model, couplings, (side,))
            squares = channel_sums(model, couplings, (side,), lambda name, weight: weight.square())
            for coupling, energy, square in zip(couplings, energies, squares, strict=True):
                torch.testing.assert_close(channel_vectors(model, coupling, (side,)).square().sum(1), energy)
                torch.testing.assert_close(square, energy)


def test_uniform_selection_takes_the_same_share_of_every_layer() -> None:
    widths = [3, 40, 60, 50, 5]
    model = nn.Sequential(*(nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths))).double()
    couplings = oicsr.find_couplings(model, IMAGES)
    scores = [torch.arange(c.num_channels) * 10.0**i for i, c in enumerate(couplings)]  # greedy would empty one layer
    for share in (0.8, 0.5, 0.3):
        plan = select_uniformly(scores, couplings, model, IMAGES, macs_kept=share, max_removed=0.9)
        macs = oicsr.count_macs(oicsr.remove_channels(model, plan), IMAGES) / oicsr.count_macs(model, IMAGES)
        gone = [1 - len(plan.kept[c.name]) / c.num_channels for c in couplings]
        assert macs == pytest.approx(share, rel=0.01) and min(gone) > 0
        assert max(gone) - min(gone) <= max(1 / c.num_channels for c in couplings) + 1e-9
        for coupling in couplings:  # the best stay
            kept = plan.kept[coupling.name]
            assert kept == tuple(range(coupling.num_channels - len(kept), coupling.num_channels))


def test_uniform_selection_has_the_cap_and_the_errors_of_the_greedy_one() -> None:
    model, couplings = prepared("chain")
    scores = [torch.ones(c.num_channels) for c in couplings]
    with pytest.raises(ValueError, match="out of reach"):
        select_uniformly(scores, couplings, model, IMAGES, macs_kept=0.3, max_removed=0.2)
    scores[0][1] = torch.nan
    with pytest.raises(ValueError, match="contain NaN"):
        select_uniformly(scores, couplings, model, IMAGES)


def test_shares_refer_to_the_original_width() -> None:
    assert share_gone(torch.tensor([3.0, 1.0, 2.0, 4.0]), 4).tolist() == [0.75, 0.25, 0.5, 1.0]
    assert share_gone(torch.tensor([3.0, 1.0]), 4).tolist() == [1.0, 0.75]  # half is gone already
