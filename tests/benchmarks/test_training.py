"""The training loop: it learns, stops and resumes bit for bit, and applies each kind of regulariser in its own way."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.config import Phase
from benchmarks.training.loop import DivergedError, Score, Training, evaluate


class Points:
    """Two clouds of points that a line parts; a new order at each epoch."""

    def __init__(self, scale: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(64) % 2
        self.points = scale * (torch.randn(64, 4, generator=generator) + 3 * self.labels[:, None])

    def __len__(self) -> int:
        return 4

    def epoch(self, generator: torch.Generator, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for index in torch.randperm(64, generator=generator).split(16)[start:]:
            yield self.points[index], self.labels[index]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 2))


def training(model: nn.Module, phase: Phase | None = None, **arguments: object) -> Training:
    generator = torch.Generator().manual_seed(1)
    return Training(model, phase or Phase(4, 0.1), Points(), generator, **arguments)  # type: ignore[arg-type]


def nothing() -> Score:
    return Score(0.0, 0.0)


def test_it_learns() -> None:
    run = training(network(), Phase(10, 0.1))
    while not run.finished:
        run.run_epoch(nothing)
    assert run.rows[-1].train_loss < 0.5 * run.rows[0].train_loss
    score = evaluate(run.model, [(Points().points, Points().labels)])
    assert score.top1 > 0.9 and run.model.training


def test_stopped_and_resumed_equals_uninterrupted() -> None:
    torch.manual_seed(5)
    whole = training(network())
    torch.manual_seed(6)
    while not whole.finished:
        whole.run_epoch(nothing)

    first = training(network())
    torch.manual_seed(6)
    for _ in range(2):
        first.run_epoch(nothing)
    saved = first.snapshot()
    torch.manual_seed(99)  # another process would be in another state
    second = training(network())
    second.restore(saved)
    while not second.finished:
        second.run_epoch(nothing)

    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [(r.train_loss, r.train_top1) for r in whole.rows] == [(r.train_loss, r.train_top1) for r in second.rows]


def test_diverged_training_is_an_error_that_says_what_to_do() -> None:
    run = training(network(), Phase(3, 1e30))
    with pytest.raises(DivergedError, match=r"diverged in epoch \d of phase 'dense'.*Lower the learning rate"):
        _run_all_epochs(run)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_an_evaluation_without_a_finite_loss_is_divergence(loss: float) -> None:
    """As after a last step that makes weights infinite: no loss of training shows it."""
    run = training(network())
    with pytest.raises(DivergedError, match=rf"epoch 1 of phase 'dense', validation: the loss is {loss}\. Lower the"):
        run.run_epoch(lambda: Score(loss, 0.1))
    assert run.rows == [] and not run.finished


def _run_all_epochs(run: Training) -> None:
    while not run.finished:
        run.run_epoch(nothing)


class SumOfSquares:
    def __call__(self, model: nn.Module) -> Tensor:
        return 0.5 * sum((p.square().sum() for p in model.parameters()), start=torch.zeros(()))


class Direct(SumOfSquares):
    @torch.no_grad()
    def add_gradient(self, model: nn.Module) -> None:
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad += parameter


def test_penalty_in_the_loss_equals_its_gradient_added() -> None:
    runs = [training(network().eval(), regularizer=regularizer) for regularizer in (SumOfSquares(), Direct())]
    for run in runs:
        run.model[2].p = 0.0
        run.run_epoch(nothing)
    for a, b in zip(*(run.model.parameters() for run in runs), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert runs[0].rows[0].penalty == pytest.approx(runs[1].rows[0].penalty, rel=1e-5)
    assert runs[0].rows[0].penalty > 0


class Shrink(SumOfSquares):
    """A proximal regulariser that notes the step sizes it is called with."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    @torch.no_grad()
    def proximal_step(self, model: nn.Module, learning_rate: float) -> None:
        self.rates.append(learning_rate)
        for parameter in model.parameters():
            parameter.zero_()


def test_proximal_regularizer_acts_after_the_step_and_not_in_the_loss() -> None:
    shrink = Shrink()
    phase = Phase(2, 0.1, schedule="step", milestones=(0.5,))
    run = training(network(), phase, regularizer=shrink)
    run.run_epoch(nothing)
    assert all(not parameter.any() for parameter in run.model.parameters())
    run.run_epoch(nothing)
    assert shrink.rates == pytest.approx([0.1] * 4 + [0.01] * 4)


class Growing(SumOfSquares):
    def __init__(self) -> None:
        self.steps = torch.zeros(())

    def advance(self, model: nn.Module) -> None:
        self.steps += 1

    def state_dict(self) -> dict[str, Tensor]:
        return {"steps": self.steps.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.steps = state["steps"].clone()


def test_growing_regularizer_advances_each_step_and_survives_a_checkpoint() -> None:
    first = training(network(), regularizer=Growing())
    first.run_epoch(nothing)
    again = Growing()
    second = training(network(), regularizer=again)
    second.restore(first.snapshot())
    assert again.steps == 4
    second.run_epoch(nothing)
    assert again.steps == 8


@pytest.mark.parametrize("value", [{1, 2}.__iter__(), Points(), lambda: 1, [np.random.default_rng(0)]], ids=type)
def test_a_state_that_could_not_be_read_again_is_refused_before_it_is_saved(value: object) -> None:
    class Odd(Growing):
        def state_dict(self) -> dict[str, Any]:
            return {"steps": self.steps, "plain": {"rates": [0.1, None], "name": "x"}, "odd": value}

    run = training(network(), regularizer=Odd())
    run.run_epoch(nothing)
    with pytest.raises(TypeError, match=rf"^Odd\.state_dict\(\) has 'odd', a {type(value).__name__} that could not be"):
        run.snapshot()


def test_schedules() -> None:
    cosine = Phase(10, 0.2, warmup_epochs=2)
    assert [cosine.rate_at(e) for e in (0, 1, 2, 6, 10)] == pytest.approx([0.0, 0.1, 0.2, 0.1, 0.0])
    step = Phase(10, 1.0, schedule="step", milestones=(0.5, 0.75), decay=0.1)
    assert [step.rate_at(e) for e in (0, 4.9, 5, 7.5, 9.9)] == pytest.approx([1, 1, 0.1, 0.01, 0.01])
    with pytest.raises(ValueError, match="schedule is 'linear'"):
        Phase(1, 0.1, schedule="linear")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="epochs is -1"):
        Phase(-1, 0.1)


def test_evaluation_weighs_batches_by_their_size() -> None:
    model = nn.Linear(1, 2, bias=False)
    model.weight.data = torch.tensor([[1.0], [-1.0]])
    right, wrong = torch.tensor([[1.0]]), torch.tensor([[-1.0]])
    labels = torch.zeros(1, dtype=torch.int64)
    score = evaluate(model, [(right.repeat(3, 1), labels.repeat(3)), (wrong, labels)])
    loss_right, loss_wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    assert score.top1 == 0.75
    assert score.loss == pytest.approx((3 * loss_right + loss_wrong) / 4)
