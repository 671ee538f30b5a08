"""Arguments of the wrong kind: one clear error that quotes them, and nothing is changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

import oicsr
from oicsr import Coupling, PruningPlan

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    """Return two convolutions with a BatchNorm each, and a classifier."""
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))


Call = Callable[[nn.Sequential, list[Coupling], PruningPlan], Any]


def select(**arguments: Any) -> Call:
    """Return a call of `select_channels` with some arguments."""
    return lambda m, c, p: oicsr.select_channels(oicsr.out_in_energy(m, c), c, m, X, **arguments)


WRONG: dict[str, tuple[Call, str]] = {
    "a share as text": (select(macs_kept="half"), "macs_kept is 'half', a str; it must be a number"),
    "a share that is a boolean": (select(params_kept=True), "params_kept is 'True', a bool; it must be a number"),
    "a tolerance as text": (select(tolerance="a"), "tolerance is 'a', a str; it must be a number"),
    "a cap as text": (select(max_removed="0.5"), "max_removed is '0.5', a str; it must be a number"),
    "a cap by layer as text": (select(max_removed={"0": "a"}), "max_removed is 'a', a str; it must be a number"),
    "a rounding as text": (select(round_to="8"), "round_to is '8', a str; it must be a number"),
    "a cost that is a number": (select(cost=3, cost_kept=0.5), "cost is '3'; it must be a function"),
    "a cost that is no number": (
        select(cost=lambda model: "x", cost_kept=0.5),
        r"what cost\(model\) returns is 'x', a str; it must be a number",
    ),
    "scores by name": (
        lambda m, c, p: oicsr.select_channels({c[0].name: torch.ones(8)}, c, m, X),  # type: ignore[arg-type]
        "scores is a dict; it must be a list of tensors, one per coupling",
    ),
    "scores as lists": (
        lambda m, c, p: oicsr.select_channels([[1.0] * 8, [1.0] * 6], c, m, X),  # type: ignore[list-item]
        "scores holds a list; it must be a list of tensors",
    ),
    "complex scores": (
        lambda m, c, p: oicsr.select_channels([torch.ones(k.num_channels) + 1j for k in c], c, m, X),
        "scores holds a tensor of torch.complex64, torch.strided; it must be dense and real",
    ),
    "a cap by the number of a layer": (
        select(max_removed={3: 0.5}),
        "max_removed has the key 3, a int; keys are names or patterns",
    ),
    "widths as a list": (select(original_widths=[8, 6]), "original_widths is '.8, 6.', a list; it must be a mapping"),
    "MACs as text": (select(dense_macs="9"), "dense_macs is '9', a str; it must be a number"),
    "no ties": (select(tie=None), "tie is None, a NoneType; it must be a list of groups"),
    "a tie that can be read once": (select(tie=[iter(["0", "3"])]), "tie holds .*; it must hold groups of couplings"),
    "a forward that is no function": (
        lambda m, c, p: oicsr.recalibrate(m, [X], forward=3),  # type: ignore[arg-type]
        "forward is '3', a int; it must be a function",
    ),
    "an ignored class": (
        lambda m, c, p: oicsr.find_couplings(m, X, ignore=nn.Conv2d),  # type: ignore[arg-type]
        "is neither the name of a layer, a pattern, nor a module",
    ),
    "an ignored number": (
        lambda m, c, p: oicsr.find_couplings(m, X, ignore=3),  # type: ignore[arg-type]
        "3 is neither the name of a layer, a pattern, nor a module",
    ),
    "a description of no plan": (
        lambda m, c, p: oicsr.describe(m, c, {"0": [1]}),  # type: ignore[arg-type]
        "plan is a dict; it must be a PruningPlan",
    ),
    "kept channels as lists": (
        lambda m, c, p: PruningPlan.from_kept(c, [[1], [2]]),  # type: ignore[arg-type]
        "kept is a list; it must be a mapping from names of couplings",
    ),
    "a plan after no plan": (lambda m, c, p: p.then({"0": [1]}), "plan is a dict; it must be a PruningPlan"),  # type: ignore[arg-type]
    "couplings shrunk by no plan": (
        lambda m, c, p: oicsr.shrink_couplings(c, {"0": [1]}),  # type: ignore[arg-type]
        "plan is a dict; it must be a PruningPlan",
    ),
    "no optimiser": (
        lambda m, c, p: oicsr.remove_channels(m, p, optimizer=m),  # type: ignore[arg-type]
        "optimizer is a Sequential; it must be a torch.optim.Optimizer",
    ),
    "a network among the optimisers": (
        lambda m, c, p: oicsr.remove_channels(m, p, optimizer=[m]),  # type: ignore[list-item]
        "optimizer holds a Sequential; it must be a torch.optim.Optimizer",
    ),
    "a strength in the place of sides": (
        lambda m, c, p: oicsr.GroupLasso(c, 1e-3),  # type: ignore[arg-type]
        "sides is 0.001, a float; .* the strength is an argument of its own, strength=0.001",
    ),
    "a strength in the place of the sides of a proximal step": (
        lambda m, c, p: oicsr.ProximalGroupLasso(c, 1e-3),  # type: ignore[arg-type]
        "strength=0.001",
    ),
    "a strength in the place of the sides of GrOWL": (
        lambda m, c, p: oicsr.GrOWL(c, 1e-3),  # type: ignore[arg-type]
        "strength=0.001",
    ),
    "a network to save in the place of its file": (
        lambda m, c, p: oicsr.save_pruned("x", p, m),  # type: ignore[arg-type]
        "model is a PruningPlan; it must be a torch.nn.Module: the arguments are swapped",
    ),
    "a network built already": (
        lambda m, c, p: oicsr.load_pruned("x", m),
        "build_model is a Sequential; it must be a function that builds the network before pruning",
    ),
    "parameters in the place of a network": (
        lambda m, c, p: oicsr.count_params(m.parameters()),  # type: ignore[arg-type]
        "model is a generator; it must be a torch.nn.Module",
    ),
    "couplings to prove in the place of inputs": (
        lambda m, c, p: oicsr.prove(c, X, m),  # type: ignore[arg-type]
        "model is a list; it must be a torch.nn.Module",
    ),
    "a batch of numbers": (lambda m, c, p: oicsr.recalibrate(m, [3]), "a batch is a int of int; it must be a tensor"),
    "a share of energy as text": (
        lambda m, c, p: oicsr.weak_energy(m, c, share="a"),  # type: ignore[arg-type]
        "share is 'a', a str; it must be a number",
    ),
    "steps as text": (
        lambda m, c, p: oicsr.suggest_strength(m, c, learning_rate=0.1, steps="9"),  # type: ignore[arg-type]
        "steps is '9', a str; it must be a number",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_arguments_of_another_kind_are_named_and_change_nothing(kind: str) -> None:
    call, message = WRONG[kind]
    model = network()
    couplings = oicsr.find_couplings(model, X)
    plan = PruningPlan.from_kept(couplings, {"0": range(4)})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(TypeError, match=message):
        call(model, couplings, plan)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_couplings_of_another_network_are_refused_by_every_proof_and_absorption() -> None:
    model = network()
    couplings = oicsr.find_couplings(model, X)
    plan = PruningPlan.from_kept(couplings, {"0": range(4)})
    small = oicsr.remove_channels(model, plan)
    with pytest.raises(ValueError, match=r"other network|another network"):
        oicsr.prove(small, X, couplings)
    with pytest.raises(ValueError, match=r"'0\.weight'"):
        oicsr.plan_absorption(small, plan, X)


def test_a_folder_that_is_missing_is_said_before_anything_is_written(tmp_path: Path) -> None:
    model = network()
    plan = PruningPlan.from_kept(oicsr.find_couplings(model, X), {"0": range(4)})
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*nowhere"):
        oicsr.save_pruned(tmp_path / "nowhere" / "x.safetensors", oicsr.remove_channels(model, plan), plan)


def test_a_measured_cost_may_be_a_tensor_of_one_number() -> None:
    model = network()
    couplings = oicsr.find_couplings(model, X)
    scores = oicsr.out_in_energy(model, couplings)
    as_tensor = oicsr.select_channels(
        scores,
        couplings,
        model,
        X,
        cost=lambda m: torch.tensor(float(oicsr.count_params(m))),
        cost_kept=0.6,
        tolerance=0.1,
    )
    assert as_tensor == oicsr.select_channels(
        scores, couplings, model, X, cost=oicsr.count_params, cost_kept=0.6, tolerance=0.1
    )


def test_a_network_that_is_spread_over_processes_is_refused_by_name() -> None:
    model = network()
    couplings = oicsr.find_couplings(model, X)
    penalty = oicsr.GroupLasso(couplings, strength=1e-3)
    penalty(model)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
        for call in (lambda: oicsr.find_couplings(model, X), lambda: penalty(model), lambda: oicsr.count_params(model)):
            with pytest.raises(ValueError, match=r"'0.weight' is spread over several processes .* Prune the whole"):
                call()
    finally:
        dist.destroy_process_group()
