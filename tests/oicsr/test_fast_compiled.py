"""The fused energies under torch.compile, distribution, functional gradients, CUDA graphs and threads."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import oicsr
from oicsr.fast import blocks
from tests.oicsr.networks import Chain
from tests.oicsr.test_fast import couplings_of, quiet_couplings


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
    monkeypatch.setattr(threading, "active_count", lambda: 1)  # the number is also what new threads begin with
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
