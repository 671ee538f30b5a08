"""Steps over static buffers: the same weights as step by step, bit for bit, and a plain word where they cannot be."""

from __future__ import annotations

import logging
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from baselines.registry import REGULARIZERS
from benchmarks.config import Phase
from benchmarks.datasets import Augmentation, DataSplits, Images
from benchmarks.datasets.in_memory import TrainingBatches
from benchmarks.perf.measure import quiet_couplings
from benchmarks.perf.train import synthetic
from benchmarks.training.cuda_graphs import WARM_UP, Call, Repeater, ResidentBatches
from benchmarks.training.loop import Score, Training
from oicsr import GroupLasso, ProximalGroupLasso, Regularizer
from tests.oicsr.networks import Chain

CPU = torch.device("cpu")
Make = Callable[..., Regularizer | None]
KINDS: dict[str, Make] = {
    "none": lambda couplings: None,
    "oicsr-gl": lambda couplings: GroupLasso(couplings, strength=1e-2),
    "proximal": lambda couplings: ProximalGroupLasso(couplings, strength=0.1),
    "greg1": lambda couplings: REGULARIZERS["greg1"].make(couplings, 1e-3),
    "growl-prox": lambda couplings: REGULARIZERS["growl-prox"].make(couplings, 0.1),
    "cges": lambda couplings: REGULARIZERS["cges"].make(couplings, 1e-3),
}


class Counting(Repeater):
    """Counts how often each way was taken."""

    def __init__(self, obstacle: str = "", error: str | None = None) -> None:
        self.obstacle, self.error = obstacle, error
        self.calls = {"warm_up": 0, "watched": 0, "record": 0, "replay": 0}

    def warm_up(self, call: Call) -> None:
        self.calls["warm_up"] += 1
        call()

    def watched(self, call: Call) -> str:
        self.calls["watched"] += 1
        call()
        return self.obstacle

    def record(self, call: Call) -> Call:
        self.calls["record"] += 1
        if self.error is not None:
            raise RuntimeError(self.error)

        def replay() -> None:
            self.calls["replay"] += 1
            call()

        return replay


def pictures(count: int = 5 * 8 + 3) -> DataSplits:
    """Five batches of eight images, and a few that are left over."""
    data = synthetic(count).limited(count)
    images = Images(data.train.pixels[..., :8, :8].contiguous(), data.train.labels % 5)
    return replace(data, train=images, num_classes=5)


class Network(Chain):
    """With dropout, and a parameter that no gradient ever comes to: weight decay must not come to it either."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(x, 0.2, self.training))


def training(
    kind: str, recorder: Repeater | None, device: torch.device = CPU, phase: Phase | None = None, **arguments: object
) -> Training:
    data = pictures()
    torch.manual_seed(0)
    model = Network().to(device).to(memory_format=torch.channels_last)
    regularizer = KINDS[kind](quiet_couplings(model, torch.zeros(2, *data.shape, device=device)))
    torch.manual_seed(2)
    return Training(
        model,
        phase or Phase(3, 0.1, warmup_epochs=0.5),
        TrainingBatches(data, 8, device),
        torch.Generator().manual_seed(1),
        regularizer,
        recorder=recorder,
        **arguments,  # type: ignore[arg-type]
    )


def nothing() -> Score:
    return Score(0.0, 0.0)


def finish(run: Training) -> Training:
    while not run.finished:
        run.run_epoch(nothing)
    return run


def assert_same(one: Training, other: Training) -> None:
    for (name, a), b in zip(one.model.state_dict().items(), other.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    rows = [[(r.train_loss, r.penalty, r.train_top1, r.learning_rate) for r in run.rows] for run in (one, other)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("kind", KINDS)
def test_static_buffers_change_no_bit(kind: str) -> None:
    recorder = Counting()
    eager, static = finish(training(kind, None)), finish(training(kind, recorder))
    assert_same(eager, static)
    assert recorder.calls == {"warm_up": WARM_UP - 1, "watched": 1, "record": 1, "replay": 15 - WARM_UP}
    assert (eager.eager_reason, static.eager_reason) == ("no CUDA device", "")
    assert (eager.way, static.way) == ("one by one: no CUDA device", "recorded")
    assert isinstance(static.model, Network) and torch.equal(static.model.unused, torch.ones(3))


@pytest.mark.parametrize("kind", ["none", "oicsr-gl", "proximal", "greg1"])
def test_resumed_in_the_middle_equals_uninterrupted(kind: str) -> None:
    whole = finish(training(kind, Repeater()))
    first = training(kind, Repeater())
    first.run_epoch(nothing)
    saved = first.snapshot()  # copied below: an optimiser goes on in the very tensors that it is given
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
def test_what_cannot_be_recorded_goes_on_step_by_step_and_says_why(recorder: Counting, reason: str) -> None:
    eager, other = finish(training("oicsr-gl", None)), finish(training("oicsr-gl", recorder))
    assert_same(eager, other)
    assert other.eager_reason.startswith(reason) and "\n" not in other.eager_reason
    assert recorder.calls["replay"] == 0 and recorder.calls["record"] == (recorder.error is not None)


class Elsewhere:
    """Batches that do not lie on the device."""

    def __init__(self, batches: TrainingBatches) -> None:
        self.epoch, self._length = batches.epoch, len(batches)

    def __len__(self) -> int:
        return self._length


def test_reasons_not_to_begin() -> None:
    off = training("none", Repeater(), graphs=False)
    off.run_epoch(nothing)
    assert off.eager_reason == "switched off"
    loader = training("none", Repeater())
    assert isinstance(loader.batches, ResidentBatches)
    loader.batches = Elsewhere(loader.batches)  # type: ignore[arg-type]
    loader.run_epoch(nothing)
    assert loader.eager_reason == "the images do not lie on the device"


def test_a_schedule_on_the_host_is_not_captured(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = training("greg1", None)
    run._device = torch.device("cuda")  # as far as the decision goes
    monkeypatch.setattr(run, "_eager_epoch", lambda: (torch.ones(3, dtype=torch.float64), 1))
    with caplog.at_level(logging.WARNING):
        run._train_epoch()
        run._train_epoch()
    assert run.eager_reason == "the schedule of GrowingPenalty is kept on the host"
    (line,) = [record for record in caplog.records if record.name == "benchmarks.training.loop"]
    assert run.eager_reason in line.getMessage()


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


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["none", "oicsr-gl", "proximal"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_captured_step_trains_as_steps_one_by_one(kind: str, precision: str) -> None:
    device = torch.device("cuda")
    eager = finish(training(kind, None, device, graphs=False, precision=precision))
    static = finish(training(kind, None, device, precision=precision))
    assert (eager.eager_reason, static.eager_reason) == ("switched off", "")
    assert (eager.way, static.way) == ("one by one: switched off", "CUDA graph")
    assert static._static is not None and static._static.replayed == 15 - WARM_UP
    tolerance = 1e-3 if precision == "float32" else 5e-2
    for a, b in zip(eager.model.parameters(), static.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=tolerance)
    for one, other in zip(eager.rows, static.rows, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=tolerance * 10)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["growl-prox", "cges"])  # one pools until nothing rises, one moves a table each time
def test_steps_that_wait_for_the_device_are_found_before_a_capture(kind: str) -> None:
    run = finish(training(kind, None, torch.device("cuda")))
    assert run.eager_reason.startswith("the host waits for the device in every step (")
