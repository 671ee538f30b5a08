"""W&B: a mirror that is written once, and that no training depends on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.config import Cell
from benchmarks.records.record import write_record
from benchmarks.records.rows import read_history
from benchmarks.running import wandb_mirror as sinks
from benchmarks.running import wandb_replay as publishing
from benchmarks.running.run import run_cell
from benchmarks.running.wandb_mirror import Place, WandbSink, WandbWarning, wandb_id
from benchmarks.running.wandb_replay import publish
from tests.benchmarks.fakes import fake_history, fake_record
from tests.benchmarks.small import small_bench, small_cell

CELLS = [small_cell("oicsr-gl"), small_cell("none")]


class FakeRun:
    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.artifacts: list[Any] = []
        self.exit_code: int | None = None

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def log_artifact(self, artifact: Any) -> None:
        self.artifacts.append(artifact)

    def finish(self, exit_code: int = 0) -> None:
        self.exit_code = exit_code


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeRun]:
    """Return the W&B runs that are opened, by name, without W&B's processes."""
    runs: dict[str, FakeRun] = {}

    def open_run(place: Place, experiment: str, profile: str, name: str, kind: str, config: dict[str, Any]) -> FakeRun:
        return runs.setdefault(name, FakeRun())

    monkeypatch.setattr(sinks, "open_run", open_run)
    monkeypatch.setattr(publishing, "open_run", open_run)
    return runs


def write(results: Path, cell: Cell, top1: float = 0.75) -> None:
    write_record(results, fake_record(cell, top1), fake_history())


def test_records_are_published_once_and_again_when_they_change(tmp_path: Path, opened: dict[str, FakeRun]) -> None:
    results, place = tmp_path / "results", Place("offline", tmp_path / "wandb")
    for cell in CELLS:
        write(results, cell)
    table = results / "tables" / "small-quick.csv"
    table.parent.mkdir()
    table.write_text("numbers")
    done = publish(results, place)
    assert len(done.written) == 3 and not done.present  # two runs and the overview of their experiment
    run = opened[CELLS[0].run_id]
    assert [point.get("epoch") for point in run.logged[:4]] == [1, 2, 3, None] and run.logged[0][
        "dense/train_loss"
    ] == 1.5
    assert run.summary["finetuned/top1"] == 0.75 and run.summary["status"] == "complete" and run.exit_code == 0
    overview = opened["quick-overview"]
    assert "accuracy_against_macs/pruned" in overview.logged[0]
    assert [artifact.name for artifact in overview.artifacts] == ["small-quick-tables"]

    assert publish(results, place).written == []
    write(results, CELLS[1], 0.8)
    assert publish(results, place).written == [CELLS[1].label, "small/quick-overview"]
    assert len(publish(results, place, again=True).written) == 3
    assert len(publish(results, Place("offline", tmp_path / "wandb", project="other")).written) == 3


def test_damaged_ledger_counts_as_empty(tmp_path: Path, opened: dict[str, FakeRun]) -> None:
    write(tmp_path / "results", CELLS[0])
    place = Place("offline", tmp_path / "wandb")
    publish(tmp_path / "results", place)
    for content in ("{", "[]", '{"offline:/oicsr": 3}'):
        (tmp_path / "wandb" / "published.json").write_text(content)
        assert len(publish(tmp_path / "results", place).written) == 2


def test_failed_runs_are_published_as_such(tmp_path: Path, opened: dict[str, FakeRun]) -> None:
    write_record(tmp_path / "results", fake_record(CELLS[0], failure={"reason": "it diverged"}), fake_history())
    publish(tmp_path / "results", Place("offline", tmp_path / "wandb"))
    run = opened[CELLS[0].run_id]
    assert run.exit_code == 1 and run.summary["failure"] == "it diverged"


def test_ids_are_made_from_names() -> None:
    assert wandb_id("a", "b") == wandb_id("a", "b") != wandb_id("a", "c")


def test_history_is_read_back(tmp_path: Path) -> None:
    path = write_record(tmp_path, fake_record(), fake_history({"dense": 2}))
    assert read_history(path.with_name("history.csv").read_text()) == fake_history({"dense": 2})


def test_sink_writes_what_publish_writes(tmp_path: Path, opened: dict[str, FakeRun]) -> None:
    sink = WandbSink("offline", tmp_path / "wandb")
    run_cell(small_bench(tmp_path, observers=[sink]), CELLS[0])
    sink.close()
    live = opened.pop(CELLS[0].run_id)
    assert "accuracy_against_macs_table" in opened.pop("quick-overview").logged[0]
    publish(tmp_path / "results", Place("offline", tmp_path / "other"))
    later = opened[CELLS[0].run_id]
    assert live.summary == later.summary and live.exit_code == later.exit_code == 0
    assert [sorted(point) for point in live.logged] == [sorted(point) for point in later.logged]
    assert live.logged[-1] == pytest.approx(later.logged[-1], rel=1e-5)


def test_the_overview_of_a_sweep_holds_the_runs_of_earlier_commands(tmp_path: Path, opened: dict[str, FakeRun]) -> None:
    """The overview of a later command replaces that of an earlier one."""
    results = tmp_path / "results"
    write(results, CELLS[0])
    other = replace(CELLS[1].experiment, profiles={"another": CELLS[1].profile})
    write(results, Cell(other, "another", "l1", 0, 0.5))
    sink = WandbSink("offline", tmp_path / "wandb", results=results)
    sink.run_started(CELLS[1], [])
    sink.run_finished(CELLS[1], fake_record(CELLS[1]), [])
    sink.close()
    table = opened["quick-overview"].logged[0]["accuracy_against_macs_table"]
    assert [row[:3] for row in table.data] == [[cell.method, cell.seed, cell.macs_kept] for cell in CELLS[:2]]


def test_offline_run_of_wandb_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_SWEEP_ID", raising=False)
    place = Place("offline", tmp_path / "wandb")
    write(tmp_path / "results", CELLS[0])
    assert len(publish(tmp_path / "results", place).written) == 2
    written = sorted(path.name for path in (tmp_path / "wandb" / "wandb").glob("offline-run-*"))
    assert any(name.endswith(wandb_id("small", CELLS[0].run_id)) for name in written) and len(written) == 2


@pytest.mark.parametrize("trouble", ["no network", "folder", "not installed"])
def test_training_continues_without_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str) -> None:
    import wandb

    folder = tmp_path / "wandb"
    if trouble == "folder":  # stands for a disk that is full or read-only
        folder.write_text("a file")
    else:
        error = wandb.errors.CommError("no network") if trouble == "no network" else ImportError("no wandb")

        def fail(**arguments: Any) -> None:
            raise error

        monkeypatch.setattr(wandb, "init", fail)
    sink = WandbSink("online", folder)
    with pytest.warns(WandbWarning, match="training continues"):
        sink.run_started(CELLS[0], [])
    sink.run_finished(CELLS[0], fake_record(CELLS[0]), fake_history())  # silent from now on
    sink.close()


def test_failure_in_the_middle_is_said_once(tmp_path: Path, opened: dict[str, FakeRun]) -> None:
    sink = WandbSink("offline", tmp_path / "wandb")
    sink.run_started(CELLS[0], [])

    def full(values: dict[str, Any]) -> None:
        raise OSError(28, "No space left on device")

    opened[CELLS[0].run_id].log = full  # type: ignore[method-assign]
    row = fake_history({"dense": 1})[0]
    with pytest.warns(WandbWarning, match="No space left"):
        sink.epoch_done(CELLS[0], None, row, cached=False)  # type: ignore[arg-type]
    sink.epoch_done(CELLS[0], None, row, cached=False)  # type: ignore[arg-type]
    sink.close()
