"""The whole path in one call."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import nn

import oicsr
from tests.oicsr.networks import Basic, Chain, randomize_norms

IMAGES = torch.zeros(1, 3, 8, 8)


def test_without_training_it_is_the_steps_one_after_another() -> None:
    model = randomize_norms(Chain())
    before = copy.deepcopy(model.state_dict())
    result = oicsr.prune(model, IMAGES, macs_kept=0.6, tolerance=0.05)
    couplings = oicsr.find_couplings(model, IMAGES)
    scores = oicsr.out_in_energy(model, couplings)
    plan = oicsr.select_channels(scores, couplings, model, IMAGES, macs_kept=0.6, tolerance=0.05)
    assert result.plan == plan
    expected = oicsr.remove_channels(model, plan).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in result.model.state_dict().items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert result.macs == [oicsr.count_macs(model, IMAGES), oicsr.count_macs(result.model, IMAGES)]


def test_the_three_lines_of_the_readme_reach_half_of_timms_resnet18() -> None:
    model, images = timm.create_model("resnet18", pretrained=False), torch.zeros(1, 3, 64, 64)
    couplings = oicsr.find_couplings(model, images)
    scores = oicsr.out_in_energy(model, couplings)
    plan = oicsr.select_channels(scores, couplings, model, images, macs_kept=0.5)
    share = oicsr.count_macs(oicsr.remove_channels(model, plan), images) / oicsr.count_macs(model, images)
    assert share == pytest.approx(0.5, rel=0.01)


def test_training_comes_before_each_removal_and_batches_at_the_end() -> None:
    torch.manual_seed(0)
    model = Chain()
    seen: list[tuple[int, int, float]] = []

    def train(network: nn.Module, penalty: oicsr.Regularizer | None, step: int) -> None:
        assert penalty is not None
        network.train()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            (network(torch.randn(8, 3, 8, 8)).square().mean() + penalty(network)).backward()
            optimizer.step()
        seen.append((step, oicsr.count_macs(network, IMAGES), float(penalty.strength)))  # type: ignore[attr-defined]

    batches = [torch.randn(16, 3, 8, 8) for _ in range(3)]
    options = {"macs_kept": 0.5, "tolerance": 0.1, "steps": 2, "strength": 0.05}
    result = oicsr.prune(model, IMAGES, train=train, batches=batches, **options)
    assert [(step, strength) for step, _, strength in seen] == [(0, 0.05), (1, 0.05)]
    assert seen[1][1] == result.macs[1] < seen[0][1]
    assert result.macs[2] == pytest.approx(0.5 * result.macs[0], rel=0.1)
    fresh = oicsr.recalibrate(copy.deepcopy(result.model), batches)
    assert torch.equal(fresh.bn1.running_mean, result.model.bn1.running_mean)
    assert "recalibrated" in result.summary()


def test_the_scope_widens_where_the_target_needs_it_and_says_so() -> None:
    model = Basic()
    result = oicsr.prune(model, IMAGES, macs_kept=0.15, tolerance=0.2)
    assert "scope 'all'" in str(result)
    with pytest.raises(oicsr.OutOfReachError, match='couplings found with scope="all"'):
        oicsr.prune(model, IMAGES, macs_kept=0.15, scope="inner")
    assert "scope" not in str(oicsr.prune(model, IMAGES, macs_kept=0.7, tolerance=0.1))


@pytest.mark.parametrize("steps", [1, 3])
def test_other_targets_over_steps(steps: int) -> None:
    model = Chain()
    result = oicsr.prune(model, IMAGES, params_kept=0.5, tolerance=0.1, steps=steps)
    assert result.params[-1] == oicsr.count_params(result.model) == pytest.approx(0.5 * result.params[0], rel=0.1)

    def cost(network: nn.Module) -> float:
        return oicsr.count_macs(network, IMAGES) / 7

    result = oicsr.prune(model, IMAGES, cost=cost, cost_kept=0.5, tolerance=0.1, steps=steps)
    assert cost(result.model) == pytest.approx(0.5 * cost(model), rel=0.1)


def test_steering_reaches_the_steps() -> None:
    model = Basic()
    result = oicsr.prune(model, IMAGES, macs_kept=0.8, ignore="b1", round_to=2, tolerance=0.15)
    assert result.model.get_parameter("b1.weight").shape[0] == 5
    assert result.model.get_parameter("a1.weight").shape[0] % 2 == 0
    assert result.model.get_parameter("a1.weight").shape[0] < 6


def test_one_target_only() -> None:
    with pytest.raises(ValueError, match="one target"):
        oicsr.prune(Chain(), IMAGES, macs_kept=0.5, params_kept=0.5)


def test_summary_and_repr() -> None:
    result = oicsr.prune(Chain(), IMAGES, macs_kept=0.5, tolerance=0.1)
    lines = result.summary().splitlines()
    assert lines[0] == "Chain, pruned in one step"
    assert f"MACs: {result.macs[0]:,} -> {result.macs[1]:,}" in lines[1]
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["MACs", "parameters", "channels"]
    assert repr(result).startswith("PruningResult(Chain, MACs")
    assert "\n" not in repr(result)


WASTED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "a target out of reach": ({"macs_kept": 0.001}, ValueError, "out of reach"),
    "one of parameters": ({"params_kept": 0.001, "scope": "inner"}, ValueError, "out of reach"),
    "nothing to remove": (
        {"ignore": "*"},
        ValueError,
        "scope='all', with nothing to ignore, finds",
    ),
    "a single tensor": ({"batches": IMAGES}, ValueError, "batches is a tensor"),
    "no batches": ({"batches": []}, ValueError, "batches is empty"),
    "batches of another kind": ({"batches": [3]}, TypeError, "a batch is a int"),
    "batches of another size": ({"batches": [torch.zeros(4, 1, 8, 8)]}, RuntimeError, "to have 3 channels"),
    "batches that can be read once": ({"batches": iter([IMAGES])}, TypeError, "can be read only once; the first"),
    "images that are no numbers": ({"batches": [IMAGES / 0]}, ValueError, "NaN or infinite: its inputs hold"),
    "half a step": ({"steps": 2.5}, ValueError, "steps is 2.5"),
    "endless steps": ({"steps": float("inf")}, ValueError, "steps is inf; it must be a whole number"),
    "an unknown schedule": ({"schedule": "cosine"}, ValueError, "schedule is 'cosine'; it must be one of 'linear'"),
    "more than all MACs": ({"macs_kept": 1.5}, ValueError, "macs_kept is 1.5; it is the share that remains"),
    "no parameters": ({"params_kept": 0.0}, ValueError, "params_kept is 0.0; it is the share that remains"),
    "a negative cost": ({"cost": lambda m: -1.0, "cost_kept": 0.5}, ValueError, "returned -1.0; it must be finite"),
    "a cap above all": ({"max_removed": 2}, ValueError, "max_removed is 2; it must be in"),
    "a cap of nothing": ({"max_removed": {"conv9": 0.5}}, ValueError, "max_removed names 'conv9', which fits no"),
    "a rounding to nothing": ({"round_to": 0}, ValueError, "round_to is 0; it must be a whole number"),
    "a negative tolerance": ({"tolerance": -1}, ValueError, "tolerance is -1; it must be in"),
    "an importance that is no function": ({"importance": 3}, TypeError, "importance is '3', a int; it must be"),
}


@pytest.mark.parametrize("kind", WASTED)
def test_what_cannot_work_is_refused_before_the_training(kind: str) -> None:
    arguments, error, message = WASTED[kind]
    trained: list[int] = []
    with pytest.raises(error, match=message):
        oicsr.prune(Chain(), IMAGES, train=lambda model, penalty, step: trained.append(step), **arguments)
    assert trained == []


def test_a_training_that_is_no_function_is_named() -> None:
    with pytest.raises(TypeError, match="train is '3', a int; it must be a function"):
        oicsr.prune(Chain(), IMAGES, train=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("arguments", [{"strength": 1e-3}, {"make_regularizer": oicsr.GroupLasso}])
def test_a_penalty_that_nothing_is_trained_with_is_refused(arguments: dict[str, Any]) -> None:
    for more in ({}, {"batches": [torch.randn(4, 3, 8, 8)]}):
        with pytest.raises(ValueError, match=f"{next(iter(arguments))} is .*, but nothing is trained with a penalty"):
            oicsr.prune(Chain(), IMAGES, **arguments, **more)


def test_the_strength_reaches_the_penalty() -> None:
    seen: list[float] = []
    for strength in (None, 0.5):
        train = lambda model, penalty, step: seen.append(penalty.strength)  # noqa: E731
        oicsr.prune(Chain(), IMAGES, train=train, strength=strength, tolerance=0.1)
    assert seen == [oicsr.GroupLasso([]).strength, 0.5]


def test_trying_the_batches_first_changes_nothing() -> None:
    seen: list[int] = []

    def train(model: nn.Module, penalty: object, step: int) -> None:
        seen.append(int(torch.randint(0, 1000, ())))
        assert all(int(buffer) == 0 for name, buffer in model.named_buffers() if name.endswith("tracked"))

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(8, 3, 8, 8)), 4, shuffle=True)
    for batches in (None, loader):
        torch.manual_seed(0)
        oicsr.prune(Chain(), IMAGES, train=train, batches=batches, tolerance=0.1)
    assert len(seen) == 2 and len(set(seen)) == 1


def test_batches_that_can_be_read_once_suffice_without_training() -> None:
    result = oicsr.prune(Chain(), IMAGES, batches=(torch.randn(4, 3, 8, 8) for _ in range(2)), tolerance=0.1)
    assert "recalibrated" in str(result)


def test_the_rounding_that_stands_in_the_way_is_named() -> None:
    model = Chain()
    couplings = oicsr.find_couplings(model, IMAGES)
    scores = oicsr.out_in_energy(model, couplings)
    with pytest.raises(oicsr.OutOfReachError, match=r"within reach: round_to=1, or macs_kept=1\.0000"):
        oicsr.select_channels(scores, couplings, model, IMAGES, macs_kept=0.5, round_to=8)
