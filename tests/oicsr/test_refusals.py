"""What is refused changes nothing: weights, modes, hooks, counters, caches, optimiser and random state."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional

import oicsr

IMAGES = torch.randn(2, 3, 8, 8)


class Counting(nn.Module):
    """Two convolutions and everything that a forward pass may change on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("cached", None)
        self.calls = 0
        self.features: list[Tensor] = []
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen += 1
        self.last = functional.relu(self.norm(self.one(x)))
        self.features.append(self.last)
        if self.cached is None:
            self.cached = torch.tensor(2.0, dtype=x.dtype)
        return self.two(self.last) * self.cached


def snapshot(model: Counting, optimizer: optim.Optimizer | None = None) -> dict[str, Any]:
    """Return all that has to stay, by value where it may change in place and by identity elsewhere."""
    return {
        "values": {name: tensor.tolist() for name, tensor in model.state_dict().items()},
        "ids": {name: id(parameter) for name, parameter in model.named_parameters()},
        "grads": {name: None if p.grad is None else p.grad.tolist() for name, p in model.named_parameters()},
        "attributes": (model.calls, len(model.features), id(model.last), id(model.cached)),
        "modes": [module.training for module in model.modules()],
        "hooks": [list(module._forward_hooks) for module in model.modules()],
        "random": torch.get_rng_state().tolist(),
        "held": [] if optimizer is None else [id(p) for group in optimizer.param_groups for p in group["params"]],
        "state": "" if optimizer is None else str(optimizer.state_dict()),
    }


def trained(make: Callable[[Iterable[nn.Parameter]], optim.Optimizer]) -> tuple[Counting, optim.Optimizer]:
    torch.manual_seed(0)
    model = Counting()
    optimizer = make(model.parameters())

    def closure() -> float:
        """Take one loss and its gradients."""
        optimizer.zero_grad()
        loss = model(IMAGES).square().mean()
        loss.backward()
        return float(loss.detach())

    for _ in range(2):
        optimizer.step(closure)
    return model, optimizer


def plan_of(model: nn.Module) -> oicsr.PruningPlan:
    return oicsr.PruningPlan.from_kept(oicsr.find_couplings(model, IMAGES), {"one": [0, 3, 5]})


class Whitening(optim.SGD):
    """Keeps products of all pairs of a gradient's rows, as Shampoo does."""

    def step(self, closure: Callable[[], float]) -> float:  # type: ignore[override]
        loss = super().step(closure)
        for parameter in (p for group in self.param_groups for p in group["params"] if p.ndim > 1):
            rows = parameter.grad.flatten(1)
            self.state[parameter]["pairs"] = rows @ rows.T
        return loss


@pytest.mark.parametrize("make", [lambda p: optim.LBFGS(p, lr=0.1), lambda p: Whitening(p, lr=0.1)])
def test_optimizers_whose_state_cannot_be_sliced_are_refused_by_name(make: Callable[..., Any]) -> None:
    model, optimizer = trained(make)
    plan = plan_of(model)
    before = snapshot(model, optimizer)
    with pytest.raises(ValueError, match=f"the {type(optimizer).__name__} keeps .* that cannot be sliced"):
        oicsr.remove_channels(model, plan, optimizer=optimizer)
    assert snapshot(model, optimizer) == before


def test_an_optimizer_keeps_what_belongs_to_other_modules() -> None:
    torch.manual_seed(0)
    model, temperature = Counting(), nn.Parameter(torch.ones(1))
    optimizer = optim.Adam([{"params": model.parameters()}, {"params": [temperature], "lr": 0.5}], lr=0.1)
    (model(IMAGES).square().mean() * temperature).sum().backward()
    optimizer.step()
    moments = copy.deepcopy(optimizer.state[temperature])
    small = oicsr.remove_channels(model, plan_of(model), optimizer=optimizer)
    assert optimizer.param_groups[1]["params"][0] is temperature
    assert all(torch.equal(optimizer.state[temperature][name], value) for name, value in moments.items())
    assert optimizer.state[small.one.weight]["exp_avg"].shape == (3, 3, 3, 3)
    weight, own = small.one.weight.detach().clone(), temperature.detach().clone()
    optimizer.zero_grad()
    (small(IMAGES).square().mean() * temperature).sum().backward()
    optimizer.step()
    assert not torch.equal(weight, small.one.weight) and not torch.equal(own, temperature)


@pytest.mark.filterwarnings("ignore:users' hooks do not run")
@pytest.mark.parametrize(
    "refused",
    [
        lambda model, plan: oicsr.remove_channels(model, plan.then(plan_of(oicsr.remove_channels(model, plan)))),
        lambda model, plan: oicsr.remove_channels(oicsr.remove_channels(model, plan), plan),
        lambda model, plan: oicsr.remove_channels(model, plan, absorb=True),
        lambda model, plan: oicsr.find_couplings(model, torch.zeros(2, 5, 8, 8)),
        lambda model, plan: oicsr.find_couplings(model, IMAGES, ignore="nothing"),
        lambda model, plan: oicsr.prune(model, IMAGES, macs_kept=1e-6),
        lambda model, plan: oicsr.recalibrate(model, []),
    ],
    ids=["two plans", "the plan twice", "absorb", "inputs", "ignore", "target", "batches"],
)
def test_a_refusal_leaves_everything_as_it_was(refused: Callable[..., Any]) -> None:
    model, optimizer = trained(lambda p: optim.SGD(p, lr=0.1, momentum=0.9))
    model.one.eval()
    calls: list[int] = []
    model.two.register_forward_hook(lambda *_: calls.append(1))
    plan = plan_of(model)
    before = snapshot(model, optimizer)
    with pytest.raises(ValueError, match=r"."):
        refused(model, plan)
    assert snapshot(model, optimizer) == before and not calls


@pytest.mark.parametrize(
    "function",
    [
        lambda model: oicsr.find_couplings(model, IMAGES),
        lambda model: oicsr.trace_couplings(model, IMAGES, scope="all", verify="shapes"),
        lambda model: oicsr.count_macs(model, IMAGES),
        lambda model: oicsr.prune(model, IMAGES, macs_kept=0.5, tolerance=0.2),
        lambda model: oicsr.describe(model, oicsr.find_couplings(model, IMAGES), example_inputs=IMAGES),
        lambda model: oicsr.plan_absorption(model, plan_of(model), IMAGES),
        lambda model: oicsr.row_norms(model),
    ],
    ids=["find", "shapes", "MACs", "prune", "describe", "absorption", "norms"],
)
def test_functions_that_run_the_model_leave_everything_as_it_was(function: Callable[..., Any]) -> None:
    model, _ = trained(lambda p: optim.SGD(p, lr=0.1))
    model.norm.eval()
    before = snapshot(model)
    function(model)
    assert snapshot(model) == before


def test_a_buffer_that_the_forward_fills_can_be_traced_before_and_after() -> None:
    model = Counting().eval()
    for _ in range(2):
        assert [coupling.name for coupling in oicsr.find_couplings(model, IMAGES)] == ["one"]
        model(IMAGES)
    assert model.cached is not None and model.calls == 2


def test_a_sparse_buffer_is_no_part_of_a_file(tmp_path: Path) -> None:
    class Graph(nn.Module):
        def __init__(self, *, persistent: bool) -> None:
            super().__init__()
            self.register_buffer("edges", torch.eye(4).to_sparse(), persistent=persistent)
            self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            last: Tensor = self.last(torch.sparse.mm(self.edges, self.first(x)).relu())
            return last

    path, x = tmp_path / "small.safetensors", torch.randn(4, 3)
    for persistent in (True, False):
        model = Graph(persistent=persistent).eval()
        plan = oicsr.PruningPlan.from_kept(oicsr.find_couplings(model, x), {"first": [1, 5]})
        small = oicsr.remove_channels(model, plan)
        if persistent:
            with pytest.raises(ValueError, match=r"'edges' is a sparse tensor.*persistent=False"):
                oicsr.save_pruned(path, small, plan)
        else:
            oicsr.save_pruned(path, small, plan)
            assert torch.equal(oicsr.load_pruned(path, lambda: Graph(persistent=False))(x), small(x))


class Complex(nn.Module):
    """Layers with complex weights."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16, dtype=dtype), nn.Linear(16, 8, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(torch.complex(x.real.relu(), x.imag.relu())).abs()


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_weights_are_pruned_and_saved_where_the_format_holds_them(dtype: torch.dtype, tmp_path: Path) -> None:
    """Also with an example of zeros, in whose place the proof takes noise."""
    model, inputs = Complex(dtype), torch.randn(3, 6, dtype=dtype)
    couplings = oicsr.find_couplings(model, torch.zeros(3, 6, dtype=dtype))
    assert [coupling.name for coupling in couplings] == ["a"]
    with torch.no_grad():
        for tensor in (model.a.weight, model.a.bias):
            tensor[8:] = 0
    plan = oicsr.PruningPlan.from_kept(couplings, {"a": range(8)})
    small = oicsr.remove_channels(model, plan)
    torch.testing.assert_close(small(inputs), model(inputs))
    if dtype is torch.complex128:
        with pytest.raises(ValueError, match=r"'a.weight' is of type torch.complex128.* convert it to torch.complex64"):
            oicsr.save_pruned(tmp_path / "small.safetensors", small, plan)
        return
    oicsr.save_pruned(tmp_path / "small.safetensors", small, plan)
    again = oicsr.load_pruned(tmp_path / "small.safetensors", lambda: Complex(dtype))
    assert torch.equal(again(inputs), small(inputs))
