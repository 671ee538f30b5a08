"""Likely mistakes get an error that says what they are; objects read well when printed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import oicsr
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
