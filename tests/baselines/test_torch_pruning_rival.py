"""torch-pruning as a rival and as an independent oracle for groups, penalties and importances."""

from __future__ import annotations

import sys
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import oicsr
from baselines.torch_pruning_rival import GrowingPeerPenalty, PeerPenalty, _group_norm, example_inputs_for
from benchmarks.methods.registry import IMPORTANCES, REGULARIZERS
from tests.baselines.networks import IMAGES, PEERS, built, by_formula, gradient, prepared, scoring

tp = pytest.importorskip("torch_pruning")


class PlainConvolutions(nn.Module):
    """Convolutions one after another, of different widths, and nothing between them but ReLU."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, 5, 7, 4, 6]
        self.layers = nn.Sequential(*(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths)))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


def test_our_groups_are_those_of_depgraph_channel_for_channel() -> None:
    torch.manual_seed(0)  # with some others, the last ReLU lets nothing through
    model = PlainConvolutions()
    images = torch.zeros(1, 3, 8, 8)
    ours = set()
    for coupling in oicsr.find_couplings(model, images):
        for channel in range(coupling.num_channels):
            members = [m for m in coupling.members if m.counts]
            slices = [(m.parameter, m.dim, i) for m in members for i in (m.channels == channel).nonzero().flatten()]
            ours.add(frozenset((name, dim, int(index)) for name, dim, index in slices))
    assert ours == _depgraph_groups(model, images)
    assert len(ours) == 5 + 7 + 4


def _depgraph_groups(model: nn.Module, images: Tensor) -> set[frozenset[tuple[str, int, int]]]:
    """Return, for every channel that is not an output, the convolution slices that torch-pruning removes with it."""
    names = {module: name for name, module in model.named_modules()}
    graph = tp.DependencyGraph().build_dependency(model, images)
    groups = set()
    for layer in list(model.layers)[:-1]:
        for channel in range(layer.out_channels):
            slices = set()
            for dependency, indices in graph.get_pruning_group(layer, tp.prune_conv_out_channels, idxs=[channel]):
                if isinstance(dependency.target.module, nn.Conv2d):
                    dim = 0 if dependency.handler == tp.prune_conv_out_channels else 1
                    slices |= {(f"{names[dependency.target.module]}.weight", dim, int(index)) for index in indices}
            groups.add(frozenset(slices))
    return groups


@pytest.mark.parametrize("net", ["chain", "basic"])
def test_its_group_norm_rule_is_ours(net: str) -> None:
    model, couplings = prepared(net)
    theirs, ours = (gradient(built(name, model, couplings), model) for name in ("tp-group-norm", "depgraph"))
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], rtol=1e-4, atol=1e-8)  # float32 in the library
    values = [float(built(name, model, couplings)(model).detach()) for name in ("tp-group-norm", "depgraph")]
    assert values[0] == pytest.approx(values[1], rel=1e-5)


@pytest.mark.parametrize("net", ["chain", "basic"])
def test_its_importances_are_ours(net: str) -> None:
    model, couplings = prepared(net)
    theirs = IMPORTANCES["tp-group-norm"].score(model, couplings, scoring())
    for their, our in zip(theirs, IMPORTANCES["group-norm"].score(model, couplings, scoring()), strict=True):
        torch.testing.assert_close(their.double(), our, rtol=1e-5, atol=0)
    scales = IMPORTANCES["bn-scale"].score(model, couplings, scoring())
    for their, our in zip(IMPORTANCES["tp-bn-scale"].score(model, couplings, scoring()), scales, strict=True):
        torch.testing.assert_close(their.double(), our / our.mean(), rtol=1e-5, atol=0)


def test_its_scale_rule_is_network_slimming_where_a_coupling_has_one_batchnorm() -> None:
    model, couplings = prepared("chain")
    theirs, ours = (gradient(built(name, model, couplings), model) for name in ("tp-bn-scale", "slimming"))
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], rtol=1e-4, atol=1e-8)


def test_its_growing_rule_starts_even_and_grows_for_the_least_important() -> None:
    model, couplings = prepared("chain")
    penalty = GrowingPeerPenalty(couplings, 0.1)
    first = gradient(penalty, model)
    torch.testing.assert_close(first["conv1.weight"], 0.1 * model.conv1.weight.detach(), rtol=1e-5, atol=1e-9)
    for _ in range(390):
        penalty.advance(model)
    grown = gradient(penalty, model)["conv1.weight"] / model.conv1.weight.detach()
    importance = IMPORTANCES["tp-magnitude"].score(model, couplings, scoring())[0].double()
    share = (importance.max() - importance) / (importance.max() - importance.min())
    torch.testing.assert_close(grown[:, 0, 0, 0], 0.1 + 0.1 * share, rtol=1e-4, atol=1e-6)


def test_the_growing_rule_resumes() -> None:
    model, couplings = prepared("chain")
    penalty, resumed = GrowingPeerPenalty(couplings, 0.1), GrowingPeerPenalty(couplings, 0.1)
    for _ in range(25):
        penalty.advance(model)
    state = penalty.state_dict()
    assert len(state["reg"]) == sum(c.num_channels for c in couplings) and int(state["steps"]) == 25
    resumed.load_state_dict(state)
    for name, added in gradient(penalty, model).items():
        assert torch.equal(gradient(resumed, model)[name], added)
    resumed.load_state_dict({"steps": torch.tensor(1), "reg": torch.ones(3)})
    with pytest.raises(ValueError, match="for 3 channels"):
        resumed.add_gradient(model)


@pytest.mark.parametrize("name", PEERS)
def test_where_it_crashes_the_error_is_clear(name: str) -> None:
    model, couplings = prepared("mixed")  # depthwise, grouped, and couplings without BatchNorm
    with pytest.raises(ValueError, match="torch-pruning cannot regularise this network"):
        gradient(built(name, model, couplings), model)


def test_equal_channels_are_an_error_and_no_nan() -> None:
    model, couplings = prepared("chain")
    for parameter in model.parameters():
        parameter.data.fill_(0.3)
    with pytest.raises(ValueError, match="divides 0 by 0"):
        gradient(built("tp-group-norm", model, couplings), model)


def test_a_coupling_without_batchnorm_has_no_scale_for_it() -> None:
    with pytest.raises(ValueError, match="no importance to the channels of"):
        IMPORTANCES["tp-bn-scale"].score(*prepared("mixed"), scoring())


def test_couplings_that_it_does_not_find_are_an_error() -> None:
    model, couplings = prepared("chain")
    for parameter in model.parameters():
        parameter.requires_grad_(False)  # its graph is read off autograd
    with pytest.raises(ValueError, match=r"torch-pruning (finds no group|cannot)"):
        IMPORTANCES["tp-magnitude"].score(model, couplings, scoring())


def test_where_it_is_missing_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, couplings = prepared("chain")
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ValueError, match=r"pip install oicsr\[bench\]"):
        REGULARIZERS["tp-group-norm"].make(couplings, 0.1).add_gradient(model)
    with pytest.raises(ValueError, match=r"pip install oicsr\[bench\]"):
        IMPORTANCES["tp-magnitude"].score(model, couplings, scoring())


def test_it_follows_the_model_at_hand_and_keeps_its_mode() -> None:
    model, couplings = prepared("chain")
    other, _ = prepared("chain")
    other.conv1.weight.data *= 3
    penalty = PeerPenalty(couplings, 0.1, _group_norm, example_inputs=IMAGES)
    model.train()
    model.bn2.eval()
    gradient(penalty, model)
    assert model.training and model.bn1.training and not model.bn2.training
    expected = gradient(PeerPenalty(couplings, 0.1, _group_norm), other)["conv1.weight"]
    assert torch.equal(gradient(penalty, other)["conv1.weight"], expected)


def test_inputs_are_found_by_trial() -> None:
    assert example_inputs_for(by_formula(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)))).shape == (1, 48)
    flat = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 28 * 28, 2))
    assert example_inputs_for(flat).shape == (1, 1, 28, 28)
    with pytest.raises(ValueError, match="runs on no square input"):
        example_inputs_for(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(7, 2)))
    with pytest.raises(ValueError, match="no convolution and no linear layer"):
        example_inputs_for(nn.ReLU())
