"""Runs end to end: four states, shared stages, equal runs, failures that leave a record."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.method import Target
from benchmarks.config import Cell, Phase
from benchmarks.methods.registry import METHODS, REGULARIZERS
from benchmarks.models import build_model
from benchmarks.records.record import Record, RecordError, read_record, read_records, record_path
from benchmarks.records.rows import EpochRow
from benchmarks.running.cells import cells_of
from benchmarks.running.run import run_cell
from benchmarks.running.stages import Stage, stages_of
from benchmarks.running.survey import survey
from benchmarks.running.tuning import best_strength, tune
from oicsr import Coupling, count_macs, find_couplings, out_in_energy, remove_channels
from tests.benchmarks.small import small_bench, small_cell, small_experiment


class Log:
    """Notes which epochs were trained and which were found."""

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.cached: list[str] = []

    def run_started(self, cell: Cell, stages: Sequence[Stage]) -> None:
        pass

    def epoch_done(self, cell: Cell, stage: Stage, row: EpochRow, *, cached: bool) -> None:
        (self.cached if cached else self.trained).append(f"{cell.method}/{stage.name}{row.epoch}")

    def run_finished(self, cell: Cell, record: Record, history: Sequence[EpochRow]) -> None:
        pass


def without_times(record: Record) -> dict[str, Any]:
    values = dataclasses.asdict(record)
    del values["timing"], values["provenance"]
    return values


def test_a_run_leaves_a_record_of_four_states(tmp_path: Path) -> None:
    bench, cell = small_bench(tmp_path), small_cell()
    record = run_cell(bench, cell)
    assert record.complete and list(record.states) == ["dense", "regularized", "pruned", "finetuned"]
    states = record.states
    assert states["dense"]["macs"] == states["regularized"]["macs"] > states["pruned"]["macs"]
    assert states["pruned"]["macs"] == states["finetuned"]["macs"]
    assert states["pruned"]["macs"] == pytest.approx(0.5 * states["dense"]["macs"], rel=0.01)
    assert states["finetuned"]["params"] < states["dense"]["params"]
    assert sum(after < before for before, after in record.widths.values()) > 0
    assert record.epochs == {"dense": 1, "regularized": 1, "finetune": 1}
    assert read_record(record_path(bench.results, cell)).to_json() == record.to_json()
    assert record.provenance["versions"]["torch"] == torch.__version__.split("+")[0]
    history = record_path(bench.results, cell).with_name("history.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in history] == ["phase", "dense", "regularized", "finetune"]


def test_training_is_shared_between_targets_unless_it_depends_on_them() -> None:
    def key(method: str, **changes: Any) -> str:
        return stages_of(small_cell(method, **changes), _method(method), 0.1, "cpu")[1].key

    assert key("oicsr-gl") == key("oicsr-gl", macs_kept=0.3) == key("oicsr-gl-uniform")
    assert key("greg1") != key("greg1", macs_kept=0.3) and key("greg1") != key("greg1+l1+uniform")


def test_a_regularizer_is_told_what_will_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    targets: list[Target] = []

    def watched(couplings: Sequence[Coupling], strength: float, target: Target) -> None:
        targets.append(target)

    spec = dataclasses.replace(REGULARIZERS["none"], make_for_target=watched)
    method = dataclasses.replace(METHODS["none"], regularizer=spec)
    monkeypatch.setitem(METHODS, "none", method)
    record = run_cell(small_bench(tmp_path), small_cell("none", steps=2))
    assert record.complete and [target.macs_kept for target in targets] == [0.75, 0.5]
    assert all(target.steps == 2 for target in targets)  # 128 images in batches of 64, one epoch
    model = build_model("digits-resnet", 10)
    couplings = find_couplings(model, torch.zeros(1, 1, 8, 8))
    plan = targets[0].plan(model, out_in_energy(model, couplings))
    small = remove_channels(model, plan)
    share = count_macs(small, torch.zeros(1, 1, 8, 8)) / count_macs(model, torch.zeros(1, 1, 8, 8))
    assert share == pytest.approx(0.75, rel=0.01)


def test_two_runs_are_equal_but_for_times(tmp_path: Path) -> None:
    first, second = (run_cell(small_bench(tmp_path / name), small_cell()) for name in "ab")
    assert without_times(first) == without_times(second)
    assert first.states["finetuned"]["weights_sha256"] == second.states["finetuned"]["weights_sha256"]


def test_stages_are_shared_as_far_as_runs_agree(tmp_path: Path) -> None:
    log = Log()
    bench = small_bench(tmp_path, observers=[log])
    for method in ("none", "l1", "oicsr-gl"):
        run_cell(bench, small_cell(method))
    assert log.trained == [
        "none/dense1",
        "none/regularized1",
        "none/finetune1",
        "l1/finetune1",
        "oicsr-gl/regularized1",
        "oicsr-gl/finetune1",
    ]
    assert log.cached == ["l1/dense1", "l1/regularized1", "oicsr-gl/dense1"]


def test_all_methods_share_dense_state_and_data_order(tmp_path: Path) -> None:
    bench = small_bench(tmp_path)
    records = [run_cell(bench, small_cell(method)) for method in ("none", "oicsr-gl")]
    assert records[0].states["dense"] == records[1].states["dense"]
    keys = [
        [(stage.seed, stage.name) for stage in stages_of(small_cell(m), _method(m), 0.1, "cpu")]
        for m in ("none", "gl-out")
    ]
    assert keys[0] == keys[1]


def _method(name: str) -> Any:
    from benchmarks.methods.registry import find_method

    return find_method(name)


def test_anything_that_can_move_a_number_names_another_stage() -> None:
    method = _method("oicsr-gl")
    base = stages_of(small_cell(), method, 0.1, "cpu")
    for changed in (
        stages_of(small_cell(seed=1), method, 0.1, "cpu"),
        stages_of(small_cell(batch_size=32), method, 0.1, "cpu"),
        stages_of(small_cell(), method, 0.1, "cuda"),
        stages_of(small_cell(train_images=64), method, 0.1, "cpu"),
    ):
        assert {s.key for s in changed}.isdisjoint({s.key for s in base})
    stronger = stages_of(small_cell(), method, 0.2, "cpu")
    assert stronger[0].key == base[0].key and stronger[1].key != base[1].key
    further = stages_of(small_cell(macs_kept=0.4), method, 0.1, "cpu")
    assert further[1].key == base[1].key and further[2].key != base[2].key


def test_iterative_pruning_trains_before_each_removal(tmp_path: Path) -> None:
    record = run_cell(small_bench(tmp_path), small_cell(steps=2))
    assert record.epochs == {"dense": 1, "regularized": 2, "finetune": 1}
    assert record.states["pruned"]["macs"] == pytest.approx(0.5 * record.states["dense"]["macs"], rel=0.01)


def test_regularizer_is_at_work(tmp_path: Path) -> None:
    bench = small_bench(tmp_path)
    history = []
    for method in ("none", "oicsr-gl"):
        run_cell(bench, small_cell(method))
        rows = record_path(bench.results, small_cell(method)).with_name("history.csv").read_text().splitlines()
        history.append(dict(zip(rows[0].split(","), rows[2].split(","), strict=True)))
    assert float(history[0]["penalty"]) == 0 and float(history[1]["penalty"]) > 0


def test_diverged_run_is_recorded_as_failed(tmp_path: Path) -> None:
    bench = small_bench(tmp_path)
    cell = small_cell(regularized=Phase(epochs=2, learning_rate=1e20))
    record = run_cell(bench, cell)
    assert not record.complete and record.failure is not None
    assert "diverged" in record.failure["reason"] and record.failure["last_good_epoch"] is not None
    assert "Traceback" in record.failure["traceback"]
    assert list(record.states) == ["dense"]
    found = survey(bench, [cell])
    assert (len(found.todo), len(found.failed)) == (0, 1)
    assert survey(bench, [cell], retry_failed=True).todo == [cell]


def test_finished_runs_are_not_run_again_and_other_configurations_refused(tmp_path: Path) -> None:
    bench, cell = small_bench(tmp_path), small_cell()
    run_cell(bench, cell)
    assert survey(bench, [cell]).todo == [] and len(survey(bench, [cell]).complete) == 1
    with pytest.raises(RecordError, match=r"finetune\.epochs is 3 now and was 1.*--results"):
        survey(bench, [small_cell(finetune=Phase(epochs=3, learning_rate=0.01))])


def test_damaged_record_is_kept_aside_and_run_again(tmp_path: Path) -> None:
    bench, cell = small_bench(tmp_path), small_cell()
    run_cell(bench, cell)
    path = record_path(bench.results, cell)
    path.write_text(path.read_text()[:-50])
    with pytest.raises(RecordError, match="1 unreadable"):
        read_records(bench.results)
    found = survey(bench, [cell])
    assert found.todo == [cell] and "no readable record" in found.damaged[0]
    assert path.with_name("record.json.damaged").is_file() and not path.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "other"}, "no record of schema"),
        ({"states": {"dense": {"top1": 97.0}}}, "states"),
        ({"status": "done"}, "status is 'done'"),
        ({"seed": "0"}, "'seed' is"),
        ({"surprise": 1}, r"unknown \['surprise'\]"),
        ({"run_id": "another"}, "wrong place"),
    ],
)
def test_records_that_are_none_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    bench, cell = small_bench(tmp_path), small_cell()
    run_cell(bench, cell)
    path = record_path(bench.results, cell)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RecordError, match=message):
        read_record(path)


def test_tuning_never_touches_the_test_set_and_is_read_by_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = small_bench(tmp_path)
    cells = cells_of(small_experiment(grid_scale=10.0), "quick", methods=["oicsr-gl", "none"])
    tried = []
    path = tune(bench, cells, [1000], lambda cell, strength, top1: tried.append(strength))
    record = json.loads(path.read_text())
    assert len(tried) == 5 and list(record["chosen"]) == ["oicsr-gl"]
    assert {float(text) for text in record["scores"]["oicsr-gl"]["0.5"]} == set(tried)
    assert all(0 <= value <= 1 for [value] in record["scores"]["oicsr-gl"]["0.5"].values())
    for checkpoint in bench.store.folder.glob("[0-9a-f]*"):
        state = bench.store.load(checkpoint.name)
        assert state is not None and not state["scores"]["test"]
    after = run_cell(bench, cells[0])
    assert after.strength == record["chosen"]["oicsr-gl"]["0.5"] and "tuned on validation" in after.strength_source


def test_tuning_anew_replaces_scores_and_leaves_other_methods(tmp_path: Path) -> None:
    bench = small_bench(tmp_path)
    cells = cells_of(small_experiment(grid_scale=10.0), "quick", methods=["oicsr-gl", "gl-out"])
    path = tune(bench, cells, [1000], lambda *args: None)
    before = json.loads(path.read_text())
    stronger = cells_of(small_experiment(grid_scale=20.0), "quick", methods=["oicsr-gl"])
    after = json.loads(tune(bench, stronger, [1000], lambda *args: None).read_text())
    strengths = [sorted(map(float, record["scores"]["oicsr-gl"]["0.5"])) for record in (before, after)]
    assert strengths[1] == [2 * strength for strength in strengths[0]]
    assert after["scores"]["gl-out"] == before["scores"]["gl-out"]


def test_a_combination_takes_the_strength_of_its_regulariser(tmp_path: Path) -> None:
    bench = small_bench(tmp_path)
    cells = cells_of(small_experiment(grid_scale=10.0), "quick", methods=["oicsr-gl"])
    tune(bench, cells, [1000], lambda *args: None)
    (combined,) = cells_of(small_experiment(grid_scale=10.0), "quick", methods=["oicsr-gl+out"])
    own, borrowed = (run_cell(bench, cell) for cell in (cells[0], combined))
    assert borrowed.strength == own.strength
    assert "tuned on validation for oicsr-gl" in borrowed.strength_source


def test_choice_of_strength() -> None:
    assert best_strength({"0.1": [0.5, 0.7], "0.2": [0.6, 0.6], "0.4": [0.9, None]}) == 0.1
    with pytest.raises(ValueError, match="diverged at every strength"):
        best_strength({"0.1": [None]})


def test_controls_train_the_pruned_shape_from_scratch(tmp_path: Path) -> None:
    bench = small_bench(tmp_path)
    ours, equal_epochs, equal_compute = (
        run_cell(bench, small_cell(method, macs_kept=0.5)) for method in ("oicsr-gl", "scratch-e", "scratch-b")
    )
    assert ours.widths == equal_epochs.widths == equal_compute.widths
    assert equal_epochs.epochs["finetune"] == 3  # dense 1, regularized 1, finetune 1
    assert equal_compute.epochs["finetune"] == 5  # (1 + 1) / 0.5 + 1
    assert equal_epochs.states["pruned"]["top1"] != ours.states["pruned"]["top1"]
    assert equal_epochs.states["pruned"] == equal_compute.states["pruned"]
    assert equal_epochs.strength == ours.strength


def test_dense_control_removes_nothing_whatever_the_target(tmp_path: Path) -> None:
    (cell,) = cells_of(small_experiment(), "quick", methods=["dense-long"], macs_kept=[0.5])
    record = run_cell(small_bench(tmp_path), cell)
    assert cell.macs_kept == 1.0
    assert record.states["finetuned"]["macs"] == record.states["dense"]["macs"]
    assert record.states["pruned"]["top1"] == record.states["regularized"]["top1"]
    assert record.epochs == {"dense": 1, "regularized": 1, "finetune": 1}
