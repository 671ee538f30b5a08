"""Two processes with half of each batch do what one does with all of it: weights, statistics, losses, plans."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.experiments import EXPERIMENTS
from benchmarks.machine.processes import ALONE, Rank, current_rank, from_first, summed
from benchmarks.records.record import read_records
from benchmarks.training import data_parallel
from tests.benchmarks.ddp_worker import run_small_experiment, train_and_prune

pytestmark = pytest.mark.xdist_group("distributed")  # two processes are started once, by one worker

ROOT = Path(__file__).parent.parent.parent


def torchrun(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    done = torchrun("-m", "tests.benchmarks.ddp_worker", str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("method", ["gradient", "proximal"])
def test_two_processes_equal_one_with_the_same_global_batch(two: Path, method: str) -> None:
    small, plan, losses = train_and_prune(ALONE, method)
    found = [torch.load(two / f"{method}{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert found[0]["plan"] == found[1]["plan"] == plan.to_json()
    for name, expected in small.state_dict().items():
        assert torch.equal(found[0]["state"][name], found[1]["state"][name]), name  # bit for bit between processes
        assert torch.allclose(found[0]["state"][name], expected, rtol=1e-7, atol=1e-9), name  # to rounding against one
    assert found[0]["losses"] == pytest.approx(losses, rel=1e-6)  # taken in float32
    assert found[0]["losses"] == found[1]["losses"]


def test_a_run_from_the_command_line_is_written_by_one_process(two: Path, tmp_path: Path) -> None:
    """The record of two processes is that of one, up to the rounding of float32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(EXPERIMENTS, "small", raising=False)
        assert run_small_experiment(tmp_path) == 0
        del EXPERIMENTS["small"]
    ((one,), (both,)) = (read_records(folder / "results") for folder in (tmp_path, two / "run"))
    assert (one.provenance["processes"], both.provenance["processes"]) == (1, 2)
    assert both.epochs == one.epochs and both.widths.keys() == one.widths.keys()
    for state in ("dense", "regularized"):
        assert both.states[state]["loss"] == pytest.approx(one.states[state]["loss"], rel=1e-3)
    assert both.states["pruned"]["macs"] == pytest.approx(one.states["pruned"]["macs"], rel=0.01)
    checkpoints = [len(list((folder / "checkpoints").rglob("*.ckpt"))) for folder in (tmp_path, two / "run")]
    assert checkpoints[0] == checkpoints[1] > 0


def test_alone_nothing_is_sent() -> None:
    assert current_rank() == ALONE and ALONE.first and not Rank(1, 2).first
    assert from_first(lambda: 3) == 3
    totals = torch.tensor([1.0, 2.0])
    assert summed(totals) is totals and totals.tolist() == [1.0, 2.0]
    assert Rank(1, 2).share(torch.arange(6)).tolist() == [3, 4, 5]


def test_each_process_draws_its_own_numbers_in_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout masks differ between processes; what a checkpoint holds of the generator, and a resume, does not."""

    def two_steps(rank: Rank, state: torch.Tensor | None = None) -> tuple[list[torch.Tensor], torch.Tensor]:
        torch.set_rng_state(state) if state is not None else torch.manual_seed(0)
        monkeypatch.setattr(data_parallel, "current_rank", lambda: rank)
        drawn = []
        for _ in range(2):
            with data_parallel.own_numbers():
                drawn.append(torch.rand(4))
        return drawn, torch.get_rng_state()

    (first, after_first), (second, after_second), (alone, _) = (
        two_steps(rank) for rank in (Rank(0, 2), Rank(1, 2), ALONE)
    )
    assert len({tuple(numbers.tolist()) for numbers in (*first, *second)}) == 4
    assert torch.equal(after_first, after_second)
    assert torch.equal(two_steps(Rank(1, 2), after_first)[0][0], two_steps(Rank(1, 2), after_second)[0][0])
    torch.manual_seed(0)
    assert torch.equal(torch.cat(alone), torch.rand(8))
