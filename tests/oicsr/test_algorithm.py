"""The loop: steps, caps, composed plans."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

import oicsr
from oicsr.algorithm import share_after

IMAGES = torch.zeros(1, 3, 32, 32)


def run(**options: object) -> tuple[oicsr.PruningResult, list[tuple[int, int]], nn.Module]:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None, num_classes=10)
    trained: list[tuple[int, int]] = []

    def train(network: nn.Module, regularizer: oicsr.Regularizer | None, step: int) -> None:
        assert regularizer is not None and regularizer(network).item() > 0
        trained.append((step, oicsr.count_macs(network, IMAGES)))

    result = oicsr.prune_iteratively(
        model,
        IMAGES,
        train=train,
        make_regularizer=lambda couplings: oicsr.GroupLasso(couplings, strength=1e-3),
        importance=oicsr.out_in_energy,
        **options,  # type: ignore[arg-type]
    )
    return result, trained, model


def test_each_step_trains_the_network_as_it_is_then() -> None:
    result, trained, model = run(macs_kept=0.6, steps=2, max_removed=0.9)
    dense = oicsr.count_macs(model, IMAGES)
    assert [step for step, _ in trained] == [0, 1]
    assert result.macs[0] == trained[0][1] == dense
    assert result.macs[1] == trained[1][1] == pytest.approx(0.8 * dense, rel=0.01)
    assert result.macs[2] == oicsr.count_macs(result.model, IMAGES) == pytest.approx(0.6 * dense, rel=0.01)


def test_one_plan_leads_from_start_to_end() -> None:
    result, _, model = run(macs_kept=0.5, steps=3, max_removed=0.9, schedule="geometric")
    again = oicsr.remove_channels(model, result.plan)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), result.model.parameters(), strict=True))
    assert [c.num_channels for c in result.couplings] == [len(result.plan.kept[c.name]) for c in result.couplings]


def test_cap_of_the_current_width_lets_more_go_over_steps() -> None:
    with pytest.raises(ValueError, match="out of reach"):
        run(macs_kept=0.4, steps=3, max_removed=0.5, cap_of="original")
    result, _, _ = run(macs_kept=0.4, steps=3, max_removed=0.5, cap_of="current")
    assert result.macs[-1] == pytest.approx(0.4 * result.macs[0], rel=0.01)


def test_shares_of_the_steps() -> None:
    assert [share_after(i, 2, 0.5, "linear") for i in range(2)] == [0.75, 0.5]
    assert [share_after(i, 2, 0.25, "geometric") for i in range(2)] == [0.5, 0.25]
    with pytest.raises(ValueError, match="schedule is 'cubic'"):
        share_after(0, 1, 0.5, "cubic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="steps is 0"):
        run(macs_kept=0.5, steps=0)


def test_an_error_after_training_carries_what_was_trained() -> None:
    """The second removal is out of reach: the network that two trainings and one removal left is not lost."""
    with pytest.raises(oicsr.OutOfReachError) as caught:
        run(macs_kept=0.4, steps=2, max_removed=0.5, cap_of="original")
    reached = caught.value.result  # type: ignore[attr-defined]
    assert reached.macs[-1] == oicsr.count_macs(reached.model, IMAGES) == pytest.approx(0.7 * reached.macs[0], rel=0.01)
    assert [c.num_channels for c in reached.couplings] == [len(reached.plan.kept[c.name]) for c in reached.couplings]


def test_a_cost_is_called_with_the_network_inside_before_and_after() -> None:
    model = torch.optim.swa_utils.AveragedModel(nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2)))
    result = oicsr.prune(model, torch.zeros(1, 4), cost=lambda m: float(m[0].out_features), cost_kept=0.5)
    assert result.model[0].out_features == 16
