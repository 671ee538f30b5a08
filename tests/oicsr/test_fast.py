"""The fused passes against their references: every kind of weight, every way in, and nothing remembered too long."""

from __future__ import annotations

import copy
import functools
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import oicsr
from benchmarks.models import INPUT_SHAPES, MODELS
from oicsr import reference
from oicsr.energy import add_energy_gradient, energy_vector
from oicsr.fast import blocks, passes, table
from oicsr.layout import Layout
from tests.oicsr.networks import Basic, Chain, Mixed, drop_third

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


def quiet_couplings(model: nn.Module, images: Tensor, scope: Any = "all") -> list[oicsr.Coupling]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", oicsr.UnprunedChannelsWarning)
        return oicsr.find_couplings(model, images, scope=scope)


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


QUICK = {"digits-resnet", "cifarnet", "resnet20", "vgg16", "mobilenetv2", "preactsenet18"}
REGISTRY = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in MODELS]


@pytest.mark.parametrize("name", REGISTRY)
def test_direct_and_autograd_gradients_agree_in_every_registered_model(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name](10)
    shape = INPUT_SHAPES.get(name.split("-")[0], (3, 32, 32))
    couplings = quiet_couplings(model, torch.zeros(1, *shape))
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


def check_compiled(backend: str) -> None:
    torch.manual_seed(0)
    model = Chain()
    couplings = couplings_of(Chain)
    penalty = oicsr.GroupLasso(couplings, strength=0.1)
    images = torch.randn(2, 3, 8, 8)

    def loss(x: Tensor) -> Tensor:
        return model(x).square().mean() + penalty(model)

    loss(images).backward()
    wanted = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    compiled = torch.compile(loss, backend=backend, fullgraph=True)
    compiled(images).backward()
    for parameter, want in zip(model.parameters(), wanted, strict=True):
        assert torch.allclose(parameter.grad, want, atol=1e-5)
    before = compiled(images).item()
    with torch.no_grad():
        model.conv1.weight.mul_(2)
    assert compiled(images).item() == pytest.approx(loss(images).item(), rel=1e-5) != before


@pytest.mark.parametrize("regularizer", [oicsr.GroupLasso, oicsr.ProximalGroupLasso])
def test_a_compiled_step_breaks_around_what_works_on_gradients(regularizer: type[Any]) -> None:
    torch.manual_seed(0)
    plain = Chain()
    images, results, graphs = torch.randn(2, 3, 8, 8), [], []

    def backend(graph: torch.fx.GraphModule, example_inputs: object) -> Any:
        graphs.append(graph.code)
        return graph.forward

    def step(model: nn.Module, penalty: Any, x: Tensor) -> Tensor:
        value = (model(x).square().mean() * 2).detach()
        if regularizer is oicsr.GroupLasso:
            penalty.add_gradient(model)
        else:
            penalty.proximal_step(model, 0.1)
        return value + 1

    for compiled in (False, True):
        model = copy.deepcopy(plain)
        penalty = regularizer(couplings_of(Chain), strength=0.1)
        run = torch.compile(step, backend=backend) if compiled else step
        results.append([run(model, penalty, images).detach(), *(p.detach() for p in model.parameters())])
        results[-1] += [p.grad for p in model.parameters() if p.grad is not None]
    assert len(results[0]) == len(results[1]) > 1
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert len(graphs) == 2 and not any("oicsr" in code for code in graphs)  # before and after; nothing within


def test_a_compiled_step_keeps_the_penalty() -> None:
    check_compiled("aot_eager")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_step_compiled_by_inductor_keeps_the_penalty() -> None:
    check_compiled("inductor")


def test_a_compiled_model_and_a_distributed_one_are_looked_into(tmp_path: Path) -> None:
    model = Chain()
    penalty = oicsr.GroupLasso(couplings_of(Chain), strength=0.1)
    value = penalty(model).item()
    compiled = torch.compile(model, backend="eager")
    assert penalty(compiled).item() == value
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        (wrapped(torch.randn(2, 3, 8, 8)).square().mean() + penalty(wrapped)).backward()
        through_loss = [p.grad.clone() for p in model.parameters()]
        assert penalty(wrapped).item() == value
        before = [g.clone() for g in through_loss]
        penalty.add_gradient(wrapped)
    finally:
        torch.distributed.destroy_process_group()
    added = [p.grad - b for p, b in zip(model.parameters(), before, strict=True)]
    model.zero_grad()
    penalty(model).backward()
    for got, parameter in zip(added, model.parameters(), strict=True):
        want = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert torch.allclose(got, want, atol=1e-6)


def test_functional_gradients() -> None:
    model = Chain()
    penalty = oicsr.GroupLasso(couplings_of(Chain), strength=0.1)

    def value(weights: dict[str, Tensor]) -> Tensor:
        view = nn.Module()
        view.get_parameter = weights.__getitem__  # type: ignore[method-assign, assignment]
        return penalty(view)

    got = torch.func.grad(value)(dict(model.named_parameters()))
    penalty(model).backward()
    assert torch.allclose(got["conv2.weight"], model.conv2.weight.grad)


@pytest.mark.gpu
def test_on_cuda_without_waiting_and_in_a_captured_graph() -> None:
    torch.manual_seed(0)
    model = Chain()
    penalty = oicsr.GroupLasso(couplings_of(Chain), strength=0.1)
    penalty.add_gradient(model)
    wanted = [p.grad.cuda() for p in model.parameters() if p.grad is not None]
    model = model.cuda()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    penalty.add_gradient(model)  # warm up: tables are made here
    torch.cuda.set_sync_debug_mode("error")
    try:
        penalty.add_gradient(model)
        penalty(model).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    penalty.add_gradient(model)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        penalty.add_gradient(model)
    for p in model.parameters():
        p.grad.zero_()
    graph.replay()
    got = [p.grad for p in model.parameters() if bool(p.grad.any())]
    for a, b in zip(got, wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(("channels", "serial"), [(64, True), (2100, False)], ids=["small", "large"])
def test_small_models_are_worked_on_by_one_thread_and_the_number_is_put_back(
    channels: int, serial: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(nn.Linear(channels, channels, bias=False), nn.Linear(channels, 5, bias=False))
    couplings = quiet_couplings(model, torch.zeros(1, channels))
    before = torch.get_num_threads()
    seen: list[int] = []
    unpatched = blocks.bucket_energies
    monkeypatch.setattr(
        blocks, "bucket_energies", lambda *args: (seen.append(torch.get_num_threads()), unpatched(*args))[1]
    )
    torch.set_num_threads(2)
    try:
        oicsr.channel_energy(model, couplings)
        after = torch.get_num_threads()
        monkeypatch.setattr(blocks, "bucket_energies", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            oicsr.channel_energy(model, couplings)
        after_error = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    assert set(seen) == ({1} if serial else {2})
    assert (after, after_error) == (2, 2)
