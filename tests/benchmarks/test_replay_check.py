"""A replay proves itself before it counts: wrong recorders are found, and training is what it is without them."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch

from benchmarks.config import Phase
from benchmarks.training.cuda_graphs import (
    StaticEpochs,
)
from benchmarks.training.replay_check import TOLERANCE, Call, first_difference
from tests.benchmarks.recorded import (
    Repeater,
    assert_same,
    finish,
    nothing,
    training,
)


def static_of(call: Call) -> StaticEpochs:
    static = call.__self__  # type: ignore[attr-defined]
    assert isinstance(static, StaticEpochs)
    return static


def does_nothing(call: Call) -> Call:
    return lambda: None


def skips_the_update(call: Call) -> Call:
    static = static_of(call)

    def replay() -> None:
        before = [p.detach().clone() for p in static._parameters]
        call()
        for parameter, old in zip(static._parameters, before, strict=True):
            parameter.data.copy_(old)

    return replay


def keeps_its_rate(call: Call) -> Call:
    static = static_of(call)
    rate = static._rates[static._position - 1].clone()  # of the step before, as a number in the graph would be

    def replay() -> None:
        rates = static._rates.clone()
        static._rates.fill_(float(rate))
        call()
        static._rates.copy_(rates)

    return replay


def forgets_the_statistics(call: Call) -> Call:
    static = static_of(call)

    def replay() -> None:
        buffers = {name: t.clone() for name, t in static._all_changed().items() if "running_mean" in name}
        call()
        for name, old in buffers.items():
            static._all_changed()[name].copy_(old)

    return replay


def draws_other_numbers(call: Call) -> Call:
    def replay() -> None:
        torch.rand(1)  # of dropout
        call()

    return replay


def loses_its_memory(call: Call) -> Call:
    """Right in the first epoch, wrong from the second on, when something else uses what it reads."""
    static = static_of(call)
    rates = static._rates.clone()

    def replay() -> None:
        if torch.allclose(static._rates, rates, atol=1e-6) or torch.allclose(static._rates * 2, rates, atol=1e-6):
            call()

    return replay


class Wrong(Repeater):
    """Records what is not the step."""

    def __init__(self, kind: Callable[[Call], Call]) -> None:
        self.record = kind  # type: ignore[method-assign]


WRONG = {
    does_nothing: "buffer",
    skips_the_update: "parameter",
    keeps_its_rate: "parameter",
    forgets_the_statistics: "running_mean",
    draws_other_numbers: "off by",
}


@pytest.mark.parametrize("kind", ["oicsr-gl", "proximal"])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_replay_is_found_before_it_counts(
    wrong: Callable[[Call], Call], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        run = finish(training(kind, Wrong(wrong)))
    assert_same(finish(training(kind, None)), run)
    assert (
        run.eager_reason.startswith("a replayed step is not the step itself: it") and WRONG[wrong] in run.eager_reason
    )
    assert run.step_mode == f"one by one: {run.eager_reason}"
    assert run._static is not None and run._static.replayed == 0
    assert len([line for line in caplog.records if run.eager_reason in line.getMessage()]) == 1


def test_a_replay_that_goes_wrong_later_is_found_at_the_next_epoch() -> None:
    run = training("oicsr-gl", Wrong(loses_its_memory))
    run.run_epoch(nothing)
    assert run.eager_reason == "" and run._static is not None and run._static.replayed == 1
    finish(run)
    assert "not the step itself" in run.eager_reason and run._static.replayed == 1
    assert_same(finish(training("oicsr-gl", None)), run)


def test_each_recording_is_judged_by_itself() -> None:
    """As after a removal: the second network has another graph, which may be wrong where the first one was right."""
    first = finish(training("oicsr-gl", Repeater(), phase=Phase(1, 0.1)))
    second = finish(training("oicsr-gl", Wrong(does_nothing), phase=Phase(1, 0.1)))
    assert (first.step_mode, second.step_mode[:12]) == ("recorded", "one by one: ")
    assert_same(first, second)


def test_differences_are_measured_against_the_change() -> None:
    torch.manual_seed(0)
    before = {"parameter a": torch.randn(100), "parameter b": torch.randn(10), "buffer n": torch.tensor(3)}
    change = {"parameter a": torch.randn(100), "parameter b": 1e-6 * torch.randn(10), "buffer n": torch.tensor(1)}
    taken = {name: before[name] + change[name] for name in before}

    def judged(share_a: float = 0.0, share_b: float = 0.0, extra: int = 0) -> str:
        replayed = {
            "parameter a": taken["parameter a"] + share_a * change["parameter a"],
            "parameter b": taken["parameter b"] + share_b * change["parameter b"],
            "buffer n": taken["buffer n"] + extra,
        }
        return first_difference(before, replayed, taken)

    assert judged() == judged(share_a=0.9 * TOLERANCE) == ""
    assert judged(share_a=1.1 * TOLERANCE) == "its change of parameter a is off by 1%"
    assert judged(share_a=-1.0) == "its change of parameter a is off by 100%"
    assert judged(share_b=5.0) == ""  # next to nothing beside what the others do: noise
    assert judged(extra=1) == "it leaves other numbers in buffer n"
    diverged = taken | {"parameter a": torch.full((100,), torch.nan)}
    assert first_difference(before, taken, diverged) == ""  # training diverges, which has an error of its own
