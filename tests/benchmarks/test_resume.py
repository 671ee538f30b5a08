"""A run that was stopped anywhere ends as one that never was, bit for bit."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.config import Cell, Phase
from benchmarks.faults.arena import results_of
from benchmarks.methods.registry import find_method
from benchmarks.records.record import record_path
from benchmarks.running.checkpoints import CheckpointStore, CheckpointWarning
from benchmarks.running.run import run_cell, strength_of
from benchmarks.running.stage_training import PART
from benchmarks.running.stages import stages_of
from benchmarks.running.stopping import Control, Stopped
from tests.benchmarks.small import small_bench, small_cell
from tests.slow import but_few_slow

GENTLE = {"dense": Phase(2, 0.05), "steps": 2}


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the suite catches it."""


class FragileStore(CheckpointStore):
    """Dies at a save: before it wrote, or right after."""

    def __init__(self, folder: Path, death: int, *, after: bool) -> None:
        super().__init__(folder)
        self.saves, self.death, self.after = 0, death, after

    def save(self, key: str, state: dict[str, Any], progress: Mapping[str, Any] | None = None) -> None:
        self.saves += 1
        if self.saves == self.death and not self.after:
            raise Killed
        super().save(key, state, progress)
        if self.saves == self.death:
            raise Killed


def outcome(folder: Path, cell: Cell) -> tuple[Any, str]:
    return results_of(record_path(folder / "results", cell))


@pytest.mark.parametrize("method", ["oicsr-gl", "greg1"])  # the second one's regulariser has a state of its own
def test_run_that_dies_at_every_save_ends_as_one_that_never_did(tmp_path: Path, method: str) -> None:
    cell = small_cell(method, **GENTLE)
    whole, fragile = tmp_path / "whole", tmp_path / "fragile"
    bench = small_bench(whole)
    counting = FragileStore(bench.store.folder, 0, after=False)
    run_cell(dataclasses.replace(bench, store=counting), cell)
    assert counting.saves == 2 + 1 + 1 + 1 + 4  # epochs, and the measures at the end of four stages
    deaths = 0
    for attempt in range(50):
        bench = small_bench(fragile)
        # the first save of every life dies; after it, so that there is some progress
        store = FragileStore(bench.store.folder, 1 + attempt % 2, after=True)
        try:
            run_cell(dataclasses.replace(bench, store=store), cell)
        except Killed:
            deaths += 1
            continue
        break
    assert deaths >= 5
    assert outcome(fragile, cell) == outcome(whole, cell)


def test_death_before_a_save_repeats_the_epoch(tmp_path: Path) -> None:
    cell = small_cell()
    run_cell(small_bench(tmp_path / "whole"), cell)
    for death in (1, 3, 5):
        folder = tmp_path / str(death)
        bench = small_bench(folder)
        with pytest.raises(Killed):
            run_cell(dataclasses.replace(bench, store=FragileStore(bench.store.folder, death, after=False)), cell)
        assert not record_path(bench.results, cell).exists()
        run_cell(small_bench(folder), cell)
        assert outcome(folder, cell) == outcome(tmp_path / "whole", cell)


@pytest.mark.parametrize("harm", ["newest", "both"])
def test_damaged_checkpoints_cost_time_and_nothing_else(tmp_path: Path, harm: str) -> None:
    cell = small_cell()
    run_cell(small_bench(tmp_path), cell)
    before = outcome(tmp_path, cell)
    record_path(tmp_path / "results", cell).unlink()
    for stage in (tmp_path / "checkpoints").glob("[0-9a-f]*"):
        generations = sorted(stage.glob("*.ckpt"))
        for path in generations[-1:] if harm == "newest" else generations:
            path.write_bytes(path.read_bytes()[:-7])
    with pytest.warns(CheckpointWarning, match="is damaged"):
        run_cell(small_bench(tmp_path), cell)
    assert outcome(tmp_path, cell) == before


def stop_at(question: int) -> Control:
    """Return a control that asks to stop when it is asked for that many times."""
    questions = itertools.count(1)
    return Control(asked=lambda: next(questions) == question)


def dense_state(folder: Path, cell: Cell) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    bench = small_bench(folder)
    dense = stages_of(cell, find_method(cell.method), strength_of(bench, cell).value, "cpu")[0]
    return bench.store.load(dense.key), bench.store.progress(dense.key)


@pytest.mark.parametrize("method", but_few_slow(["oicsr-gl", "greg1", "oicsr-gl-prox"], ["oicsr-gl"]))
def test_run_that_is_stopped_at_every_step_ends_as_one_that_never_was(tmp_path: Path, method: str) -> None:
    cell = small_cell(method, **GENTLE)
    run_cell(small_bench(tmp_path / "whole"), cell)
    left: list[bool] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", CheckpointWarning)
        while len(left) < 60:  # a little later each time: between two stages there is work that no checkpoint holds
            try:
                run_cell(small_bench(tmp_path / "often", control=stop_at(3 + len(left))), cell)
            except Stopped:
                left.append(record_path(tmp_path / "often" / "results", cell).exists())
                continue
            break
    assert 8 <= len(left) < 60 and not any(left)
    assert outcome(tmp_path / "often", cell) == outcome(tmp_path / "whole", cell)


@pytest.mark.parametrize(("question", "epoch", "steps"), [(3, 0, 1), (4, 0, 2), (6, 1, 0), (7, 1, 1)])
def test_stop_leaves_a_checkpoint_after_the_last_step_and_no_record(
    tmp_path: Path, question: int, epoch: int, steps: int
) -> None:
    cell = small_cell(**GENTLE)
    bench = small_bench(tmp_path, control=stop_at(question))
    with pytest.raises(Stopped, match="interrupted"):
        run_cell(bench, cell)
    state, progress = dense_state(tmp_path, cell)
    assert state is not None and state["epoch"] == epoch and "scores" not in state
    assert ("part" in state, state.get("part", {}).get("steps", 0)) == (steps > 0, steps)
    assert not record_path(bench.results, cell).exists()
    assert progress is not None and progress["epoch"] == epoch and not progress["finished"]


def test_stop_before_the_first_step_leaves_nothing(tmp_path: Path) -> None:
    cell = small_cell(**GENTLE)
    for question in (1, 2):
        with pytest.raises(Stopped):
            run_cell(small_bench(tmp_path, control=stop_at(question)), cell)
        assert dense_state(tmp_path, cell) == (None, None)


def test_a_version_that_knows_whole_epochs_alone_skips_a_checkpoint_within_one(tmp_path: Path) -> None:
    cell = small_cell(**GENTLE)
    with pytest.raises(Stopped):
        run_cell(small_bench(tmp_path, control=stop_at(3)), cell)
    state, _ = dense_state(tmp_path, cell)
    assert state is not None and state["origin"][PART] == 1
    before = {name: value for name, value in state["origin"].items() if name != PART}
    assert state["origin"] != before  # what such a version compares: it warns, and trains the stage anew


def test_a_time_limit_ends_an_epoch_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = small_cell(**GENTLE)
    clock = Clock(monkeypatch)
    bench = small_bench(tmp_path, control=Control(seconds=60, asked=lambda: clock.tick(25)))
    with pytest.raises(Stopped, match="out of time"):
        run_cell(bench, cell)
    state, _ = dense_state(tmp_path, cell)
    assert state is not None and state["part"]["steps"] == 1


def test_checkpoint_that_starts_from_another_network_is_skipped(tmp_path: Path) -> None:
    cell = small_cell()
    bench = small_bench(tmp_path)
    run_cell(bench, cell)
    before = outcome(tmp_path, cell)
    record_path(bench.results, cell).unlink()
    method = find_method(cell.method)
    _, regularized, finetune = stages_of(cell, method, strength_of(bench, cell).value, "cpu")
    state = bench.store.load(finetune.key)
    assert state is not None and len(state["origin"]["plan"]) == 64
    other = {**state, "origin": {**state["origin"], "plan": "0" * 64}}
    other["model"] = {name: torch.zeros_like(value) for name, value in state["model"].items()}
    bench.store.save(finetune.key, other)
    with pytest.warns(CheckpointWarning, match="starts from another network"):
        run_cell(bench, cell)
    assert outcome(tmp_path, cell) == before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bench.store.load(regularized.key) is not None


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("benchmarks.running.stopping.time.monotonic", lambda: self.now)

    def tick(self, seconds: float) -> bool:
        self.now += seconds
        return False


def test_control_stops_before_an_epoch_that_would_not_end_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    control = Control(seconds=60, expected={"a": 30.0})
    control.before_epoch("a")
    clock.now += 20
    control.after_epoch("a", 20.0)
    control.before_epoch("a")  # 40 s are left, the last epoch took 20
    clock.now += 20
    control.after_epoch("a", 20.0)
    with pytest.raises(Stopped, match="out of time"):
        control.before_epoch("a")
    control = Control(seconds=60, expected={"b": 30.0})
    control.before_epoch("a")
    clock.now += 30
    control.after_epoch("a", 30.0)
    with pytest.raises(Stopped, match="out of time"):
        control.before_epoch("b")  # 30 s are left; one was not measured yet, but 36 s may be expected


def test_an_epoch_begins_within_a_limit_that_is_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    control = Control(seconds=20, expected={"a": 30.0})
    control.before_epoch("a")
    clock.now += 21
    with pytest.raises(Stopped, match="out of time"):
        control.before_step()  # at a checkpoint inside the epoch


def test_waiting_for_another_command_is_no_work_between_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    control = Control(seconds=100)
    control.after_epoch("a", 1.0)
    for _ in range(40):
        clock.now += 1
        control.waited()
    control.before_epoch("b")
    clock.now += 30
    control.before_epoch("b")
    clock.now += 31
    with pytest.raises(Stopped, match="out of time"):  # the wait counts all the same
        control.before_epoch("b")


def test_control_reserves_time_for_work_between_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    control = Control(seconds=60)
    control.after_epoch("a", 1.0)
    clock.now += 30  # pruning, measuring
    control.before_epoch("b")
    clock.now += 5
    with pytest.raises(Stopped, match="out of time"):
        control.before_epoch("b")


def test_lost_lease_stops_the_run_before_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.machine.leases import Lease, LeaseLostError

    def lost(self: Lease) -> None:
        raise LeaseLostError("taken over")

    monkeypatch.setattr(Lease, "check", lost)
    with pytest.raises(LeaseLostError):
        run_cell(small_bench(tmp_path), small_cell())
    assert not list((tmp_path / "checkpoints").glob("[0-9a-f]*/*.ckpt"))
