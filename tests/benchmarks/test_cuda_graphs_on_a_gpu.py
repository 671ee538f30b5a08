"""Captured steps on a CUDA device: the same training, whatever happens between and after."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.config import Phase
from benchmarks.datasets.in_memory import TrainingBatches
from benchmarks.perf.measure import quiet_couplings
from benchmarks.training.cuda_graphs import (
    WARM_UP,
    GraphRecorder,
)
from benchmarks.training.loop import Score, Training
from benchmarks.training.replay_check import Call
from oicsr import GroupLasso, PruningPlan, remove_channels, shrink_couplings
from tests.benchmarks.recorded import (
    finish,
    pictures,
    training,
)
from tests.benchmarks.test_replay_check import does_nothing, keeps_its_rate, skips_the_update

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("kind", ["none", "oicsr-gl", "proximal"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_captured_step_trains_as_steps_one_by_one(kind: str, precision: str) -> None:
    device = torch.device("cuda")
    eager = finish(training(kind, None, device, graphs=False, precision=precision))
    static = finish(training(kind, None, device, precision=precision))
    assert (eager.eager_reason, static.eager_reason) == ("not asked for", "")
    assert (eager.step_mode, static.step_mode) == ("one by one: not asked for", "CUDA graph")
    assert static._static is not None and static._static.replayed == 15 - WARM_UP - 3
    tolerance = 1e-3 if precision == "float32" else 5e-2
    for a, b in zip(eager.model.parameters(), static.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=tolerance)
    for one, other in zip(eager.rows, static.rows, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=tolerance * 10)


@pytest.mark.parametrize("kind", ["growl-prox", "cges"])  # one pools until nothing rises, one moves a table each time
def test_steps_that_wait_for_the_device_are_found_before_a_capture(kind: str) -> None:
    run = finish(training(kind, None, torch.device("cuda")))
    assert run.eager_reason.startswith("the host waits for the device in every step (")


def test_a_capture_that_really_fails_leaves_the_device_as_it_was() -> None:
    device = torch.device("cuda")
    recorder = GraphRecorder(device)
    values = torch.ones(4, device=device)
    before = torch.cuda.current_stream()
    numbers = torch.cuda.get_rng_state()

    def waits() -> None:
        torch.rand(8, device=device).add_(values[0].item())

    with pytest.raises(RuntimeError):
        recorder.record(waits)
    assert torch.cuda.current_stream() == before and not torch.cuda.is_current_stream_capturing()
    assert torch.equal(torch.cuda.get_rng_state(), numbers)
    torch.empty(1 << 20, device=device).normal_().sum().item()
    replay = recorder.record(lambda: values.add_(1))
    replay()
    assert values.tolist() == [2.0] * 4


def test_training_goes_on_after_a_capture_that_really_fails() -> None:
    device = torch.device("cuda")

    class Waits(GraphRecorder):
        def record(self, call: Call) -> Call:
            return super().record(lambda: (call(), torch.ones(1, device=device).item())[0])

    run = finish(training("oicsr-gl", Waits(device), device))
    assert run.eager_reason.startswith("the capture failed: ")
    eager = finish(training("oicsr-gl", None, device, graphs=False))
    for a, b in zip(eager.model.parameters(), run.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-3)


@pytest.mark.parametrize("wrong", [does_nothing, skips_the_update, keeps_its_rate])
def test_wrong_replays_are_found_on_a_gpu(wrong: Callable[[Call], Call]) -> None:
    device = torch.device("cuda")

    class WrongGraph(GraphRecorder):
        def record(self, call: Call) -> Call:
            super().record(call)
            return wrong(call)

    run = finish(training("oicsr-gl", WrongGraph(device), device))
    assert "not the step itself" in run.eager_reason


def test_buffers_momentum_and_evaluation_between_epochs_on_a_gpu() -> None:
    device = torch.device("cuda")
    runs = []
    for graphs in (False, True):
        run = training("oicsr-gl", None, device, graphs=graphs)  # seeds the device, whose numbers both draw from
        runs.append(run)
        images = torch.randn(8, 3, 8, 8, device=device)

        def evaluated(run: Training = run, images: Tensor = images) -> Score:
            run.model.eval()
            with torch.no_grad():
                value = float(run.model(images).mean())
            run.model.train()
            torch.empty(1 << 22, device=device).normal_()  # memory that is given to something else
            return Score(value, 0.0)

        while not run.finished:
            run.run_epoch(evaluated)
    eager, static = ({name: t.double() for name, t in run._step.changed().items()} for run in runs)
    assert runs[1].step_mode == "CUDA graph" and eager.keys() == static.keys()
    assert any("momentum" in name for name in eager) and any("running_var" in name for name in eager)
    for name, value in eager.items():
        assert torch.allclose(value, static[name], rtol=1e-3, atol=1e-3), name


def test_a_second_capture_after_a_removal_on_a_gpu() -> None:
    device = torch.device("cuda")
    first = finish(training("oicsr-gl", None, device))
    couplings = quiet_couplings(first.model, torch.zeros(2, 3, 8, 8, device=device))
    plan = PruningPlan.from_kept(couplings, {c.name: tuple(range(c.num_channels // 2)) for c in couplings})
    ways = []
    for graphs in (True, False):
        small = remove_channels(first.model, plan)
        penalty = GroupLasso(shrink_couplings(couplings, plan), strength=1e-2)
        torch.manual_seed(2)
        batches = TrainingBatches(pictures(), 8, device)
        run = Training(small, Phase(2, 0.1), batches, torch.Generator().manual_seed(1), penalty, graphs=graphs)
        ways.append(finish(run))
    assert [run.step_mode for run in ways] == ["CUDA graph", "one by one: not asked for"]
    for a, b in zip(ways[0].model.parameters(), ways[1].model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-3)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_captured_training_on_the_second_device() -> None:
    run = finish(training("oicsr-gl", None, torch.device("cuda", 1)))
    assert run.step_mode == "CUDA graph"
