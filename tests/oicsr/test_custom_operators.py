"""Rules of users: the examples of the documentation, and what is said of rules that do not fit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import DeformConv2d

import oicsr
from oicsr.rules import ModuleCall, Tracer, Value, on_axis, register_rule
from oicsr.rules.registry import LEAF_CLASSES, RULES
from tests.oicsr.networks import check_every_channel

PAGE = Path(__file__).parents[2] / "docs" / "custom_operators.md"


@pytest.fixture
def registry() -> Iterator[None]:
    """Forget the rules that a test registers."""
    rules, classes = dict(RULES), dict(LEAF_CLASSES)
    yield
    RULES.clear()
    RULES.update(rules)
    LEAF_CLASSES.clear()
    LEAF_CLASSES.update(classes)


@cache
def run_page() -> tuple[dict[str, Any], dict[Any, Any], dict[Any, Any]]:
    """Run the code of the documentation, as one program; return what it defines, and all rules with its own."""
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(block, names)
    return names, dict(RULES), dict(LEAF_CLASSES)


@pytest.fixture
def page(registry: None) -> dict[str, Any]:
    """Return what the documentation's code defines, its rules registered."""
    names, rules, classes = run_page()
    RULES.update(rules)
    LEAF_CLASSES.update(classes)
    return names


class Deformed(nn.Module):
    def __init__(self, groups: int = 1, offset_groups: int = 1) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 1)
        self.offset, self.mask = nn.Conv2d(8, 18 * offset_groups, 3), nn.Conv2d(8, 9 * offset_groups, 3)
        self.deformed, self.two = DeformConv2d(8, 6, 3, groups=groups), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.one(x))
        return self.two(torch.relu(self.deformed(x, self.offset(x), torch.sigmoid(self.mask(x)))))


def test_deformable_convolution_is_followed(page: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Deformed()
    with pytest.warns(oicsr.UnprunedChannelsWarning, match=r"torchvision\.deform_conv2d.* takes places from it"):
        couplings = oicsr.find_couplings(model, torch.randn(2, 3, 6, 6))
    assert {c.name: c.num_channels for c in couplings} == {"one": 8, "deformed": 6}
    with pytest.warns(oicsr.UnprunedChannelsWarning, match="takes places"):
        assert check_every_channel(model, torch.randn(2, 3, 6, 6)) == {"one": 8, "deformed": 6}
    with pytest.warns(oicsr.UnprunedChannelsWarning, match="has several groups"):
        assert oicsr.find_couplings(Deformed(groups=2), torch.randn(2, 3, 6, 6)) == []


def test_the_rule_of_the_library_follows_groups_of_offsets() -> None:
    torch.manual_seed(0)
    with pytest.warns(oicsr.UnprunedChannelsWarning, match="takes places"):
        found = check_every_channel(Deformed(offset_groups=2), torch.randn(2, 3, 6, 6))
    assert found == {"one": 4, "deformed": 6}
    with pytest.warns(oicsr.UnprunedChannelsWarning, match="deform_conv2d.* has groups"):
        assert oicsr.find_couplings(Deformed(groups=2), torch.randn(2, 3, 6, 6)) == []


def test_a_trial_sends_no_deformable_convolution_to_places_that_are_no_numbers() -> None:
    class Normalized(Deformed):
        def __init__(self) -> None:
            super().__init__()
            nn.utils.parametrizations.weight_norm(self.one)  # a trial's rows of zeros have no direction

    torch.manual_seed(0)
    with pytest.warns(oicsr.UnprunedChannelsWarning, match="takes places"):
        assert check_every_channel(Normalized(), torch.randn(2, 3, 6, 6)) == {"one": 8, "deformed": 6}


def test_without_a_rule_an_operator_is_named(registry: None) -> None:
    del RULES["torchvision::deform_conv2d"]
    with pytest.warns(oicsr.UnprunedChannelsWarning, match="deform_conv2d.* in module 'deformed' has no rule"):
        assert oicsr.find_couplings(Deformed(), torch.randn(2, 3, 6, 6)) == []


def test_custom_operator_is_followed(page: dict[str, Any]) -> None:
    class Audio(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv1d(3, 8, 3), nn.Conv1d(8, 2, 1)
            self.alpha = nn.Parameter(torch.rand(8) + 0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(page["snake"](self.one(x), self.alpha))

    torch.manual_seed(0)
    assert check_every_channel(Audio(), torch.randn(2, 3, 9)) == {"one": 8}
    (coupling,) = oicsr.find_couplings(Audio(), torch.randn(2, 3, 9))
    (alpha,) = (member for member in coupling.members if member.parameter == "alpha")
    assert (alpha.side, alpha.counts, alpha.channels.tolist()) == ("norm", False, [*range(8)])


class Around(nn.Module):
    """A module between two linear layers."""

    def __init__(self, inner: nn.Module, width: int = 8) -> None:
        super().__init__()
        self.one, self.inner, self.two = nn.Linear(3, 8), inner, nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.inner(self.one(x)))


def test_class_of_modules_is_followed(page: dict[str, Any]) -> None:
    class Derived(page["Gated"]):  # type: ignore[misc]
        pass

    for module in (page["Gated"](8), Derived(8)):
        torch.manual_seed(0)
        model = Around(module)
        assert check_every_channel(model, torch.randn(4, 3)) == {"one": 8}
        assert "forward" not in vars(module)  # as it was
        (coupling,) = oicsr.find_couplings(model, torch.randn(4, 3))
        assert ("inner.gate", 0) in {member.axis for member in coupling.members}
        small = oicsr.remove_channels(model, oicsr.PruningPlan.from_kept([coupling], {"one": [1, 5]}))
        assert len(small.inner.gate) == 2


class Pair(nn.Module):
    """Two inputs, one by name, and two outputs in a dictionary; holds a layer of its own and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.norm = nn.Linear(8, 6), nn.BatchNorm1d(8)

    def forward(self, x: Tensor, *, other: Tensor) -> dict[str, Tensor]:
        total = self.norm(x) + other
        return {"total": total, "projected": self.project(total)}


class Paired(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.pair = nn.Linear(3, 8), nn.Linear(3, 8), Pair()
        self.two, self.three = nn.Linear(8, 2), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        found = self.pair(self.one(x), other=self.other(x))
        return self.two(found["total"]) + self.three(found["projected"])


def test_modules_with_several_inputs_and_outputs(registry: None) -> None:
    @register_rule(Pair)
    def pair(tracer: Tracer, call: ModuleCall) -> list[Value]:
        first, second = (tracer.ids(source) for source in call.inputs)
        assert first is not None and second is not None
        tracer.sets.join(first, second)
        for name in ("weight", "bias", "running_mean", "running_var"):
            tracer.add_slot(call.state[f"norm.{name}"], 0, first.flatten(), "norm", counts=name == "weight")
        tracer.add_slot(call.state["project.weight"], 1, first.flatten(), "in", counts=True)
        out = tracer.start_channels(call.state["project.weight"], dim=0)
        tracer.add_bias(call.state["project.bias"], out)
        return [Value(first), Value(on_axis(out, 1, 2))]

    torch.manual_seed(0)
    assert check_every_channel(Paired(), torch.randn(4, 3)) == {"one": 8, "pair.project": 6}


def test_rule_that_gives_the_wrong_shape_is_named(registry: None) -> None:
    register_rule("aten::digamma", replace=True)(lambda tracer, node: Value(torch.arange(8)))
    with pytest.raises(
        ValueError, match=r"<lambda>.*aten\.digamma.* gave ids of shape \(8,\) for a value of shape \(4, 8"
    ):
        oicsr.find_couplings(Around(Call(torch.digamma)), torch.randn(4, 3))
    register_rule("aten::digamma", replace=True)(lambda tracer, node: Value(torch.arange(7)[None]))
    with pytest.raises(ValueError, match=r"gave ids of shape \(1, 7\) for a value of shape \(4, 8\)"):
        oicsr.find_couplings(Around(Call(torch.digamma)), torch.randn(4, 3))
    register_rule("aten::digamma", replace=True)(lambda tracer, node: [Value(None), Value(None)])
    with pytest.raises(ValueError, match=r"gave 2 value\(s\); the operator gives 1"):
        oicsr.find_couplings(Around(Call(torch.digamma)), torch.randn(4, 3))


def test_slots_that_do_not_fit_are_named(registry: None) -> None:
    @register_rule(nn.Softplus)
    def wrong(tracer: Tracer, call: ModuleCall) -> Value:
        ids = tracer.ids(call.inputs[0])
        assert ids is not None
        tracer.add_slot(call.inputs[0], 0, ids.flatten(), "norm", counts=False)
        return Value(ids)

    with pytest.raises(ValueError, match="is no parameter or buffer of the model"):
        oicsr.find_couplings(Around(nn.Softplus()), torch.randn(4, 3))

    @register_rule(nn.PReLU)
    def short(tracer: Tracer, call: ModuleCall) -> Value:
        ids = tracer.ids(call.inputs[0])
        assert ids is not None
        tracer.add_slot(call.state["weight"], 0, ids.flatten()[:3], "norm", counts=True)
        return Value(ids)

    with pytest.raises(
        ValueError, match=r"ids of shape \(3,\) do not fit axis 0 of 'inner.weight', whose shape is \(8,\)"
    ):
        oicsr.find_couplings(Around(nn.PReLU(8)), torch.randn(4, 3))


class Call(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def test_registering_is_checked(registry: None) -> None:
    with pytest.raises(ValueError, match="'aten::relu' already has a rule; pass replace=True"):
        register_rule("aten::relu")(lambda tracer, node: Value(None))
    for name in ("relu", "aten::relu.default", "aten::", "::relu"):
        with pytest.raises(ValueError, match="must be named as 'library::operator'"):
            register_rule(name)(lambda tracer, node: Value(None))
    with pytest.raises(TypeError, match="a rule is for 'library::operator' or for a class of modules, not for 3"):
        register_rule(3)  # type: ignore[call-overload]
    register_rule(nn.ReLU)(lambda tracer, call: Value(None))
    with pytest.raises(ValueError, match="'ReLU' already has a rule"):
        register_rule(nn.ReLU)(lambda tracer, call: Value(None))


def test_module_outputs_must_be_tensors(registry: None) -> None:
    register_rule(Call)(lambda tracer, call: Value(None))
    with pytest.raises(
        ValueError, match="module 'inner' has a rule of its own, so that all its outputs must be tensors"
    ):
        oicsr.find_couplings(Around(Call(lambda x: (x, 3))), torch.randn(4, 3))


def test_opaque_module_keeps_what_it_reads(registry: None) -> None:
    register_rule(Call)(lambda tracer, call: tracer.opaque(call.node, "is mine"))
    with pytest.warns(oicsr.UnprunedChannelsWarning, match="module_call.* in module 'inner' is mine"):
        assert oicsr.find_couplings(Around(Call(torch.relu)), torch.randn(4, 3)) == []
