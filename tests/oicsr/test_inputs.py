"""Example inputs and outputs of any nesting: tensors, lists, dictionaries, dataclasses, None."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import oicsr
from oicsr.absorption import plan_absorption
from oicsr.networks.inputs import ExampleInputs, as_inputs, map_tensors, tensors_in
from oicsr.plan import PruningPlan
from tests.oicsr.networks import drop_third, zero_channels

X, Y = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)


@dataclass
class Output:
    """What a network may give."""

    logits: Tensor
    hidden: list[Tensor] | None = None


class Pair(NamedTuple):
    """What a network may take."""

    left: Tensor
    right: Tensor | None


class Takes(nn.Module):
    """Adds all tensors that it is given, in any nesting, behind two convolutions; gives a dataclass."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, *args: Any, **kwargs: Any) -> Output:
        hidden = torch.relu(self.one(sum(tensors_in([list(args), kwargs]))))  # type: ignore[call-overload]
        return Output(self.two(hidden).mean((2, 3)), [hidden.new_ones(2)])


INPUTS: dict[str, ExampleInputs] = {
    "tensor": X,
    "tuple": (X, Y),
    "list": [X, Y],
    "one list": ([X, Y],),
    "list of dictionaries": ([{"image": X}, {"image": Y}],),
    "dictionary as an argument": ({"pixels": X, "mask": None},),
    "ordered dictionary": (OrderedDict(pixels=X, mask=Y),),
    "keywords": {"pixels": X, "others": [Y, None]},
    "none": (X, None),
    "number": (X, None, 2, "text", True),
    "named tuple": (Pair(X, None),),
    "nested": ((X, [Y, (X,)]),),
    "dataclass": (Output(X, [Y]),),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_networks_take_inputs_of_any_nesting(kind: str) -> None:
    model, inputs = Takes().double(), as_inputs(INPUTS[kind]).map(Tensor.double)
    couplings = oicsr.find_couplings(model, inputs)
    assert [coupling.name for coupling in couplings] == ["one"]
    kept = drop_third(couplings)
    zero_channels(model, couplings, kept, "in")
    scores = oicsr.out_in_energy(model, couplings)
    small = oicsr.remove_channels(model, oicsr.PruningPlan.from_kept(couplings, kept))
    assert torch.allclose(inputs.call(model).logits, inputs.call(small).logits, rtol=1e-12, atol=1e-14)
    assert oicsr.count_macs(small, inputs) * 8 == oicsr.count_macs(model, inputs) * 6
    plan = oicsr.select_channels(scores, couplings, model, inputs, macs_kept=0.5, tolerance=0.1)
    assert len(plan.kept["one"]) == 4


def test_what_is_taken_apart_is_put_together_again() -> None:
    for value in INPUTS.values():
        inputs = as_inputs(value)
        tensors = inputs.tensors()
        doubled = inputs.replace([2 * tensor for tensor in tensors])
        assert [2 * float(t.sum()) for t in tensors] == pytest.approx([float(t.sum()) for t in doubled.tensors()])
        assert [type(arg) for arg in inputs.args] == [type(arg) for arg in doubled.args]
        assert list(tensors_in([list(inputs.args), dict(inputs.kwargs)])) == tensors
    pair = map_tensors(Pair(X, None), torch.zeros_like)
    assert isinstance(pair, Pair) and pair.right is None and not pair.left.any()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({0: X}, r"a dictionary with keys \[0\].*into a tuple, \(inputs,\)"),
        ("image", "example_inputs is a str; it must be a tensor, a sequence .* or a dictionary"),
        (3.5, "example_inputs is a float"),
        (None, "example_inputs is a NoneType"),
    ],
)
def test_what_is_no_call_is_refused(inputs: Any, message: str) -> None:
    for function in (oicsr.find_couplings, oicsr.count_macs):
        with pytest.raises(ValueError, match=message):
            function(Chainless(), inputs)


class Chainless(nn.Module):
    """Never runs."""

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("what is no input was passed on")


class Keywords(nn.Module):
    """Passes inputs and weights by keyword, as some code bases do."""

    def __init__(self, order: Sequence[str]) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 6, 3), nn.Linear(6, 4)
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        first = {"input": x, "weight": self.one.weight, "bias": self.one.bias}
        x = torch.relu(functional.conv2d(**{name: first[name] for name in self.order}))
        x = torch.relu(functional.conv_transpose2d(weight=self.two.weight, input=x)).mean((2, 3))
        return functional.linear(bias=None, weight=self.three.weight, input=x)


@pytest.mark.parametrize("order", [("input", "weight", "bias"), ("bias", "weight", "input"), ("weight", "input")])
def test_weights_by_keyword_are_counted_and_followed(order: tuple[str, ...]) -> None:
    model = Keywords(order)
    macs = 6 * 6 * 8 * 27 + 6 * 6 * 8 * 54 + 6 * 4
    assert oicsr.count_macs(model, X) == macs
    couplings = oicsr.find_couplings(model, X)
    assert [coupling.name for coupling in couplings] == ["one", "two"]
    small = oicsr.remove_channels(model, oicsr.PruningPlan.from_kept(couplings, {"one": [0, 1], "two": [0, 2, 4]}))
    assert small(X).shape == (2, 4) and oicsr.count_macs(small, X) == 6 * 6 * 2 * 27 + 6 * 6 * 2 * 27 + 3 * 4


class Changing(nn.Module):
    """Changes its image in place, which it takes out of a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        image = batch.pop("image").sub_(0.5).div_(2)
        batch["sizes"].append(2)
        return self.out(torch.relu(self.conv(image)))


@pytest.mark.parametrize(
    "use",
    [
        oicsr.count_macs,
        lambda model, inputs: oicsr.find_couplings(model, inputs, scope="all"),
        lambda model, inputs: oicsr.prune(model, inputs, scope="all", macs_kept=0.5),
        lambda model, inputs: plan_absorption(
            model, PruningPlan.from_kept(oicsr.find_couplings(model, inputs), {"conv": [0, 1]}), inputs
        ),
    ],
)
def test_a_forward_may_change_its_inputs(use: Any) -> None:
    image = X.clone()
    batch = {"image": image, "sizes": [1]}
    use(Changing(), (batch,))
    assert batch["image"] is image and bool((image == X).all()) and batch["sizes"] == [1]


def test_a_network_that_changes_its_inputs_is_compared() -> None:
    (coupling,) = oicsr.find_couplings(Changing(), ({"image": X.clone(), "sizes": []},))  # warnings are errors
    assert coupling.name == "conv"


def test_copies_of_inputs() -> None:
    leaf, weight = torch.ones(2, requires_grad=True), nn.Parameter(torch.ones(2))
    inner = leaf * 2
    shape = X.shape
    with torch.no_grad():
        one, other, (twice, kept), copy, size = as_inputs((leaf, inner, [inner, weight], X, shape)).copied().args
    assert one is not leaf and one.is_leaf and one.requires_grad
    assert other is twice and other is not inner and other.requires_grad and not other.is_leaf
    assert kept is weight and size is shape and copy.data_ptr() != X.data_ptr() and not copy.requires_grad
    sparse, meta = X.to_sparse(), X.to("meta")
    assert [t.layout for t in as_inputs((sparse, meta)).copied().args] == [sparse.layout, meta.layout]
