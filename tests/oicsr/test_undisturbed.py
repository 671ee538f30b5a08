"""What finding couplings, pruning and opening leave as it is: random numbers, weights, hooks, classes, results."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import oicsr
from oicsr.networks.state import buffers_kept, generators_kept
from oicsr.proving import trials


def block(between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), between, nn.Linear(8, 4))


class Draws(nn.Module):
    """Draws from every generator there is, as layers that are dropped at random do in training mode."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and random.random() + np.random.rand() > 3:  # noqa: NPY002 (as users' code does)
            return x
        return x + 0 * torch.rand([])


def test_random_numbers_go_on_as_if_nothing_had_run() -> None:
    model = block(Draws())
    random.seed(0), np.random.seed(0), torch.manual_seed(0)  # noqa: NPY002

    def drawn() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand([]))  # noqa: NPY002

    with generators_kept(model):
        expected = drawn()
    oicsr.find_couplings(model, torch.randn(2, 6, generator=torch.Generator().manual_seed(0)))
    assert drawn() == expected


class PutsWeights(nn.Module):
    """Rescales its weights in forward: in place (an embedding), and by putting others in their place."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.first, self.second = nn.Embedding(5, 8, max_norm=0.1), nn.Linear(8, 8), nn.Linear(8, 2)
        self.u = nn.Parameter(torch.ones(8), requires_grad=False)

    def forward(self, index: Tensor) -> Tensor:
        self.first.weight.data = torch.renorm(self.first.weight.data, 2, 0, 0.1)
        self.u.add_(1)
        return self.second(self.first(self.table(index)).relu())  # type: ignore[no-any-return]


@pytest.mark.parametrize("call", [oicsr.count_macs, oicsr.find_couplings], ids=lambda call: call.__name__)
def test_weights_that_forward_changes_stay(call: Callable[[nn.Module, Any], object]) -> None:
    model = PutsWeights()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    call(model, torch.arange(5))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_expanded_buffers_are_no_obstacle() -> None:
    model = block(nn.BatchNorm1d(8))
    model.register_buffer("mask", torch.ones(1, 4).expand(3, 4))
    with buffers_kept(model):
        model(torch.randn(4, 6))
    assert torch.equal(model[1].running_mean, torch.zeros(8))  # type: ignore[arg-type]
    oicsr.recalibrate(model, [torch.randn(16, 6)])


class Registered(nn.Module):
    known: ClassVar[dict[str, type]] = {}

    def __init_subclass__(cls, **_: Any) -> None:
        cls.known[cls.__name__] = cls

    def forward(self, x: Tensor) -> Tensor:
        return x


class Halved(Registered):
    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width = 2, 4

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), self.heads, self.width).flatten(1)


def test_a_registry_of_classes_holds_the_users_own() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oicsr.find_couplings(block(Halved()), torch.randn(2, 6))
    assert Registered.known["Halved"] is Halved


class NotesArguments(nn.Module):
    """Reads what a hook with keyword arguments of its own has noted of a layer inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out, self.seen = nn.Linear(6, 8), nn.Linear(8, 4), list[Tensor]()
        self.inner.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.seen[:] = [args[0]]

    def forward(self, x: Tensor) -> Tensor:
        y = self.out(self.inner(x).relu())
        return y + self.seen[0].sum(-1, keepdim=True)  # type: ignore[no-any-return]


def test_hooks_of_the_network_with_keyword_arguments_run() -> None:
    [coupling] = oicsr.find_couplings(NotesArguments(), torch.randn(2, 6))
    assert coupling.name == "inner"


def test_an_infinity_that_goes_is_a_difference() -> None:
    before = [torch.tensor([math.inf, 1.0, 2.0])]
    assert trials._difference(before, [torch.tensor([5.0, 1.0, 2.0])], 1e-9) is not None
    assert trials._difference(before, [torch.tensor([-math.inf, 1.0, 2.0])], 1e-9) is not None
    assert trials._difference(before, [torch.tensor([math.inf, 1.0, 9.0])], 1e-9) is not None
    assert trials._difference(before, [before[0].clone()], 1e-9) is None


class NoSix(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8, device="meta"), nn.Linear(8, 4, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if x.shape[1] == 6:
            raise RuntimeError("no six")
        return self.b(x)  # type: ignore[no-any-return]


def test_a_plan_under_which_the_network_fails_is_refused_though_nothing_can_be_computed() -> None:
    model, x = NoSix(), torch.empty(2, 4, device="meta")
    with pytest.warns(oicsr.UntriedWarning):
        couplings = oicsr.find_couplings(model, x)
    scores = [torch.arange(8.0)]
    with pytest.raises(ValueError, match=r"does not run any more \(RuntimeError: no six\)"):
        oicsr.select_channels(scores, couplings, model, x, macs_kept=0.75)


class SharesAttention(nn.Module):
    """Holds an attention under two names, and keeps its weights by a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = self.alias = nn.MultiheadAttention(8, 2, batch_first=True)
        self.maps: list[Tensor] = []
        self.attend.register_forward_hook(self.keep)

    def keep(self, module: nn.Module, args: Any, outputs: tuple[Tensor, Tensor]) -> None:
        self.maps.append(outputs[1])

    def forward(self, x: Tensor) -> Tensor:
        self.maps.clear()
        x = self.attend(x, x, x)[0] + self.alias(x, x, x)[0]
        return x * self.maps[0].amax()  # type: ignore[no-any-return]


def test_an_attention_is_opened_under_both_its_names_with_its_hooks() -> None:
    model, x = SharesAttention().eval(), torch.randn(2, 3, 8)
    opened = oicsr.open_attention(model)
    assert opened.attend is opened.alias
    torch.testing.assert_close(opened(x), model(x))


def test_an_opened_attention_with_an_adapter_has_a_state() -> None:
    class Adapter(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base, self.down, self.up = base, nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + self.up(self.down(x))  # type: ignore[no-any-return]

    opened: Any = oicsr.open_attention(nn.MultiheadAttention(8, 2))
    opened.q_proj = Adapter(opened.q_proj)
    assert "q_proj.base.weight" in opened.state_dict()


class Blur(nn.Module):
    """A depthwise filter of fixed numbers that says its widths as a convolution does."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.in_channels = self.out_channels = self.groups = channels
        self.register_buffer("weight", torch.rand(channels, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight, padding=1, groups=self.groups)


def test_numbers_of_a_convolution_with_fixed_weights_follow() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 8, 1), Blur(8), nn.Conv2d(8, 4, 1)), torch.randn(1, 3, 8, 8)
    small = oicsr.prune(model, x, macs_kept=0.5).model
    assert small[1].groups == small[1].in_channels == len(small[1].weight) < 8  # type: ignore[index, arg-type]


class FixedMatrix(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.eye(8))

    def forward(self, weight: Tensor) -> Tensor:
        return self.matrix @ weight


def test_a_parametrization_of_fixed_size_is_no_error_by_shapes() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    parametrize.register_parametrization(model[0], "weight", FixedMatrix())
    with pytest.warns(oicsr.UnprunedChannelsWarning):
        couplings = oicsr.find_couplings(model, torch.randn(2, 6), verify="shapes")
    assert [coupling.name for coupling in couplings] == ["2"]


class Turned(nn.Module):
    """Multiplies by a table that is made with the module, and called a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = {"cos": torch.linspace(0.5, 1, 3)[:, None]}

    def forward(self, x: Tensor) -> Tensor:
        return x * self.cache["cos"]


def test_a_table_that_is_made_with_its_module_stays() -> None:
    small = oicsr.prune(block(Turned()), torch.randn(2, 3, 6), macs_kept=0.5).model
    assert "cos" in small[1].cache  # type: ignore[index, union-attr, operator]


def test_what_was_trained_is_not_lost_where_the_last_batch_is_bad() -> None:
    model = block(nn.BatchNorm1d(8))
    batches = [torch.randn(8, 6), torch.randn(8, 5)]
    with pytest.raises(Exception) as caught:
        oicsr.prune(model, torch.randn(2, 6), macs_kept=0.5, train=lambda *_: None, batches=batches)
    assert caught.value.result.macs[-1] <= 0.5 * caught.value.result.macs[0]  # type: ignore[attr-defined]


def test_widths_on_modules_follow_under_a_layer_norm_too() -> None:
    class Reshapes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width = 8

        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(-1, self.width).reshape(x.shape)

    model = nn.Sequential(nn.Linear(6, 8), Reshapes(), nn.LayerNorm(8), nn.Linear(8, 4))
    with pytest.warns(oicsr.ApproximateWarning):
        [coupling] = oicsr.find_couplings(model, torch.randn(2, 6), approximate="layer_norm")
    assert "width" in [attribute.name for attribute in coupling.attributes]


class Masked(nn.Linear):
    """Writes into its trained weight, under the autograd's radar or within its rules."""

    def __init__(self, form: str) -> None:
        super().__init__(6, 8)
        self.form = form
        self.register_buffer("mask", torch.ones(8, 6).tril(3))

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "data":
            self.weight.data *= self.mask
        else:
            with torch.no_grad():
                self.weight.mul_(0.5)
        return super().forward(x)


@pytest.mark.filterwarnings("ignore:the outputs of Sequential .* are random:oicsr.UntriedWarning")
@pytest.mark.parametrize("form", ["data", "no_grad"])
def test_trained_weights_that_forward_writes_to_stay(form: str) -> None:
    model, x = nn.Sequential(Masked(form), nn.ReLU(), nn.Linear(8, 4)), torch.randn(2, 6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    couplings = oicsr.find_couplings(model, x)
    oicsr.count_macs(model, x)
    oicsr.select_channels(oicsr.out_in_energy(model, couplings), couplings, model, x, macs_kept=0.5)
    oicsr.prune(model, x, macs_kept=0.5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Guarded(nn.Module):
    """Takes no attribute but its mode once it is made."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)
        vars(self)["made"] = True

    def __setattr__(self, name: str, value: object) -> None:
        if "made" in vars(self) and name != "training":
            raise AttributeError(f"{name} cannot be set")
        super().__setattr__(name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


def test_modules_that_take_no_attributes() -> None:
    assert [coupling.name for coupling in oicsr.find_couplings(Guarded(), torch.randn(2, 6))] == ["a"]
