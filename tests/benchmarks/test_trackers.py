"""Trackers: what Weights & Biases, TensorBoard, MLflow and CSV files hold after a run, read back from their files."""

from __future__ import annotations

import csv
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from benchmarks.records.record import STATES
from benchmarks.running.mlflow_runs import MlflowRuns
from benchmarks.running.run import run_cell
from benchmarks.running.run_config import run_config
from benchmarks.running.trackers import (
    CsvFiles,
    Mirror,
    TensorBoardFiles,
    TrackerWarning,
    check_trackers,
    open_trackers,
)
from benchmarks.running.wandb_mirror import WandbSink, notes_of, tags_of
from benchmarks.running.wandb_replay import Place, publish
from tests.benchmarks.small import small_bench, small_cell

CELL = small_cell("oicsr-gl")


def stored(path: Path) -> Iterator[bytes]:
    """Yield the records of a `.wandb` file: a header of 7 bytes, then LevelDB's log format in blocks of 32 KiB."""
    data, place, part = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        part += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # complete, or the last part of one
            yield part
            part = b""


def offline_runs(folder: Path) -> list[dict[str, Any]]:
    """Return what each offline run's file holds: run, metrics, history, summary, artifacts."""
    from wandb.proto import wandb_internal_pb2

    runs = []
    for path in sorted(folder.glob("**/offline-run-*/*.wandb")):
        found: dict[str, Any] = {"metrics": [], "history": [], "artifacts": [], "config": {}, "summary": {}}
        for data in stored(path):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                found["run"] = record.run
                found["config"] |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif kind == "metric":
                found["metrics"].append(record.metric)
            elif kind == "history":
                items = record.history.item
                found["history"].append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
            elif kind == "config":
                names = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.config.update}
                found["config"] |= names
            elif kind == "summary":
                items = record.summary.update
                found["summary"] |= {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
            elif kind == "artifact":
                found["artifacts"].append(record.artifact)
            elif kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
                found["artifacts"].append(record.request.log_artifact.artifact)
        runs.append(found)
    return runs


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def wandb_files(tmp_path: Path) -> list[dict[str, Any]]:
    from wandb import teardown

    sink = WandbSink("offline", tmp_path / "wandb", tmp_path / "tuning")
    bench = small_bench(tmp_path, observers=[sink])
    assert run_cell(bench, CELL).complete
    sink.close()
    publish(bench.results, Place("offline", tmp_path / "again"), store=bench.store)
    teardown()  # its own process writes the files, and may be behind
    return [*offline_runs(tmp_path / "wandb"), *offline_runs(tmp_path / "again")]


def test_wandb_shows_what_its_users_look_for(wandb_files: list[dict[str, Any]]) -> None:
    live, replayed = (found for found in wandb_files if found["run"].job_type == "run")
    overview = next(found for found in wandb_files if found["run"].job_type == "overview")
    for found in (live, replayed):
        assert found["run"].run_group == "small-quick" and found["run"].job_type == "run"
        assert "oicsr-gl" in found["run"].tags and "50 % of the MACs" in found["run"].tags
        assert found["run"].notes.startswith("oicsr-gl on small (quick), seed 0, 50 % of the MACs, strength")
        wanted = {"strength", "commit", "cpu_capability", "dense_learning_rate", "finetune_epochs", "model", "seed"}
        assert wanted <= found["config"].keys()
        steps = {metric.glob_name or metric.name: metric.step_metric for metric in found["metrics"]}
        assert steps["accuracy_against_macs/*"] == "macs" and steps["dense/*"] == "epoch"
        points = [point for point in found["history"] if "macs" in point]
        states = [name for point in points for name in point if name.startswith("accuracy_")]
        assert states == [f"accuracy_against_macs/{state}" for state in STATES]
        assert points[-1]["macs"] < points[0]["macs"]
    charts = {name for point in overview["history"] for name in point}
    assert any(name.startswith("mean_accuracy_against_macs/finetuned") for name in charts)
    assert "Custom Chart" in json.dumps(overview["config"]) or "panel_type" in json.dumps(overview["config"])


def test_published_networks_are_artifacts(wandb_files: list[dict[str, Any]]) -> None:
    models = [a for found in wandb_files for a in found["artifacts"] if a.type == "model"]
    assert [a.name for a in models] == [f"small-{CELL.run_id}"]
    assert [entry.path for entry in models[0].manifest.contents] == ["pruned.safetensors"]


def test_tensorboard_files_hold_curves_and_accuracy_against_macs(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = Mirror(TensorBoardFiles(tmp_path / "tb"), tmp_path / "tuning")
    record = run_cell(small_bench(tmp_path, observers=[tracker]), CELL)
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tb" / "small-quick" / CELL.run_id)).Reload()
    assert {"dense/train_loss", "finetune/val_top1"} <= set(events.Tags()["scalars"])
    (point,) = events.Scalars("accuracy_against_million_macs/finetuned")
    assert point.value == pytest.approx(record.states["finetuned"]["top1"])
    assert point.step == record.states["finetuned"]["macs"] // 10**6


@pytest.fixture
def mlflow_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a client of a store in files: MLflow keeps it, on request, beside its data base."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    return MlflowClient()


def mlflow_runs(client: Any) -> list[Any]:
    return list(client.search_runs([client.get_experiment_by_name("small-quick").experiment_id]))


def test_mlflow_holds_configuration_curves_and_results(tmp_path: Path, mlflow_client: Any) -> None:
    tracker = Mirror(MlflowRuns(), tmp_path / "tuning")
    record = run_cell(small_bench(tmp_path, observers=[tracker]), CELL)
    tracker.close()
    (run,) = mlflow_runs(mlflow_client)
    assert run.info.status == "FINISHED" and run.info.run_name == CELL.run_id
    assert run.data.params["method"] == "oicsr-gl" and float(run.data.params["strength"]) == record.strength
    assert run.data.tags["mlflow.note.content"].startswith("oicsr-gl on small (quick), seed 0")
    finetuned = record.states["finetuned"]
    assert run.data.metrics["finetuned_top1"] == finetuned["top1"]
    (point,) = mlflow_client.get_metric_history(run.info.run_id, "accuracy_against_million_macs/finetuned")
    assert (point.value, point.step) == (finetuned["top1"], finetuned["macs"] // 10**6)
    steps = {
        phase: [point.step for point in mlflow_client.get_metric_history(run.info.run_id, f"{phase}/val_top1")]
        for phase in ("dense", "regularized", "finetune")
    }
    assert steps == {"dense": [1], "regularized": [2], "finetune": [3]}


def test_a_run_that_starts_again_replaces_the_earlier_one_in_mlflow(tmp_path: Path, mlflow_client: Any) -> None:
    for _ in range(2):
        tracker = Mirror(MlflowRuns(), tmp_path / "tuning")
        tracker.run_started(CELL, [])
        tracker.close()
    (run,) = mlflow_runs(mlflow_client)
    assert run.info.status == "KILLED"


def test_mlflow_that_refuses_to_write_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://x")
    tracker = Mirror(MlflowRuns(), tmp_path / "tuning")
    with pytest.warns(TrackerWarning, match="MlflowRuns failed .*nowhere") as caught:
        tracker.run_started(CELL, [])
    assert "MLFLOW_TRACKING_URI" not in str(caught[0].message)


def test_mlflow_without_a_place_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.exceptions import MlflowException

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("mlflow.MlflowClient", Mock(side_effect=MlflowException("no store")))
    tracker = Mirror(MlflowRuns(), tmp_path / "tuning")
    with pytest.warns(TrackerWarning, match="no store; set MLFLOW_TRACKING_URI to your server's address"):
        tracker.run_started(CELL, [])


def test_a_tracker_without_its_package_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.running.trackers.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"'mlflow' needs a package that is not installed: pip install '\.\[mlflow\]'"):
        check_trackers(["csv", "mlflow"])


def test_csv_files_hold_every_epoch_and_a_row_per_run(tmp_path: Path) -> None:
    tracker = Mirror(CsvFiles(tmp_path / "tracks"), tmp_path / "tuning")
    record = run_cell(small_bench(tmp_path, observers=[tracker]), CELL)
    tracker.close()
    epochs = rows(tmp_path / "tracks" / "small-quick" / f"{CELL.run_id}.csv")
    assert [row["number"] for row in epochs] == ["1", "2", "3"]
    assert [row["phase"] for row in epochs] == ["dense", "regularized", "finetune"]
    (row,) = rows(tmp_path / "tracks" / "runs.csv")
    assert float(row["finetuned_top1"]) == record.states["finetuned"]["top1"] and row["method"] == "oicsr-gl"


def test_a_tracker_that_fails_warns_once_and_training_goes_on(tmp_path: Path) -> None:
    (tmp_path / "tracks").write_text("a file where a folder should be")
    tracker = Mirror(CsvFiles(tmp_path / "tracks"), tmp_path / "tuning")
    with pytest.warns(TrackerWarning, match="the records are complete") as caught:
        assert run_cell(small_bench(tmp_path, observers=[tracker]), CELL).complete
    assert len([warning for warning in caught if warning.category is TrackerWarning]) == 1


def test_names_of_trackers(tmp_path: Path) -> None:
    assert check_trackers(["csv", "none", "csv"]) == ["csv"] and check_trackers(["none"]) == []
    with pytest.raises(ValueError, match="Did you mean 'tensorboard'"):
        check_trackers(["tensorbord"])
    assert len(open_trackers(["wandb", "tensorboard", "mlflow", "csv"], "disabled", tmp_path)) == 4


def test_configuration_is_flat_and_serialisable(tmp_path: Path) -> None:
    config = run_config(CELL, tmp_path)
    assert json.loads(json.dumps(config)) == config and config["dense_epochs"] == 1
    assert all(len(tag) <= 64 for tag in tags_of(config)) and notes_of({"experiment": "small"}) is None
