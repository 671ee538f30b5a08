"""Couplings: what belongs to what."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

import oicsr
from tests.oicsr.networks import Basic, Chain, Mixed

IMAGES = torch.zeros(2, 3, 8, 8)


def members_of(coupling: oicsr.Coupling) -> dict[tuple[str, int], tuple[str, list[int]]]:
    return {(m.parameter, m.dim): (m.side, m.channels.tolist()) for m in coupling.members}


def test_chain_has_hand_told_couplings() -> None:
    first, second = oicsr.find_couplings(Chain(), IMAGES)
    assert (first.name, first.num_channels) == ("conv1", 6)
    assert members_of(first) == {
        ("conv1.weight", 0): ("out", list(range(6))),
        **{(f"bn1.{name}", 0): ("norm", list(range(6))) for name in ("weight", "bias", "running_mean", "running_var")},
        ("conv2.weight", 1): ("in", list(range(6))),
    }
    assert members_of(second)["conv2.bias", 0] == ("out", list(range(8)))
    # a channel of the flattened map owns its 2 x 2 positions
    assert members_of(second)["fc.weight", 1] == ("in", [i for i in range(8) for _ in range(4)])


def test_consecutive_couplings_overlap() -> None:
    first, second = oicsr.find_couplings(Chain(), IMAGES)
    sides = {(c.name, m.dim): m.side for c in (first, second) for m in c.members if m.parameter == "conv2.weight"}
    assert sides == {("conv1", 1): "in", ("conv2", 0): "out"}


def test_biases_and_statistics_carry_no_energy() -> None:
    counting = {m.parameter for c in oicsr.find_couplings(Chain(), IMAGES) for m in c.members if m.counts}
    assert counting == {"conv1.weight", "conv2.weight", "fc.weight", "bn1.weight", "bn2.weight"}


def test_inner_scope_leaves_residual_streams() -> None:
    assert [c.name for c in oicsr.find_couplings(Basic(), IMAGES)] == ["a1", "b1"]
    reasons = oicsr.trace_couplings(Basic(), IMAGES).unpruned
    assert "residual stream" in reasons["stem"] and "residual stream" in reasons["project"]


def test_all_scope_joins_what_is_added() -> None:
    couplings = {c.name: c for c in oicsr.find_couplings(Basic(), IMAGES, scope="all")}
    assert list(couplings) == ["stem", "a1", "b1", "b2"] or list(couplings) == ["stem", "a1", "project", "b1"]
    stream = members_of(couplings["stem"])
    assert {key for key, (side, _) in stream.items() if side == "out"} == {("stem.weight", 0), ("a2.weight", 0)}
    assert {key for key, (side, _) in stream.items() if side == "in"} == {
        ("a1.weight", 1),
        ("b1.weight", 1),
        ("project.weight", 1),
    }


def test_resnet50_has_the_32_inner_widths_of_the_authors() -> None:
    model = torchvision.models.resnet50(weights=None)
    couplings = oicsr.find_couplings(model, torch.zeros(1, 3, 64, 64))
    blocks = [f"layer{stage}.{i}" for stage, count in enumerate((3, 4, 6, 3), 1) for i in range(count)]
    assert [c.name for c in couplings] == [f"{block}.conv{i}" for block in blocks for i in (1, 2)]
    assert "conv1" in oicsr.trace_couplings(model, torch.zeros(1, 3, 64, 64)).unpruned


def test_concatenation_shuffle_groups_and_gates_are_followed() -> None:
    couplings = {c.name: c for c in oicsr.find_couplings(Mixed(), IMAGES)}
    expand = members_of(couplings["expand"])
    assert couplings["expand"].num_channels == 6  # GroupNorm(6, 12): pairs of channels go together
    assert {key for key, (side, _) in expand.items() if side == "out"} >= {
        ("expand.weight", 0),
        ("depthwise.weight", 0),
        ("excite.weight", 0),
    }
    assert {key for key, (side, _) in expand.items() if side == "in"} == {
        ("squeeze.weight", 1),
        ("left.weight", 1),
        ("right.weight", 1),
    }
    left = members_of(couplings["left"])
    assert ("right.weight", 0) in left and ("grouped.weight", 0) in left and ("fc.weight", 1) in left


class Unruled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(torch.cumsum(self.one(x), 1))
        return self.three(x)


def test_operator_without_rule_leaves_its_channels_and_is_named() -> None:
    with pytest.warns(oicsr.UnprunedChannelsWarning, match=r"aten\.cumsum"):
        couplings = oicsr.find_couplings(Unruled(), IMAGES)
    assert [c.name for c in couplings] == ["two"]
    assert "cumsum" in oicsr.trace_couplings(Unruled(), IMAGES).unpruned["one"]


class Rigid(nn.Module):
    """The width 4 is a number in the code: it cannot change."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1), nn.Linear(4 * 64, 5)
        self.three = nn.Conv2d(6, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.one(x).view(-1, 4 * 64)) + self.three(self.two(x)).mean((1, 2, 3), keepdim=True)[:, :, 0, 0]


def test_width_in_the_code_is_found_by_trial() -> None:
    with pytest.warns(oicsr.UnprunedChannelsWarning, match="number in the model's code"):
        couplings = oicsr.find_couplings(Rigid(), IMAGES)
    assert [c.name for c in couplings] == ["two"]


class Shared(nn.Module):
    """One convolution used twice: what goes in must fit what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.twice, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.twice(torch.relu(self.twice(self.one(x)))).mean((2, 3)))


def test_shared_weight_ties_its_two_uses() -> None:
    (coupling,) = oicsr.find_couplings(Shared(), IMAGES)
    assert {(m.parameter, m.dim) for m in coupling.members if m.counts} == {
        ("one.weight", 0),
        ("twice.weight", 0),
        ("twice.weight", 1),
        ("fc.weight", 1),
    }


class Auxiliary(nn.Module):
    """A head that only runs in training."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.fc, self.aux = nn.Conv2d(3, 4, 1), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.one(x).mean((2, 3))
        return (self.fc(x), self.aux(x)) if self.training else self.fc(x)


def test_heads_that_only_run_in_training_are_followed() -> None:
    (coupling,) = oicsr.find_couplings(Auxiliary(), IMAGES)
    assert ("aux.weight", 1) in members_of(coupling)


@pytest.mark.parametrize("training", [True, False])
def test_tracing_leaves_the_model_as_it_was(training: bool) -> None:
    model = Chain().train(training)
    model.bn1.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    oicsr.find_couplings(model, IMAGES)
    assert model.training is training and not model.bn1.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_untraceable_model_and_unknown_scope_are_clear_errors() -> None:
    with pytest.raises(ValueError, match=r"Branching cannot be traced by torch\.export"):
        oicsr.find_couplings(Branching(), IMAGES)
    with pytest.raises(ValueError, match="scope is 'everything'"):
        oicsr.find_couplings(Chain(), IMAGES, scope="everything")  # type: ignore[arg-type]
