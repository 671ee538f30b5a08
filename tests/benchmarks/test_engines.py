"""The driver: who does what, who waits, and what happens when a worker dies."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks.config import Cell
from benchmarks.machine.leases import LeaseLostError, lease_path, read_owner, try_lease
from benchmarks.records.record import read_record, record_path, write_record
from benchmarks.running.bench import Bench
from benchmarks.running.cells import cells_of
from benchmarks.running.console import ConsoleObserver
from benchmarks.running.engines.contract import Died, Ended, Engine, Event, Started, Task, Tell, Waiting, perform
from benchmarks.running.engines.driver import ATTEMPTS, Driver, MachineTroubleError, SweepOutcome
from benchmarks.running.engines.local import InProcess, Processes, _Worker
from benchmarks.running.estimate import Estimate
from benchmarks.running.outcome import Outcome
from benchmarks.running.run import strength_of
from benchmarks.running.stopping import Control, Stopped
from tests.benchmarks.fakes import fake_history, fake_record
from tests.benchmarks.small import small_bench, small_cell, small_experiment


class FakeEngine:
    """Ends every task at once, as a function says; notes what was started, and what was at work together."""

    def __init__(self, end: Callable[[Task, int], Event] | None = None, slots: int = 1) -> None:
        self.slots = slots
        self.started: list[str] = []
        self.together: list[set[str]] = []
        self.stopped = self.closed = False
        self._end = end or (lambda task, attempt: finished(task.cell))
        self._tasks: list[Task] = []

    def start(self, task: Task) -> None:
        self.started.append(task.cell.method)
        self._tasks.append(task)
        assert len(self._tasks) <= self.slots

    def wait(self, tell: Tell) -> None:
        self.together.append({task.cell.method for task in self._tasks})
        task = self._tasks.pop(0)
        tell(Started(task.cell, []))
        tell(self._end(task, self.started.count(task.cell.method)))

    def stop(self) -> None:
        self.stopped = True

    def close(self) -> None:
        self.closed = True


def finished(cell: Cell) -> Ended:
    return Ended(cell, Outcome(fake_record(cell), fake_history(), ()))


def drive(bench: Bench, engine: Engine, cells: Sequence[Cell], control: Control | None = None) -> SweepOutcome:
    return Driver(bench, engine, control or Control(), []).drive(cells)


def cells(**changes: object) -> list[Cell]:
    return cells_of(small_experiment(**changes), "quick")


def test_driver_writes_every_record_once_and_gives_leases_back(tmp_path: Path) -> None:
    bench, engine = small_bench(tmp_path), FakeEngine()
    outcome = drive(bench, engine, cells())
    assert engine.started == ["oicsr-gl", "gl-out", "none"] and engine.closed
    assert len(outcome.records) == 3 and not outcome.left and outcome.stopped is None
    assert all(read_record(record_path(bench.results, cell)).complete for cell in cells())
    assert not list((tmp_path / "results" / ".locks").glob("*.owner"))


def test_run_of_another_command_is_waited_for_and_not_repeated(tmp_path: Path) -> None:
    bench, (first, second, third) = small_bench(tmp_path), cells()
    held = try_lease(lease_path(bench.results, first.experiment.name, first.run_id))
    assert held is not None

    def end(task: Task, attempt: int) -> Event:
        if task.cell.method == third.method:  # the other command ends its run meanwhile
            write_record(bench.results, fake_record(first), fake_history())
            held.release()
        return finished(task.cell)

    engine = FakeEngine(end)
    outcome = drive(bench, engine, [first, second, third])
    assert engine.started == [second.method, third.method]
    assert [record.method for record in outcome.elsewhere] == [first.method]


def test_a_run_of_an_older_protocol_is_done_again(tmp_path: Path) -> None:
    bench, cell = small_bench(tmp_path), cells()[0]
    states = {name: state for name, state in fake_record(cell).states.items() if name != "recalibrated"}
    write_record(bench.results, fake_record(cell, protocol=1, states=states), fake_history())
    engine = FakeEngine()
    outcome = drive(bench, engine, [cell])
    assert engine.started == [cell.method] and not outcome.elsewhere
    assert read_record(record_path(bench.results, cell)).protocol == 2


def test_failed_run_is_tried_again_once_by_one_of_two_commands(tmp_path: Path) -> None:
    bench, cell = small_bench(tmp_path), cells()[0]
    failure = {"reason": "it diverged"}
    write_record(bench.results, fake_record(cell, failure=failure), fake_history())
    engine = FakeEngine()
    assert len(drive(bench, engine, [cell]).records) == 1  # the failed record that was there is no obstacle

    write_record(bench.results, fake_record(cell, failure=failure), fake_history())
    driver = Driver(bench, FakeEngine(), Control(), [])
    driver._note(cell)  # looked, and then another command tried again, and failed again
    write_record(bench.results, fake_record(cell, failure={"reason": "again"}), fake_history())
    todo = [cell]
    assert driver._start_one(todo) and todo == []
    assert [record.failure for record in driver._outcome.elsewhere] == [{"reason": "again"}]


def test_run_of_a_worker_that_dies_is_tried_again(tmp_path: Path) -> None:
    def end(task: Task, attempt: int) -> Event:
        return Died(task.cell, "its process was killed by SIGKILL") if attempt == 1 else finished(task.cell)

    bench, engine = small_bench(tmp_path), FakeEngine(end)
    outcome = drive(bench, engine, cells()[:1])
    assert engine.started == ["oicsr-gl"] * 2 and outcome.records[0].complete


def test_workers_may_have_processes_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Processes(small_bench(tmp_path), Control(), 2, {})
    monkeypatch.setattr("benchmarks.running.engines.local._work", loads_images)
    engine.start(Task(small_cell("none"), strength_of(small_bench(tmp_path), small_cell("none"))))
    try:
        assert engine._workers[0].events.recv() == [0.0, 1.0]
    finally:
        engine.close()


def loads_images(events: Connection, *_: object) -> None:
    loader = torch.utils.data.DataLoader(range(2), num_workers=1)  # type: ignore[arg-type]
    events.send([float(value) for value in loader])


def say_and_be_killed(events: Connection, cell: Cell) -> None:
    events.send(Waiting(cell, "stage dense is trained by process 7"))
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_waited_for_a_stage_and_was_killed_is_reported_dead(tmp_path: Path) -> None:
    cell = small_cell()
    engine = Processes(small_bench(tmp_path), Control(), 2, {})
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=say_and_be_killed, args=(theirs, cell))
    process.start()
    theirs.close()
    engine._workers.append(_Worker(process, ours, cell, 0))
    told: list[Event] = []
    while engine._workers:
        engine.wait(told.append)
    assert [type(event) for event in told] == [Waiting, Died] and "SIGKILL" in str(told[-1])


@pytest.mark.parametrize("final", [False, True])
def test_run_whose_workers_die_again_and_again_is_recorded_as_failed(tmp_path: Path, final: bool) -> None:
    engine = FakeEngine(lambda task, attempt: Died(task.cell, "its process was killed by SIGKILL", final))
    bench = small_bench(tmp_path)
    outcome = drive(bench, engine, cells()[:1])
    assert len(engine.started) == (1 if final else ATTEMPTS)
    record = read_record(record_path(bench.results, cells()[0]))
    assert not record.complete and record.failure is not None and len(outcome.records) == 1
    assert "SIGKILL" in record.failure["reason"] and record.failure["kind"] == "WorkerDied"
    assert record.failure["last_good_epoch"] is None


def test_full_disk_ends_the_sweep_and_leaves_no_lease(tmp_path: Path) -> None:
    engine = FakeEngine(lambda task, attempt: Ended(task.cell, trouble="OSError: No space left on device"))
    with pytest.raises(MachineTroubleError, match=r"cannot continue: .*No space left"):
        drive(small_bench(tmp_path), engine, cells())
    assert engine.closed and not list((tmp_path / "results" / ".locks").glob("*.owner"))


def test_stop_leaves_the_rest_and_says_why(tmp_path: Path) -> None:
    engine = FakeEngine(lambda task, attempt: Ended(task.cell, stopped="out of time"))
    outcome = drive(small_bench(tmp_path), engine, cells())
    assert outcome.stopped == "out of time" and [cell.method for cell in outcome.left] == ["oicsr-gl", "gl-out", "none"]
    asked = FakeEngine()
    outcome = drive(small_bench(tmp_path), asked, cells(), Control(asked=lambda: True))
    assert outcome.stopped == "interrupted" and asked.stopped and not asked.started


def test_engine_is_told_to_stop_when_time_is_up_for_tasks_that_began_late(tmp_path: Path) -> None:
    engine = FakeEngine()
    outcome = drive(small_bench(tmp_path), engine, cells(), Control(seconds=-1.0))
    assert outcome.stopped == "out of time" and engine.stopped and not engine.started


def test_what_need_not_wait_for_a_stage_in_training_goes_first(tmp_path: Path) -> None:
    engine = FakeEngine(slots=2)
    two_seeds = cells_of(small_experiment(seeds=(0, 1), methods=("oicsr-gl", "gl-out")), "quick")
    drive(small_bench(tmp_path), engine, two_seeds)
    assert engine.started[:2] == ["oicsr-gl", "oicsr-gl"]  # of seeds 0 and 1: their dense networks are trained together


def test_task_reports_machine_problems_separately_from_failed_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, cell = small_bench(tmp_path), small_cell()
    engine = InProcess(bench, Control())
    events: list[Event] = []

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("benchmarks.running.checkpoints.write_atomically", full)
    from benchmarks.running.run import strength_of

    engine.start(Task(cell, strength_of(bench, cell)))
    engine.wait(events.append)
    assert isinstance(events[-1], Ended) and events[-1].outcome is None and "No space left" in str(events[-1].trouble)


class OwnError(Exception):
    """An error that some method defines."""


def _ended_by(error: Exception, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Event:
    """Return the last event of a run in which the removal of channels raises an error."""
    from benchmarks.running.run import strength_of

    def fail(*arguments: object, **more: object) -> None:
        raise error

    monkeypatch.setattr("benchmarks.running.run.remove_channels", fail)
    bench, cell = small_bench(folder), small_cell()
    events: list[Event] = []
    perform(bench, Task(cell, strength_of(bench, cell)), Control(), events.append)
    return events[-1]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("out of memory"),
        KeyError("no such layer"),
        ZeroDivisionError("x"),
        AssertionError("scores have other shapes"),
        NameError("name 'torhc' is not defined"),
        ImportError("no module of that name"),
        StopIteration(),
        OwnError("of a method"),
    ],
)
def test_what_a_run_raises_becomes_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    ended = _ended_by(error, tmp_path, monkeypatch)
    assert isinstance(ended, Ended) and ended.outcome is not None
    failure = ended.outcome.record.failure
    assert failure is not None and failure["kind"] == type(error).__name__
    assert failure["last_good_epoch"] == "regularized 1" and "Traceback" in failure["traceback"]


@pytest.mark.parametrize("error", [Stopped("interrupted"), LeaseLostError("taken over"), OSError(28, "No space left")])
def test_a_stop_and_trouble_of_the_machine_are_no_failure_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    ended = _ended_by(error, tmp_path, monkeypatch)
    assert isinstance(ended, Ended) and ended.outcome is None
    assert (ended.stopped is None) == isinstance(error, OSError) == (ended.trouble is not None)


def test_damaged_data_fails_its_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.datasets.contract import DataError
    from benchmarks.running import run as runner
    from benchmarks.running.estimate import estimate

    def damaged(name: str) -> None:
        raise DataError("CIFAR-10 is damaged: data_batch_1 has MD5 0, expected 1")

    cell = small_cell()
    cell = replace(cell, experiment=replace(cell.experiment, dataset="cifar10"))
    monkeypatch.setattr("benchmarks.running.bench.load_dataset", damaged)
    bench = small_bench(tmp_path)
    assert estimate(bench, [cell]).total == 0
    record = runner.run_cell(bench, cell)
    assert record.failure is not None and "is damaged" in record.failure["reason"]
    assert record.provenance["data_sha256"] is None


def test_lease_names_its_owner_while_a_run_is_at_work(tmp_path: Path) -> None:
    bench, cell = small_bench(tmp_path), cells()[0]
    path = lease_path(bench.results, cell.experiment.name, cell.run_id)
    owners = []

    def end(task: Task, attempt: int) -> Event:
        owners.append(read_owner(path))
        return finished(task.cell)

    drive(bench, FakeEngine(end), [cell])
    assert owners[0] is not None and not path.exists()


def test_a_run_that_waits_says_for_whom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.machine.leases.SAY_AFTER", 0.0)
    bench, (first, *_) = small_bench(tmp_path), cells()
    held = try_lease(lease_path(bench.results, first.experiment.name, first.run_id))
    assert held is not None
    console = Console(file=io.StringIO(), width=200)

    class Screen(ConsoleObserver):
        def waiting(self, cell: Cell, reason: str) -> None:
            super().waiting(cell, reason)
            held.release()

    with Screen(console, 1, Estimate()) as observer:
        outcome = Driver(bench, FakeEngine(), Control(), [observer]).drive([first])
    assert len(outcome.records) == 1
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.count(f"{first.label} waits: process {os.getpid()} on {socket.gethostname()} does this run") == 1
