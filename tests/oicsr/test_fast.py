"""The fused passes against their references: every kind of weight, every way in, and nothing remembered too long."""

from __future__ import annotations

import copy
import functools
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import oicsr
from benchmarks.models import INPUT_SHAPES, MODELS
from oicsr import reference
from oicsr.energy import add_energy_gradient, energy_vector
from oicsr.fast import passes, table
from oicsr.fast.layout import Layout
from tests.oicsr.networks import Basic, Chain, Mixed, drop_third, narrowed
from tests.slow import but_few_slow

IMAGES = torch.zeros(2, 3, 8, 8)
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


class Transposed(nn.Module):
    """A transposed convolution, whose rows are its inputs, between two plain ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 6, 2, stride=2)
        self.last = nn.Conv2d(6, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.up(torch.relu(self.first(x))))).mean((2, 3))


def quiet_couplings(model: nn.Module, images: Tensor, verify: Any = "numeric") -> list[oicsr.Coupling]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", oicsr.UnprunedChannelsWarning)
        return oicsr.find_couplings(model, images, scope="all", verify=verify)


def relative_error(got: Tensor, want: Tensor) -> float:
    return float((got - want).detach().abs().max() / want.detach().abs().max().clamp(min=1e-30))


def memory_order(tensor: Tensor) -> list[int]:
    return [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]


@functools.cache
def couplings_of(network: type[nn.Module]) -> list[oicsr.Coupling]:
    return quiet_couplings(network(), IMAGES)


@pytest.fixture(params=[16, table.CACHE_BLOCK], ids=["blocks of 16", "whole"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(table, "CACHE_BLOCK", request.param)
    return int(request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("sides", [("out", "in"), ("out",), ("in",), ("out", "in", "norm")])
@pytest.mark.parametrize("network", [Chain, Basic, Mixed, Transposed])
def test_passes_equal_the_reference(
    network: type[nn.Module], sides: Any, memory_format: torch.memory_format, dtype: torch.dtype, block: int
) -> None:
    torch.manual_seed(0)
    model = network().to(dtype=dtype, memory_format=memory_format)
    layout = Layout.of(couplings_of(network), sides)
    weights = [w.detach() for w in layout.weights(model)]
    plan, factors = layout.table(weights), torch.rand(layout.channels, dtype=dtype)
    tolerance = TOLERANCE[dtype]
    assert (
        relative_error(passes.energies(weights, plan), reference.energies(weights, layout.terms, layout.channels))
        < tolerance
    )
    wanted = reference.products(weights, layout.terms, factors)
    produced = passes.products(weights, [True] * len(weights), plan, factors)
    targets = [torch.ones_like(w) for w in weights]
    passes.add_products_(targets, weights, plan, factors)
    for got, added, want, weight in zip(produced, targets, wanted, weights, strict=True):
        assert got is not None and relative_error(got, want) < tolerance
        assert relative_error(added, want + 1) < tolerance
        assert memory_order(got) == memory_order(weight)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_scaling_multiplies_the_factors_of_rows_and_columns(memory_format: torch.memory_format, block: int) -> None:
    torch.manual_seed(0)
    model = Mixed().to(memory_format=memory_format)  # type: ignore[call-overload]
    layout = Layout.of(couplings_of(Mixed), ("out", "in"))
    weights = [w.detach() for w in layout.weights(model)]
    factors = torch.rand(layout.channels)
    wanted = reference.scaled(weights, layout.terms, factors)
    passes.scale_(weights, [True] * len(weights), layout.table(weights), factors)
    for got, want in zip(weights, wanted, strict=True):
        assert torch.allclose(got, want, rtol=1e-6)


LARGE = {"imagenet-alexnet"}  # 57 million parameters, most of them in two linear layers: a quarter of the channels do
QUICK = {"digits-resnet", "cifarnet", "resnet20", "vgg16", "mobilenetv2", "preactsenet18"}
LARGEST = {"imagenet-vgg16"}  # 138 million parameters in float64; AlexNet and VGG-16 for CIFAR have all of its parts
REGISTRY = but_few_slow([name for name in MODELS if name not in LARGEST], QUICK)


@pytest.mark.parametrize("name", REGISTRY)
def test_direct_and_autograd_gradients_agree_in_every_registered_model(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name](10)
    shape = INPUT_SHAPES.get(name.split("-")[0], (3, 32, 32))
    images = torch.zeros(1, *shape)
    model = narrowed(model, images, 4) if name in LARGE else model
    couplings = quiet_couplings(model, images, verify="off")  # test_surgery.py has them proved
    kill_channel(model, couplings[0], 0)
    for dtype in (torch.float32, torch.float64):
        model = model.to(dtype)
        penalty = oicsr.GroupLasso(couplings, strength=0.5)
        layout = Layout.of(couplings, ("out", "in"))
        weights = [w.detach().requires_grad_() for w in layout.weights(model)]
        plain = 0.5 * oicsr.group_lasso([reference.energies(weights, layout.terms, layout.channels)])
        wanted = torch.autograd.grad(plain, weights)
        value = penalty(model)
        through_autograd = torch.autograd.grad(value, layout.weights(model))
        model.zero_grad(set_to_none=True)
        penalty.add_gradient(model)
        direct = [w.grad for w in layout.weights(model)]
        assert relative_error(value, plain) < TOLERANCE[dtype]
        assert penalty.last_value is not None and relative_error(penalty.last_value, plain) < TOLERANCE[dtype]
        for a, b, want in zip(through_autograd, direct, wanted, strict=True):
            assert b is not None and relative_error(a, want) < TOLERANCE[dtype]
            assert relative_error(b, want) < TOLERANCE[dtype]


def kill_channel(model: nn.Module, coupling: oicsr.Coupling, channel: int) -> None:
    with torch.no_grad():
        for member in coupling.members:
            if member.counts:
                weight = model.get_parameter(member.parameter)
                weight.index_fill_(member.dim, (member.channels == channel).nonzero().flatten(), 0.0)


@pytest.mark.parametrize("joint", [True, False])
def test_direct_gradient_adds_to_what_is_there_and_is_zero_for_dead_channels(joint: bool, block: int) -> None:
    torch.manual_seed(0)
    model = Chain()
    couplings = couplings_of(Chain)
    kill_channel(model, couplings[0], 2)
    penalty = oicsr.GroupLasso(couplings, strength=0.3, joint=joint)
    assert isinstance(penalty, oicsr.GradientRegularizer)
    model(torch.randn(2, 3, 8, 8)).square().sum().backward()
    before = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    penalty.add_gradient(model)
    added = {n: p.grad - before[n] for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    penalty(model).backward()
    for name, parameter in model.named_parameters():
        want = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert torch.allclose(added[name], want, atol=1e-6)
    assert float(added["conv1.weight"][2].abs().max()) == 0
    assert all(bool(g.isfinite().all()) for g in added.values())


def test_gradients_in_another_memory_order_than_the_weights(block: int) -> None:
    model = Chain()
    couplings = couplings_of(Chain)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
        if p.ndim == 4:
            p.grad = p.grad.contiguous(memory_format=torch.channels_last)
    oicsr.GroupLasso(couplings, strength=1.0).add_gradient(model)
    got = model.conv2.weight.grad.clone()
    model.zero_grad()
    oicsr.GroupLasso(couplings, strength=1.0)(model).backward()
    assert torch.allclose(got, model.conv2.weight.grad, atol=1e-6)


def test_the_sparse_gradient_of_an_embedding_becomes_dense_as_by_autograd() -> None:
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.out = nn.Embedding(20, 8, sparse=True), nn.Linear(8, 3)

        def forward(self, ids: Tensor) -> Tensor:
            return self.out(self.words(ids).mean(1).relu())

    model, ids = Sparse(), torch.tensor([[0, 3, 3], [7, 1, 0]])
    penalty = oicsr.GroupLasso(oicsr.find_couplings(model, ids), strength=0.5)
    (model(ids).sum() + penalty(model)).backward()
    wanted = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    model(ids).sum().backward()
    assert model.words.weight.grad.is_sparse
    penalty.add_gradient(model)
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-6)


def test_frozen_weights_count_but_get_no_gradient() -> None:
    model = Chain()
    couplings = couplings_of(Chain)
    full = oicsr.GroupLasso(couplings)(model).item()
    model.conv2.weight.requires_grad_(False)
    penalty = oicsr.GroupLasso(couplings)
    penalty.add_gradient(model)
    assert model.conv2.weight.grad is None and model.conv1.weight.grad is not None
    assert penalty.last_value.item() == pytest.approx(full)
    model.zero_grad()
    penalty(model).backward()
    assert model.conv2.weight.grad is None and model.conv1.weight.grad is not None


def test_any_penalty_on_energies_has_the_direct_route() -> None:
    model = Mixed()
    layout = Layout.of(couplings_of(Mixed), ("out", "in"))
    energy = energy_vector(model, layout)
    slope = torch.linspace(-1, 1, layout.channels)
    (energy * slope).sum().backward()
    wanted = [p.grad.clone() for p in layout.weights(model)]
    model.zero_grad()
    add_energy_gradient(model, layout, slope)
    for weight, want in zip(layout.weights(model), wanted, strict=True):
        assert torch.allclose(weight.grad, want, atol=1e-6)
    with pytest.raises(ValueError, match=r"energy_grad has shape \(3,\)"):
        add_energy_gradient(model, layout, torch.zeros(3))


# what is remembered


def copied(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        [p.mul_(2) for p in model.parameters()]
    return copy.deepcopy(model)


def reloaded(model: nn.Module) -> nn.Module:
    model.load_state_dict({k: v * 3 if v.is_floating_point() else v for k, v in model.state_dict().items()})
    return model


def assigned(model: nn.Module) -> nn.Module:
    model.load_state_dict({k: v * 3 for k, v in model.state_dict().items()}, assign=True)
    return model


def replaced(model: nn.Module) -> nn.Module:
    model.conv2 = nn.Conv2d(6, 8, 3, padding=1)
    return model


def reordered(model: nn.Module) -> nn.Module:
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


CHANGES: list[Callable[[nn.Module], nn.Module]] = [copied, reloaded, assigned, replaced, reordered, nn.Module.double]


@pytest.mark.parametrize("change", CHANGES)
def test_the_weights_of_the_moment_are_used(change: Callable[[nn.Module], nn.Module]) -> None:
    model: nn.Module = Chain()
    couplings = couplings_of(Chain)
    penalty = oicsr.GroupLasso(couplings, strength=0.7)
    penalty.add_gradient(model)
    penalty(model)
    model = change(model)
    model.zero_grad()
    fresh = oicsr.GroupLasso(couplings, strength=0.7)(model)
    assert penalty(model).item() == fresh.item()
    penalty.add_gradient(model)
    direct = [p.grad.clone() for p in model.parameters() if p.ndim > 1]
    model.zero_grad()
    fresh.backward()
    for got, parameter in zip(direct, (p for p in model.parameters() if p.ndim > 1), strict=True):
        assert torch.allclose(got, parameter.grad, rtol=1e-5, atol=1e-7)


def test_after_surgery() -> None:
    model = Chain()
    couplings = couplings_of(Chain)
    oicsr.GroupLasso(couplings).add_gradient(model)
    plan = oicsr.PruningPlan.from_kept(couplings, drop_third(couplings))
    small = oicsr.remove_channels(model, plan)
    small.zero_grad()
    penalty = oicsr.GroupLasso(oicsr.shrink_couplings(couplings, plan))
    penalty.add_gradient(small)
    reference = sum(e.sqrt().sum() for e in oicsr.channel_energy(small, oicsr.shrink_couplings(couplings, plan)))
    assert penalty.last_value.item() == pytest.approx(oicsr.DEFAULT_STRENGTH * reference.item())


def test_layouts_can_be_copied_and_pickled() -> None:
    model = Chain()
    penalty = oicsr.GroupLasso(couplings_of(Chain))
    twins = [copy.deepcopy(penalty), pickle.loads(pickle.dumps(penalty))]
    assert [twin(model).item() for twin in twins] == [penalty(model).item()] * 2


# where it must run


class Allocations(TorchDispatchMode):
    """Takes note of the largest tensor that is made new."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {t.untyped_storage().data_ptr() for t in torch.utils._pytree.tree_leaves(args) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in known:
                self.largest = max(self.largest, tensor.numel())
        return result


def test_no_temporary_grows_with_the_model() -> None:
    model = nn.Sequential(nn.Linear(1000, 1200, bias=False), nn.Linear(1200, 1100, bias=False), nn.Linear(1100, 5))
    penalty = oicsr.GroupLasso(quiet_couplings(model, torch.zeros(1, 1000)))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    penalty.add_gradient(model)
    with Allocations() as seen:
        penalty.add_gradient(model)
    assert 1000 < seen.largest <= table.CACHE_BLOCK


def test_autocast_does_not_lower_the_precision() -> None:
    model = Chain()
    penalty = oicsr.GroupLasso(couplings_of(Chain), strength=1.0)
    plain = torch.autograd.grad(penalty(model), model.conv2.weight)[0]
    with torch.autocast("cpu", torch.bfloat16):
        value = penalty(model)
        (gradient,) = torch.autograd.grad(value, model.conv2.weight)
        penalty.add_gradient(model)
    assert value.dtype is torch.float32 and value.item() == penalty(model).item()
    assert torch.equal(gradient, plain) and torch.allclose(model.conv2.weight.grad, plain, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_summed_in_float32(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(5000, 2, bias=False), nn.Linear(2, 2, bias=False)).to(dtype)
    nn.init.constant_(model[0].weight, 2.0)
    couplings = quiet_couplings(model, torch.zeros(1, 5000, dtype=dtype))
    energies = oicsr.channel_energy(model, couplings, sides=("out",))[0]
    assert energies.dtype is torch.float32 and energies.tolist() == [20000.0, 20000.0]  # in float16, infinite or stuck
    penalty = oicsr.GroupLasso(couplings, sides=("out",), strength=1.0)
    penalty.add_gradient(model)
    assert model[0].weight.grad.dtype is dtype
    assert model[0].weight.grad[0, 0].item() == pytest.approx(2 / 20000**0.5, rel=2**-7)
    model.zero_grad()
    penalty(model).backward()
    assert model[0].weight.grad[0, 0].item() == pytest.approx(2 / 20000**0.5, rel=2**-7)


@pytest.mark.parametrize("sides", [("out", "in"), ("norm",)])
@pytest.mark.parametrize("of_energies", [True, False])
def test_gradients_can_be_differentiated(sides: tuple[Any, ...], of_energies: bool) -> None:
    """Meta-learning and second-order optimisers ask for a gradient with `create_graph=True`."""
    torch.manual_seed(0)
    model = Chain().double()
    couplings = oicsr.find_couplings(model, IMAGES.double())
    with torch.no_grad():
        model.conv1.weight[1] = 0
        model.conv2.weight[:, 1] = 0  # a dead channel: no part of the gradient, nor of what follows from it
    penalty = oicsr.GroupLasso(couplings, sides, strength=0.1)
    layout = Layout.of(couplings, sides)
    weights = layout.weights(model)

    def by_library() -> Tensor:
        energies = oicsr.channel_energy(model, couplings, sides)
        return 0.1 * oicsr.group_lasso(energies) if of_energies else penalty(model)

    def by_formula() -> Tensor:
        energies = reference.energies(weights, layout.terms, layout.channels)
        return 0.1 * oicsr.group_lasso([energies])

    found = []
    for value in (by_library(), by_formula()):
        first = torch.autograd.grad(value, weights, create_graph=True)
        directions = [torch.randn(w.shape, generator=torch.Generator().manual_seed(1)).to(w) for w in weights]
        along = torch.stack([(one * other).sum() for one, other in zip(first, directions, strict=True)]).sum()
        found.append([*first, *torch.autograd.grad(along, weights)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
