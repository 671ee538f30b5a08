"""Steps over static buffers: the same weights as step by step, bit for bit, and a plain word where they cannot be."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from copy import deepcopy

import pytest
import torch
from torch import Tensor

from baselines.method import Target
from baselines.registry import REGULARIZERS
from benchmarks.config import Phase
from benchmarks.datasets import Augmentation
from benchmarks.datasets.in_memory import TrainingBatches
from benchmarks.perf.measure import quiet_couplings
from benchmarks.perf.train import synthetic
from benchmarks.training.cuda_graphs import (
    WARM_UP,
    CaptureError,
    GraphRecorder,
    ResidentBatches,
)
from benchmarks.training.loop import Score
from benchmarks.training.replay_check import Call
from oicsr import PruningPlan, ScheduledRegularizer
from tests.benchmarks.recorded import (
    CPU,
    KINDS,
    Counting,
    Network,
    Repeater,
    assert_same,
    finish,
    nothing,
    pictures,
    training,
)
from tests.slow import but_few_slow

PEERS = {"tp-growing-reg", "tp-group-norm", "tp-bn-scale"}  # need torch-pruning
SCHEDULED = {"greg1"}  # kept on the host: never recorded
RECORDED = [kind for kind in KINDS if kind not in SCHEDULED]


@pytest.mark.parametrize("kind", RECORDED)
def test_static_buffers_change_no_bit(kind: str) -> None:
    recorder = Counting()
    eager, static = finish(training(kind, None)), finish(training(kind, recorder))
    assert_same(eager, static)
    assert recorder.calls == {"warm_up": WARM_UP - 1, "watched": 1, "record": 1, "replay": 15 - WARM_UP + 1}
    assert static._static is not None and static._static.replayed == 15 - WARM_UP - 3  # one step of each epoch proves
    assert (eager.eager_reason, static.eager_reason) == ("not asked for", "")
    assert (eager.step_mode, static.step_mode) == ("one by one: not asked for", "recorded")
    assert isinstance(static.model, Network) and torch.equal(static.model.unused, torch.ones(3))


@pytest.mark.parametrize("kind", ["none", "oicsr-gl", "proximal"])
def test_resumed_in_the_middle_equals_uninterrupted(kind: str) -> None:
    whole = finish(training(kind, Repeater()))
    first = training(kind, Repeater())
    first.run_epoch(nothing)
    saved = first.snapshot()  # copied below: an optimiser continues in the tensors that it is given
    again = training(kind, Repeater())
    again.run_epoch(nothing)
    again.run_epoch(nothing)  # an epoch too many, with gradients and momentum of its own
    again.restore(deepcopy(saved))
    assert_same(whole, finish(again))
    eager = training(kind, None)
    eager.restore(deepcopy(saved))  # a checkpoint says nothing of how it was trained
    assert_same(whole, finish(eager))
    assert all(isinstance(group["lr"], float) for group in saved["optimizer"]["param_groups"])


def test_warm_up_may_last_longer_than_an_epoch() -> None:
    eager, static = training("oicsr-gl", None), training("oicsr-gl", recorder := Counting())
    for run in (eager, static):
        torch.manual_seed(2)
        run.batches = TrainingBatches(pictures(), 43, CPU)  # one step per epoch
        finish(run)
    assert_same(eager, static)
    assert recorder.calls == {"warm_up": 2, "watched": 1, "record": 1, "replay": 0}


@pytest.mark.parametrize(
    ("recorder", "reason"),
    [
        (Counting(error="operation not permitted when stream is capturing\nmore"), "the capture failed: operation not"),
        (Counting(obstacle="the host waits"), "the host waits"),
    ],
)
def test_what_cannot_be_recorded_runs_step_by_step_and_says_why(recorder: Counting, reason: str) -> None:
    eager, other = finish(training("oicsr-gl", None)), finish(training("oicsr-gl", recorder))
    assert_same(eager, other)
    assert other.eager_reason.startswith(reason) and "\n" not in other.eager_reason
    assert recorder.calls["replay"] == 0 and recorder.calls["record"] == (recorder.error is not None)


class Elsewhere:
    """Batches that are not on the device."""

    def __init__(self, batches: TrainingBatches) -> None:
        self.epoch, self._length = batches.epoch, len(batches)

    def __len__(self) -> int:
        return self._length


def test_reasons_not_to_begin() -> None:
    off = training("none", Repeater(), graphs=False)
    off.run_epoch(nothing)
    assert off.eager_reason == "not asked for"
    device = training("none", None, graphs=True)
    device.run_epoch(nothing)
    assert device.eager_reason == "no CUDA device"
    loader = training("none", Repeater())
    assert isinstance(loader.batches, ResidentBatches)
    loader.batches = Elsewhere(loader.batches)  # type: ignore[arg-type]
    loader.run_epoch(nothing)
    assert loader.eager_reason == "the images are not on the device"


def scheduled() -> list[str]:
    """Return the regularisers whose schedule the host keeps."""
    data = pictures()
    couplings = quiet_couplings(Network(), torch.zeros(2, *data.shape))
    target = Target(0.5, 15, lambda model, scores: PruningPlan.from_kept(couplings, {}))
    built = {name: spec.build(couplings, 1e-3, target) for name, spec in REGULARIZERS.items() if name not in PEERS}
    return [name for name, regularizer in built.items() if isinstance(regularizer, ScheduledRegularizer)]


def test_a_schedule_on_the_host_is_not_captured(caplog: pytest.LogCaptureFixture) -> None:
    eager = finish(training("greg1", None))
    run = training("greg1", recorder := Counting())
    with caplog.at_level(logging.WARNING):
        finish(run)
    assert_same(eager, run)
    assert run.eager_reason == "the schedule of GrowingPenalty is kept on the host"
    assert set(recorder.calls.values()) == {0}
    (line,) = [record for record in caplog.records if record.name == "benchmarks.training.loop"]
    assert run.eager_reason in line.getMessage()


@pytest.mark.parametrize("name", scheduled())
def test_no_scheduled_regulariser_is_captured(name: str) -> None:
    run = training("none", recorder := Counting(), phase=Phase(1, 0.01))
    couplings = quiet_couplings(run.model, torch.zeros(2, *pictures().shape))
    plan = PruningPlan.from_kept(couplings, {couplings[0].name: [0]})
    run.regularizer = REGULARIZERS[name].build(couplings, 1e-4, Target(0.5, 5, lambda model, scores: plan))
    finish(run)
    assert run.eager_reason.startswith("the schedule of ") and set(recorder.calls.values()) == {0}


def test_a_network_after_a_removal_has_its_own_recording() -> None:
    first, second = Counting(), Counting()
    for recorder in (first, second):
        finish(training("oicsr-gl", recorder, phase=Phase(1, 0.1)))
    assert first.calls["record"] == second.calls["record"] == 1


def test_half_precision_keeps_no_converted_weights() -> None:
    runs = [
        finish(training("oicsr-gl", recorder, phase=Phase(1, 0.05), precision="bfloat16"))
        for recorder in (None, Repeater())
    ]
    assert_same(*runs)


def test_shifts_and_mirrors_by_index_are_those_of_the_epoch() -> None:
    data = synthetic(40)
    batches = TrainingBatches(data, 8, CPU)
    draws = batches.draw(torch.Generator().manual_seed(3))
    assert draws.order.shape == (5, 8) and draws.shifts.shape == (2, 40) and data.augmentation == Augmentation(4, True)
    for index, (images, labels) in zip(draws.order, batches.epoch(torch.Generator().manual_seed(3)), strict=True):
        again: tuple[Tensor, Tensor] = batches.batch(draws, index)
        assert torch.equal(images, again[0]) and torch.equal(labels, again[1])


# a capture that fails leaves nothing behind


class FakeCuda:
    """A device whose state is in this object: current stream, pools that take memory, generators that are held."""

    def __init__(self, *, ends_capturing: bool, usable: bool = True) -> None:
        self.stream: object = "main"
        self.pools: list[int] = []
        self.ends_capturing, self.usable = ends_capturing, usable

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fake = self

        def end(index: int, pool: int) -> None:
            if pool not in fake.pools:
                raise RuntimeError("no such pool")
            fake.pools.remove(pool)

        def synchronize(device: object = None) -> None:
            if fake.pools or fake.stream != "main" or not fake.usable:
                raise RuntimeError("CUDA error: unusable\nmore")

        for name, value in {
            "Stream": lambda device: "side",
            "current_stream": lambda device: fake.stream,
            "set_stream": lambda stream: setattr(fake, "stream", stream),
            "CUDAGraph": lambda: FailingGraph(fake),
            "empty_cache": lambda: None,
            "get_rng_state": lambda device: torch.get_rng_state(),
            "set_rng_state": lambda state, device: torch.set_rng_state(state),
            "current_device": lambda: 0,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
        synchronize_of = iter([lambda device=None: None])  # before the capture there is nothing to find
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: next(synchronize_of, synchronize)(device))


class FailingGraph:
    """A capture that takes a pool of memory and fails at its end."""

    def __init__(self, device: FakeCuda) -> None:
        self.device = device

    def capture_begin(self) -> None:
        assert self.device.stream == "side"
        self.device.pools.append(7)

    def capture_end(self) -> None:
        if self.device.ends_capturing:  # as newer versions of PyTorch do before they raise
            self.device.pools.remove(7)
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    def pool(self) -> int:
        return 7

    def reset(self) -> None:
        raise RuntimeError("nothing was captured")


class Failing(Repeater):
    """Captures by the real recorder on a fake device; the capture fails after the step has left its traces."""

    def __init__(self, error: type[BaseException] = RuntimeError) -> None:
        self._error = error

    def record(self, call: Call) -> Call:
        def half_a_step() -> None:
            call()
            raise self._error("operation not permitted when stream is capturing")

        return GraphRecorder(CPU).record(half_a_step)


@pytest.mark.parametrize("ends_capturing", [True, False], ids=["newer", "older"])
def test_a_failed_capture_leaves_nothing_behind(ends_capturing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    eager = finish(training("oicsr-gl", None))
    cuda = FakeCuda(ends_capturing=ends_capturing)
    cuda.install(monkeypatch)
    run = finish(training("oicsr-gl", Failing()))
    assert run.eager_reason == "the capture failed: operation not permitted when stream is capturing"
    assert (cuda.stream, cuda.pools) == ("main", [])
    assert_same(eager, run)  # weights, statistics and the numbers of dropout among them


def test_a_device_that_a_failed_capture_made_unusable_is_trouble_of_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = FakeCuda(ends_capturing=True, usable=False)
    cuda.install(monkeypatch)
    with pytest.raises(CaptureError, match=r"with --no-graphs, and it goes on .* \(CUDA error: unusable\)"):
        finish(training("oicsr-gl", Failing()))
    assert issubclass(CaptureError, OSError) and cuda.stream == "main"


def test_an_error_of_another_kind_in_a_capture_leaves_the_stream_too(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(ends_capturing=False)
    cuda.install(monkeypatch)
    with pytest.raises(RuntimeError, match="previous error during capture") as caught:
        Failing(KeyboardInterrupt).record(lambda: None)
    assert isinstance(caught.value.__context__, KeyboardInterrupt) and (cuda.stream, cuda.pools) == ("main", [])


@pytest.mark.parametrize("kind", but_few_slow(["none", "oicsr-gl", "proximal", "greg1"], ["oicsr-gl"]))
@pytest.mark.parametrize("recorder", [None, Repeater()])
def test_stop_within_an_epoch_changes_no_bit(kind: str, recorder: Repeater | None) -> None:
    whole = finish(training(kind, recorder))
    for stop in (1, 4, 5):  # an epoch has five steps; the last one stops at its end, in the evaluation
        first, steps = training(kind, recorder), iter(range(100))

        def check(stop: int = stop, steps: Iterator[int] = steps) -> None:
            if next(steps) == stop:
                raise KeyboardInterrupt

        def evaluated(stop: int = stop) -> Score:
            if stop == 5:
                raise KeyboardInterrupt
            return nothing()

        with pytest.raises(KeyboardInterrupt):
            first.run_epoch(evaluated, check)
        assert first.steps_done == stop and first.epoch == 0
        saved = deepcopy(first.snapshot())
        torch.manual_seed(99)
        second = training(kind, recorder)
        second.restore(saved)
        assert_same(finish(second), whole)
