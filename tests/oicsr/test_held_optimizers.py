"""Optimisers and lists of parameters that a network holds, and states that look like a square weight."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.distributed.optim import ZeroRedundancyOptimizer

import oicsr

ROWS = torch.randn(5, 6)
KEPT = {"one": [0, 2, 7], "two": [1, 3, 4, 5]}
Make = Callable[[Iterable[nn.Parameter]], optim.Optimizer]


class Learner(nn.Module):
    """Layers, one of them square, with whatever else a user gives them."""

    def __init__(self, hold: Callable[[Learner], None] = lambda _: None, inputs: int = 6) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(inputs, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        hold(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.three(self.two(self.one(x).relu()).relu())


def attribute(model: Any) -> None:
    model.opt = optim.AdamW(model.parameters(), lr=0.1)
    model.schedule = optim.lr_scheduler.StepLR(model.opt, 1)


def in_a_list(model: Any) -> None:
    model.opts = [optim.AdamW(model.parameters(), lr=0.1)]


def in_a_dictionary(model: Any) -> None:
    model.opts = {"all": optim.AdamW(model.parameters(), lr=0.1)}


class Trainer:
    """No module, but holds an optimiser of one."""

    def __init__(self, optimizer: optim.Optimizer) -> None:
        self.optimizer = optimizer


def in_an_object(model: Any) -> None:
    model.trainer = Trainer(optim.AdamW(model.parameters(), lr=0.1))


def optimizer_of(model: Any) -> optim.Optimizer:
    if hasattr(model, "opts"):
        return model.opts["all"] if isinstance(model.opts, dict) else model.opts[0]
    return model.trainer.optimizer if hasattr(model, "trainer") else model.opt


def step(model: nn.Module, optimizer: optim.Optimizer, inputs: Tensor = ROWS) -> None:
    optimizer.zero_grad()
    model(inputs).square().mean().backward()
    optimizer.step()


def plan_of(model: nn.Module, inputs: Tensor = ROWS) -> oicsr.PruningPlan:
    return oicsr.PruningPlan.from_kept(oicsr.find_couplings(model, inputs), KEPT)


def held(optimizer: optim.Optimizer) -> list[int]:
    return [id(p) for group in optimizer.param_groups for p in group["params"]]


@pytest.mark.parametrize("hold", [attribute, in_a_list, in_a_dictionary, in_an_object])
def test_an_optimizer_that_the_network_holds_follows(hold: Callable[[Any], None]) -> None:
    """It does what one does that is given, and that of the network before is left as it is."""
    torch.manual_seed(0)
    model = Learner(hold)
    step(model, optimizer_of(model))
    plan, other = plan_of(model), Learner()
    other.load_state_dict(model.state_dict())
    given = optim.AdamW(other.parameters(), lr=0.1)
    given.load_state_dict(copy.deepcopy(optimizer_of(model).state_dict()))
    expected = oicsr.remove_channels(other, plan, optimizer=given)

    small = oicsr.remove_channels(model, plan)
    own = optimizer_of(small)
    assert held(own) == [id(p) for p in small.parameters()]
    assert held(optimizer_of(model)) == [id(p) for p in model.parameters()]
    assert optimizer_of(model).state[model.two.weight]["exp_avg"].shape == (8, 8)
    for _ in range(2):
        step(small, own), step(expected, given)
    for ours, theirs in zip(small.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    if hold is attribute:
        assert small.schedule.optimizer is own


def test_an_optimizer_that_is_held_and_given_goes_over() -> None:
    model = Learner(attribute)
    step(model, model.opt)
    small = oicsr.remove_channels(model, plan_of(model), optimizer=model.opt)
    assert small.opt is model.opt and held(small.opt) == [id(p) for p in small.parameters()]
    assert small.opt.state[small.two.weight]["exp_avg"].shape == (4, 3)


def test_a_list_of_parameters_that_the_network_holds_follows() -> None:
    def hold(model: Any) -> None:
        model.decayed = [p for p in model.parameters() if p.ndim > 1]
        model.by_name = dict(model.named_parameters())
        model.rnn = nn.LSTM(3, 4)

    model = Learner(hold)
    small = oicsr.remove_channels(model, plan_of(model))
    assert [id(p) for p in small.decayed] == [id(small.one.weight), id(small.two.weight), id(small.three.weight)]
    assert small.by_name["one.bias"] is small.one.bias and small.one.bias.shape == (3,)
    assert model.decayed[0] is model.one.weight and model.one.weight.shape == (8, 6)
    assert all(flat is small.rnn._parameters[name] for flat, name in zip(*_flat(small.rnn), strict=True))


def _flat(rnn: nn.LSTM) -> tuple[list[Tensor], list[str]]:
    return rnn._flat_weights, rnn._flat_weights_names


class Shampoo(optim.Optimizer):
    """Keeps products of all pairs of rows, and of columns, of each gradient."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    def step(self) -> None:  # type: ignore[override]
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None and p.ndim == 2):
            state, eye = self.state[p], torch.eye
            state["rows"] = state.get("rows", eye(len(p))) + p.grad @ p.grad.T
            state["columns"] = state.get("columns", eye(p.shape[1])) + p.grad.T @ p.grad


class Sign(optim.Optimizer):
    """Keeps one number for each element, as Lion does."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            state = self.state[p]
            state["mean"] = 0.9 * state.get("mean", torch.zeros_like(p)) + p.grad
            p.sub_(state["mean"].sign(), alpha=0.1)


class Twice(optim.SGD):
    """Wraps another optimiser and shares its groups, as implementations of SAM do."""

    def __init__(self, params: Iterable[nn.Parameter]) -> None:
        super().__init__(params, lr=0.1)
        self.base = optim.AdamW(self.param_groups, lr=0.1)
        self.param_groups = self.base.param_groups

    def step(self) -> None:  # type: ignore[override]
        self.base.step()


@pytest.mark.parametrize("inputs", [6, 8])
def test_products_of_rows_of_a_square_weight_are_not_taken_for_elements(inputs: int) -> None:
    """With eight inputs, the first two weights are square; with six, the first one tells what the state is."""
    x = torch.randn(5, inputs)
    model = Learner(inputs=inputs)
    only_squares = Shampoo(p for p in (model.two.weight, model.one.weight if inputs == 8 else model.one.bias))
    for optimizer in (Shampoo(model.parameters()), only_squares):
        step(model, optimizer, x)
        said = r"the Shampoo keeps 'rows' .* that cannot be sliced.* Leave `optimizer` out"
        with pytest.raises(ValueError, match=said):
            oicsr.remove_channels(model, plan_of(model, x), optimizer=optimizer)
        assert held(optimizer) != [] and optimizer.state[model.two.weight]["rows"].shape == (8, 8)


def test_elements_of_a_square_weight_are_known_by_those_of_other_weights() -> None:
    torch.manual_seed(0)
    model = Learner()
    optimizer = Sign(model.parameters())
    step(model, optimizer)
    before = optimizer.state[model.two.weight]["mean"]
    small = oicsr.remove_channels(model, plan_of(model), optimizer=optimizer)
    assert torch.equal(optimizer.state[small.two.weight]["mean"], before[[1, 3, 4, 5]][:, [0, 2, 7]])
    step(small, optimizer)

    model = Learner()
    optimizer = Sign([model.two.weight])
    step(model, optimizer)
    with pytest.raises(ValueError, match=r"the Sign keeps 'mean' .* no weight that is not square tells which"):
        oicsr.remove_channels(model, plan_of(model), optimizer=optimizer)


def test_an_optimizer_of_pytorch_needs_no_weight_that_tells() -> None:
    model = Learner()
    optimizer = optim.AdamW([model.two.weight])
    step(model, optimizer)
    small = oicsr.remove_channels(model, plan_of(model), optimizer=optimizer)
    assert optimizer.state[small.two.weight]["exp_avg"].shape == (4, 3)


def test_the_state_of_a_wrapped_optimizer_follows() -> None:
    model = Learner()
    optimizer = Twice(model.parameters())
    step(model, optimizer)
    before = optimizer.base.state[model.one.weight]["exp_avg"]
    small = oicsr.remove_channels(model, plan_of(model), optimizer=optimizer)
    assert {id(p) for p in optimizer.base.state} == {id(p) for p in small.parameters()} == {*held(optimizer)}
    assert torch.equal(optimizer.base.state[small.one.weight]["exp_avg"], before[KEPT["one"]])


class Beside(optim.SGD):
    """Trains what it lists once more, beside the groups."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        own = list(parameters)
        super().__init__(own, lr=0.1)
        self.every, self.places = {"all": tuple(own)}, {parameter: i for i, parameter in enumerate(own)}
        self.itself = [self.every]
        self.itself.append(self.itself)

    def step(self, closure: Any = None) -> None:
        with torch.no_grad():
            for parameter in self.every["all"]:
                parameter.sub_(parameter.grad, alpha=0.1 + self.places[parameter])


def test_parameters_that_an_optimizer_lists_beside_its_groups_are_replaced() -> None:
    model = Learner()
    optimizer = Beside(model.parameters())
    every, places = optimizer.every, optimizer.places
    small = oicsr.remove_channels(model, plan_of(model), optimizer=optimizer)
    assert [id(p) for p in every["all"]] == [id(p) for p in places] == [id(p) for p in small.parameters()]
    assert [*places.values()] == [*range(6)] and optimizer.itself[0] is every
    before = small.two.weight.clone()
    step(small, optimizer)
    assert not torch.equal(small.two.weight, before)


@pytest.mark.parametrize("views", [False, True], ids=["lists", "buckets"])
def test_an_optimizer_of_several_processes_sends_the_new_parameters(
    views: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It went on to send the old ones, so that the weights of the processes drifted apart unsaid."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = Learner()
        optimizer = ZeroRedundancyOptimizer(model.parameters(), optim.Adam, parameters_as_bucket_view=views, lr=0.1)
        step(model, optimizer)
        plan, sent = plan_of(model), list[int]()
        if views:
            with pytest.raises(ValueError, match=r"keeps '_buckets', the memory .* Leave `optimizer` out, and make a"):
                oicsr.remove_channels(model, plan, optimizer=optimizer)
            assert held(optimizer) == [id(p) for p in model.parameters()]
            return
        small = oicsr.remove_channels(model, plan, optimizer=optimizer)
        assert [id(p) for p in optimizer._all_params] == [id(p) for p in small.parameters()]
        send = torch.distributed.broadcast
        monkeypatch.setattr(
            torch.distributed, "broadcast", lambda *a, **k: sent.append(_owner(small, k["tensor"])) or send(*a, **k)
        )
        step(small, optimizer)
        assert sorted(sent) == [0, 1, 2, 3, 4, 5]
    finally:
        torch.distributed.destroy_process_group()


def _owner(model: nn.Module, tensor: Tensor) -> int:
    """Return which parameter has the memory of a tensor; -1 where none has."""
    return next((i for i, p in enumerate(model.parameters()) if p.data_ptr() == tensor.data_ptr()), -1)


def test_an_optimizer_that_keeps_the_network_is_refused() -> None:
    model = Learner()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    optimizer.layers = [model.one, model.two]
    with pytest.raises(ValueError, match=r"keeps 'layers', the Linear itself: it would go on with the larger network"):
        oicsr.remove_channels(model, plan_of(model), optimizer=optimizer)
    optimizer.layers = [nn.Linear(2, 2)]
    oicsr.remove_channels(model, plan_of(model), optimizer=optimizer)


def test_a_held_optimizer_that_cannot_follow_is_named_by_its_attribute() -> None:
    def hold(model: Any) -> None:
        model.tools = [Shampoo(model.parameters())]

    model = Learner(hold)
    step(model, model.tools[0])
    plan = plan_of(model)
    with pytest.raises(ValueError, match=r"the Shampoo in 'tools' keeps 'rows' .* Set 'tools' to None for the surgery"):
        oicsr.remove_channels(model, plan)


def test_what_an_optimizer_keeps_beside_its_state_is_copied() -> None:
    """PyTorch copies the state of optimisers alone: L-BFGS lost its list of parameters, and SAM what it wraps."""

    def hold(model: Any) -> None:
        model.newton, model.twice = optim.LBFGS(model.parameters()), Twice(model.parameters())

    model = Learner(hold)
    step(model, model.twice)
    small = oicsr.remove_channels(model, plan_of(model))
    assert [id(p) for p in small.newton._params] == held(small.newton) == [id(p) for p in small.parameters()]
    assert small.twice.base is not model.twice.base and small.twice.param_groups is small.twice.base.param_groups
    assert small.twice.base.state[small.two.weight]["exp_avg"].shape == (4, 3)
    before = small.two.weight.clone()
    step(small, small.twice)
    assert not torch.equal(small.two.weight, before) and model.two.weight.shape == (8, 8)


def test_what_an_optimizer_keeps_and_nobody_can_copy_is_named() -> None:
    model = Learner(attribute)
    model.opt.lock = threading.Lock()
    said = r"what the AdamW in 'opt' keeps as 'lock' cannot be copied .* Set 'opt' to None for the surgery"
    with pytest.raises(ValueError, match=said):
        oicsr.remove_channels(model, plan_of(model))


def test_optimizers_that_hold_each_other_follow() -> None:
    model = Learner(attribute)
    model.opt.outer, model.other = Sign(model.parameters()), [model.opt]
    model.opt.outer.inner = model.opt
    step(model, model.opt)
    small = oicsr.remove_channels(model, plan_of(model))
    assert small.opt.outer.inner is small.opt is small.other[0]
    assert held(small.opt.outer) == held(small.opt) == [id(p) for p in small.parameters()]
    assert small.opt.state[small.two.weight]["exp_avg"].shape == (4, 3)


def test_what_a_held_optimizer_trains_outside_of_the_network_stays_itself() -> None:
    """Of two networks and one optimiser, each holds it; a temperature of the pruned one goes along as its own."""

    def hold(model: Any) -> None:
        model.temperature = torch.ones(1, requires_grad=True)
        model.opt = optim.AdamW([*model.parameters(), model.temperature, *other.parameters()], lr=0.1)

    other = nn.Linear(3, 1)
    model = Learner(hold)
    (other(model(ROWS)) * model.temperature).sum().backward()
    model.opt.step()
    small = oicsr.remove_channels(model, plan_of(model))
    assert held(small.opt)[-2:] == held(model.opt)[-2:] == [id(other.weight), id(other.bias)]
    assert held(small.opt)[-3] == id(small.temperature) != id(model.temperature)
    assert other.weight in small.opt.state and other.weight in model.opt.state
    assert small.opt.state[other.weight]["exp_avg"] is not model.opt.state[other.weight]["exp_avg"]


def test_open_attention_refuses_to_leave_an_optimizer_behind() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    vars(model)["opt"] = optim.AdamW([*model.linear1.parameters()])
    assert oicsr.open_attention(model).opt.param_groups
    vars(model)["opt"] = optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match=r"the AdamW in 'opt' would not train .* its optimiser afterwards"):
        oicsr.open_attention(model)


def test_marks_stay_on_what_is_rescaled() -> None:
    """The weight of an RMSNorm is multiplied as channels go; its decay is still switched off."""
    model = nn.Sequential(nn.Linear(6, 8), nn.RMSNorm(8, eps=1e-6), nn.Linear(8, 3))
    model[1].weight._no_weight_decay = True
    plan = oicsr.PruningPlan.from_kept(oicsr.find_couplings(model, ROWS), {"0": [0, 2, 7]})
    assert plan.scalings
    small = oicsr.remove_channels(model, plan)
    assert small[1].weight._no_weight_decay and small[1].weight.shape == (3,)
