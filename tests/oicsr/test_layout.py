"""Couplings of one network are refused by another, by everything that takes them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import oicsr
from baselines.cges import Cges
from baselines.depgraph import GroupNormPenalty
from baselines.elementwise import l1, l2
from baselines.growing_reg import GrowingPenalty
from baselines.network_slimming import ScalePenalty
from oicsr.energy import add_energy_gradient, energy_vector
from oicsr.fast.layout import Layout

IMAGES = torch.zeros(2, 3, 8, 8)
Couplings = list[oicsr.Coupling]


def chain(first: int, second: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, first, 3), nn.BatchNorm2d(first), nn.ReLU(), nn.Conv2d(first, second, 3), nn.Conv2d(second, 5, 1)
    )


def dense_and_pruned() -> tuple[Couplings, nn.Module, oicsr.PruningPlan]:
    model = chain(16, 12)
    couplings = oicsr.find_couplings(model, IMAGES)
    plan = oicsr.PruningPlan.from_kept(couplings, {"0": tuple(range(8)), "3": tuple(range(6))})
    return couplings, oicsr.remove_channels(model, plan), plan


PENALTIES = {
    "GroupLasso": lambda c: oicsr.GroupLasso(c),
    "GroupLasso, separate groups": lambda c: oicsr.GroupLasso(c, joint=False),
    "GrOWL": lambda c: oicsr.GrOWL(c),
    "ProximalGroupLasso": lambda c: oicsr.ProximalGroupLasso(c),
    "ProximalGrOWL": lambda c: oicsr.ProximalGrOWL(c),
    "CGES": lambda c: Cges(c, ("out", "in"), 1e-4),
    "DepGraph": lambda c: GroupNormPenalty(c, 1e-4),
    "L1": lambda c: l1(c, 1e-4),
    "L2": lambda c: l2(c, 1e-4),
    "GReg-1": lambda c: GrowingPenalty(c, 1e-4),
    "Slimming": lambda c: ScalePenalty(c, 1e-4),
}
WAYS: dict[str, Callable[[object, nn.Module], object]] = {
    "__call__": lambda penalty, model: penalty(model),  # type: ignore[operator]
    "add_gradient": lambda penalty, model: penalty.add_gradient(model),  # type: ignore[attr-defined]
    "proximal_step": lambda penalty, model: penalty.proximal_step(model, 0.1),  # type: ignore[attr-defined]
    "advance": lambda penalty, model: penalty.advance(model),  # type: ignore[attr-defined]
}


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_refuse_another_networks_couplings_and_change_nothing(name: str) -> None:
    couplings, small, plan = dense_and_pruned()
    stale, fresh = PENALTIES[name](couplings), PENALTIES[name](oicsr.shrink_couplings(couplings, plan))
    before = [p.detach().clone() for p in small.parameters()]
    ways = [way for way in WAYS if hasattr(stale, way)]
    for way in ways:
        with pytest.raises(ValueError, match=r"not those of this network.*shape is.*shrink_couplings"):
            WAYS[way](stale, small)
    assert all(p.grad is None for p in small.parameters())
    assert all(torch.equal(p, old) for p, old in zip(small.parameters(), before, strict=True))
    for way in ways:
        WAYS[way](fresh, small)
    assert "__call__" in ways


def test_energies_refuse_another_networks_couplings() -> None:
    couplings, small, plan = dense_and_pruned()
    layout = Layout.of(couplings, ("out", "in"))
    for call in (
        lambda: oicsr.channel_energy(small, couplings),
        lambda: oicsr.out_in_energy(small, couplings, "size"),
        lambda: energy_vector(small, layout),
        lambda: add_energy_gradient(small, layout, torch.ones(layout.channels)),
    ):
        with pytest.raises(ValueError, match=r"axis 0 of '0.weight' 16 slices, and its shape is \(8, 3, 3, 3\)"):
            call()
    assert len(oicsr.channel_energy(small, oicsr.shrink_couplings(couplings, plan))) == len(couplings)


def test_a_network_is_refused_after_another_was_accepted_and_accepted_again() -> None:
    dense, other = chain(16, 12), chain(16, 10)
    couplings = oicsr.find_couplings(dense, IMAGES)
    penalty = oicsr.GroupLasso(couplings)
    value = penalty(dense).item()
    with pytest.raises(ValueError, match=r"axis 0 of '3.weight' 12 slices, and its shape is \(10, 16, 3, 3\)"):
        penalty(other)
    with pytest.raises(ValueError, match="the couplings are not those of this ReLU"):
        penalty(nn.ReLU())
    assert penalty(dense).item() == value


def test_a_weight_with_too_few_axes_is_refused() -> None:
    dense, other = chain(16, 12), chain(16, 12)
    penalty = oicsr.GroupLasso(oicsr.find_couplings(dense, IMAGES))
    other[3].weight = nn.Parameter(torch.zeros(12))
    with pytest.raises(ValueError, match=r"axis 1 of '3.weight' 16 slices, and its shape is \(12,\)"):
        penalty(other)


def test_a_compiled_step_refuses_too() -> None:
    couplings, small, _ = dense_and_pruned()
    penalty = oicsr.GroupLasso(couplings)

    def loss(images: Tensor) -> Tensor:
        return small(images).square().mean() + penalty(small)

    with pytest.raises(Exception, match="not those of this network"):
        torch.compile(loss, backend="eager")(IMAGES)


def test_weights_on_several_devices_are_refused() -> None:
    model = chain(16, 12)
    penalty = oicsr.GroupLasso(oicsr.find_couplings(model, IMAGES))
    model[3] = model[3].to("meta")
    with pytest.raises(ValueError, match="the weights are on cpu, meta"):
        penalty(model)
