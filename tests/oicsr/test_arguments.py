"""Likely mistakes get an error that says what they are; objects read well when printed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import oicsr
from oicsr.targets import MacsModel
from tests.oicsr.networks import Chain

IMAGES = torch.zeros(1, 3, 8, 8)
FUNCTIONS = [oicsr.find_couplings, oicsr.trace_couplings, oicsr.count_macs, oicsr.prune]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_swapped_arguments_and_shapes(function: object) -> None:
    with pytest.raises(TypeError, match=r"model is a Tensor.*swapped, the model comes first"):
        function(IMAGES, Chain())  # type: ignore[operator]
    for shape in [(1, 3, 8, 8), [1, 3, 8, 8], IMAGES.shape]:
        with pytest.raises(ValueError, match=r"a shape, \(1, 3, 8, 8\); pass a tensor, such as torch\.zeros\(1, 3,"):
            function(Chain(), shape)  # type: ignore[operator]
    with pytest.raises(TypeError, match="example_inputs is a Chain, a module"):
        function(Chain(), Chain())  # type: ignore[operator]


def test_what_is_no_list_of_couplings() -> None:
    model = Chain()
    trace = oicsr.trace_couplings(model, IMAGES)
    scores = oicsr.out_in_energy(model, trace.couplings)
    with pytest.raises(TypeError, match=r"couplings is a Chain; .* \(are the arguments in the right order\?\)"):
        oicsr.channel_energy(trace.couplings, model)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="pass its attribute couplings"):
        oicsr.GroupLasso(trace)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="is one Coupling, 'conv1'; put it into a list"):
        oicsr.GroupLasso(trace.couplings[0], joint=False)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="couplings holds a Tensor"):
        oicsr.select_channels(trace.couplings, scores, model, IMAGES)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="couplings is a Chain"):
        oicsr.describe(trace.couplings, model)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [oicsr.GroupLasso, oicsr.ProximalGroupLasso, oicsr.GrOWL, oicsr.ProximalGrOWL])
def test_a_penalty_says_that_the_model_is_given_when_it_is_called(kind: Callable[..., object]) -> None:
    model = Chain()
    couplings = oicsr.find_couplings(model, IMAGES)
    for arguments in [(model, couplings), (model,), (model, couplings, 1e-3)]:
        with pytest.raises(TypeError, match=r"couplings is a Chain, a module: .* the model is given when it is called"):
            kind(*arguments)


class _Numbers(nn.Module):
    """Takes numbers beside a tensor: no shape."""

    def forward(self, x: Tensor, factor: float) -> Tensor:
        return x * factor


def test_numbers_beside_a_tensor_are_no_shape() -> None:
    assert oicsr.count_macs(_Numbers(), (IMAGES, 2.0)) == 0  # type: ignore[arg-type]


def test_what_is_no_plan_and_no_model() -> None:
    model = Chain()
    couplings = oicsr.find_couplings(model, IMAGES)
    plan = oicsr.PruningPlan.from_kept(couplings, {"conv1": [0, 1]})
    with pytest.raises(TypeError, match=r"model is a PruningPlan.*swapped, the model comes first"):
        oicsr.remove_channels(plan, model)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"plan is a list; it must be a PruningPlan, from select_channels"):
        oicsr.remove_channels(model, couplings)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"model is a list; it must be a torch\.nn\.Module"):
        oicsr.GroupLasso(couplings, strength=1.0)(couplings)  # type: ignore[arg-type]
    scores = oicsr.out_in_energy(model, couplings)
    for number in (0, 1.5, -2):
        with pytest.raises(ValueError, match=f"round_to is {number}; it must be a whole number, 1 or more"):
            oicsr.select_channels(scores, couplings, model, IMAGES, round_to=number)  # type: ignore[arg-type]


def test_one_readable_line_each() -> None:
    model = Chain()
    couplings = oicsr.find_couplings(model, IMAGES)
    plan = oicsr.PruningPlan.from_kept(couplings, {"conv1": [0, 1]})
    assert repr(couplings[0]) == "Coupling('conv1', 6 channels, 6 members)"
    assert repr(couplings[0].members[0]) == "Member('conv1.weight', dim=0, side='out', 6 slices)"
    assert repr(plan) == "PruningPlan(2 couplings keep 10 channels, 6 axes are cut)"
    lasso = oicsr.GroupLasso(couplings, ("out",), 2e-3)
    assert repr(lasso) == "GroupLasso(sides=('out',), strength=0.002, groups=14)"
    for kind in (oicsr.ProximalGroupLasso, oicsr.GrOWL, oicsr.ProximalGrOWL):
        assert repr(kind(couplings, strength=0.5)) == f"{kind.__name__}(sides=('out', 'in'), strength=0.5, groups=14)"


Call = Callable[[Chain, list[oicsr.Coupling], oicsr.PruningPlan], object]
KINDS: dict[str, tuple[Call, str]] = {
    "tolerance": (lambda m, c, p: _select(m, c, tolerance="a"), "tolerance is 'a', a str; it must be a number"),
    "a cap": (lambda m, c, p: _select(m, c, max_removed="0.5"), "max_removed is '0.5', a str; it must be a number"),
    "caps": (lambda m, c, p: _select(m, c, max_removed=[0.5]), "max_removed is '.0.5.', a list; it must be a"),
    "a yes": (lambda m, c, p: _select(m, c, max_removed=True), "max_removed is 'True', a bool; it must be a number"),
    "rounding": (lambda m, c, p: _select(m, c, round_to="8"), "round_to is '8', a str; it must be a number"),
    "a share": (lambda m, c, p: _select(m, c, macs_kept="half"), "macs_kept is 'half', a str; it must be a number"),
    "no cost": (lambda m, c, p: _select(m, c, cost=3, cost_kept=0.5), "cost is '3'; it must be a function"),
    "its value": (lambda m, c, p: _select(m, c, cost=lambda _: None, cost_kept=0.5), r"cost\(model\) returns is 'N"),
    "a mapping": (lambda m, c, p: oicsr.select_channels({}, c, m, IMAGES), "scores is a dict; it must be a list"),
    "lists": (lambda m, c, p: oicsr.select_channels([[1.0]], c, m, IMAGES), "scores holds a list; it must be a list"),
    "strength": (lambda m, c, p: oicsr.GroupLasso(c, strength=None), "strength is 'None', a NoneType; it must be"),
    "a step": (lambda m, c, p: oicsr.ProximalGroupLasso(c).proximal_step(m, "x"), "learning_rate is 'x', a str"),
    "a length": (lambda m, c, p: oicsr.suggest_strength(m, c, learning_rate=0.1, steps="x"), "steps is 'x', a str"),
    "weak": (lambda m, c, p: oicsr.weak_energy(m, c, "x"), "share is 'x', a str; it must be a number"),
    "of a plan": (lambda m, c, p: oicsr.weak_energy(m, c, plan={}), "plan is a dict; it must be a PruningPlan"),
    "described": (lambda m, c, p: oicsr.describe(m, c, "plan"), "plan is a str; it must be a PruningPlan"),
    "shrunk": (lambda m, c, p: oicsr.shrink_couplings(c, {}), "plan is a dict; it must be a PruningPlan"),
    "joined": (lambda m, c, p: p.then({}), "plan is a dict; it must be a PruningPlan"),
    "absorbed": (lambda m, c, p: oicsr.plan_absorption(m, {}, IMAGES), "plan is a dict; it must be a PruningPlan"),
    "saved": (lambda m, c, p: oicsr.save_pruned("small.safetensors", p, m), "model is a PruningPlan.*swapped"),
    "kept": (lambda m, c, p: oicsr.PruningPlan.from_kept(c, [[0]]), "kept is a list; it must be a mapping"),
    "built": (lambda m, c, p: oicsr.load_pruned("small.safetensors", m), "build_model is a Chain; it must be a"),
    "ignored": (lambda m, c, p: oicsr.find_couplings(m, IMAGES, ignore=3), "3 is neither the name of a layer"),
    "a class": (lambda m, c, p: oicsr.find_couplings(m, IMAGES, ignore=nn.Conv2d), "Conv2d'> is neither the name"),
    "counted": (lambda m, c, p: oicsr.count_params(m.parameters()), "model is a generator; it must be a torch"),
    "no batches": (lambda m, c, p: oicsr.recalibrate(m, None), "batches is a NoneType; it must be a list of batches"),
    "a batch": (lambda m, c, p: oicsr.recalibrate(m, [3]), "a batch is a int of int; it must be a tensor"),
    "a norm": (lambda m, c, p: oicsr.rescale(m, IMAGES, "x"), "the norm for 'conv1' is 'x', a str; it must"),
    "optimizer": (lambda m, c, p: oicsr.remove_channels(m, p, optimizer="sgd"), "optimizer is a str; it must be a"),
    "optimizers": (lambda m, c, p: oicsr.remove_channels(m, p, optimizer=[m]), "optimizer holds a Chain"),
    "parameters": (lambda m, c, p: oicsr.remove_channels(m, p, optimizer=m.parameters()), "optimizer is a generator"),
    "proved": (lambda m, c, p: oicsr.prove(m, c, IMAGES), r"couplings is a Tensor; .*\(are the arguments in the right"),
}  # fmt: skip


def _select(model: nn.Module, couplings: list[oicsr.Coupling], **changed: object) -> oicsr.PruningPlan:
    scores = oicsr.out_in_energy(model, couplings)
    return oicsr.select_channels(scores, couplings, model, IMAGES, **changed)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", KINDS)
def test_an_argument_of_another_kind_is_named_and_nothing_is_changed(name: str) -> None:
    model = Chain()
    couplings = oicsr.find_couplings(model, IMAGES)
    plan = oicsr.PruningPlan.from_kept(couplings, {"conv1": [0, 1]})
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    call, said = KINDS[name]
    with pytest.raises(TypeError, match=said):
        call(model, couplings, plan)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_what_was_found_before_surgery_is_refused_after_it(tmp_path: Path) -> None:
    model = Chain()
    couplings = oicsr.find_couplings(model, IMAGES)
    plan = oicsr.PruningPlan.from_kept(couplings, {"conv1": [0, 5]})
    small = oicsr.remove_channels(model, plan)
    with pytest.raises(ValueError, match=r"the couplings are not those of this network.*shrink_couplings"):
        oicsr.prove(small, IMAGES, couplings)
    with pytest.raises(ValueError, match=r"the couplings are not those of this network.*shrink_couplings"):
        MacsModel(couplings, small, IMAGES)
    with pytest.raises(ValueError, match=r"the plan expects 6 slices on axis 0 of 'conv1.weight'"):
        oicsr.plan_absorption(small, plan, IMAGES)
    with pytest.raises(ValueError, match=r"whose shape is \(2, .* has been applied already"):
        oicsr.remove_channels(small, plan)
    assert not oicsr.prove(small, IMAGES, oicsr.shrink_couplings(couplings, plan)).refuted
    with pytest.raises(FileNotFoundError, match="no such folder"):
        oicsr.save_pruned(tmp_path / "none" / "small.safetensors", small, plan)
