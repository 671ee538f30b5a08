"""Runs end to end: five states, shared stages, equal runs, failures that leave a record."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from baselines.method import Target
from benchmarks.config import PROTOCOL, Cell, Phase
from benchmarks.methods.registry import METHODS, REGULARIZERS, find_method
from benchmarks.models import build_model
from benchmarks.records.record import (
    Record,
    RecordError,
    parse_record,
    read_beside,
    read_record,
    read_records,
    record_path,
    write_record,
)
from benchmarks.records.rows import EpochRow
from benchmarks.records.strengths import SCHEMA, UNTUNED, tuning_path
from benchmarks.running.cells import cells_of
from benchmarks.running.merge import merge
from benchmarks.running.run import _Run, run_cell
from benchmarks.running.stage_training import StageResult, StageTrainer
from benchmarks.running.stages import Stage, stages_of
from benchmarks.running.survey import survey
from oicsr import Coupling, count_macs, find_couplings, out_in_energy, remove_channels, row_norms
from oicsr.recalibration import NotFiniteError
from tests.benchmarks.fakes import fake_history, fake_record
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

    def waiting(self, cell: Cell, reason: str) -> None:
        pass

    def run_finished(self, cell: Cell, record: Record, history: Sequence[EpochRow]) -> None:
        pass


def without_times(record: Record) -> dict[str, Any]:
    values = dataclasses.asdict(record)
    del values["timing"], values["provenance"]
    return values


def test_a_run_leaves_a_record_of_five_states(tmp_path: Path) -> None:
    bench, cell = small_bench(tmp_path), small_cell()
    record = run_cell(bench, cell)
    assert record.complete and record.protocol == PROTOCOL == 2
    assert list(record.states) == ["dense", "regularized", "pruned", "recalibrated", "finetuned"]
    states = record.states
    assert states["dense"]["macs"] == states["regularized"]["macs"] > states["pruned"]["macs"]
    assert states["pruned"]["macs"] == states["recalibrated"]["macs"] == states["finetuned"]["macs"]
    assert states["pruned"]["loss"] != states["recalibrated"]["loss"]
    assert states["pruned"]["macs"] == pytest.approx(0.5 * states["dense"]["macs"], rel=0.01)
    assert states["finetuned"]["params"] < states["dense"]["params"]
    assert sum(after < before for before, after in record.widths.values()) > 0
    assert record.epochs == {"dense": 1, "regularized": 1, "finetune": 1}
    assert read_record(record_path(bench.results, cell)).to_json() == record.to_json()
    assert record.provenance["versions"]["torch"] == torch.__version__.split("+")[0]
    history = record_path(bench.results, cell).with_name("history.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in history] == ["phase", "dense", "regularized", "finetune"]


def test_rescaling_changes_the_fine_tuning_alone(tmp_path: Path) -> None:
    rescaled, as_is = (
        run_cell(small_bench(tmp_path), small_cell(rescale=rescale)) for rescale in ("dense-norm", "none")
    )
    for state in ("dense", "regularized", "pruned", "recalibrated"):
        assert rescaled.states[state] == as_is.states[state]
    assert rescaled.states["finetuned"]["weights_sha256"] != as_is.states["finetuned"]["weights_sha256"]


def test_fine_tuning_begins_with_the_rows_of_the_dense_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, dict[str, float]] = {}
    train = StageTrainer.train

    def watched(self: StageTrainer, stage: Stage, model: torch.nn.Module, *rest: Any, **more: Any) -> StageResult:
        if stage.name == "finetune":
            seen["start"] = row_norms(model)
        result = train(self, stage, model, *rest, **more)
        if stage.name == "dense":
            seen["dense"] = row_norms(model)
        return result

    monkeypatch.setattr(StageTrainer, "train", watched)
    run_cell(small_bench(tmp_path), small_cell())
    names = [name for name in seen["dense"] if "conv" in name]
    assert names and all(seen["start"][name] == pytest.approx(seen["dense"][name], rel=1e-5) for name in names)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"rescale": "all"}, "rescale is 'all'"), ({"recalibration_images": 0}, "recalibration_images is 0")],
)
def test_values_that_cannot_be_meant_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_cell(**changes)


def test_networks_without_running_statistics_stay_as_they_are(tmp_path: Path) -> None:
    cell = small_cell("none")
    cell = dataclasses.replace(cell, experiment=dataclasses.replace(cell.experiment, model="digits-plain"))
    states = run_cell(small_bench(tmp_path), cell).states
    assert states["recalibrated"] == states["pruned"]


def test_a_record_of_an_older_protocol_is_made_again_and_kept_beside(tmp_path: Path) -> None:
    bench, cell = small_bench(tmp_path), small_cell()
    path = write_record(bench.results, fake_record(cell, protocol=1, states=states_of_protocol_1(cell)), fake_history())
    before, history = path.read_text(), path.with_name("history.csv").read_text()
    found = survey(bench, [cell])
    assert found.todo == [cell] and [record.protocol for record in found.outdated] == [1] and not found.complete
    assert path.read_text() == before  # to look changes nothing
    assert run_cell(bench, cell).protocol == 2
    kept = path.with_name("protocol-1") / "record.json"
    assert kept.read_text() == before and kept.with_name("history.csv").read_text() == history
    assert path.with_name("history.csv").read_text() != history
    assert read_beside(kept, parse_record(before, "kept")).history == fake_history()
    assert len(read_records(bench.results)) == 1 and survey(bench, [cell]).todo == []


def states_of_protocol_1(cell: Cell) -> dict[str, Any]:
    return {name: state for name, state in fake_record(cell).states.items() if name != "recalibrated"}


def test_training_is_shared_between_targets_unless_it_depends_on_them() -> None:
    def key(method: str, **changes: Any) -> str:
        return stages_of(small_cell(method, **changes), _method(method), 0.1, "cpu")[1].key

    assert key("oicsr-gl") == key("oicsr-gl", macs_kept=0.3) == key("oicsr-gl-uniform")
    assert key("greg1") != key("greg1", macs_kept=0.3) and key("greg1") != key("greg1+l1+uniform")


def test_a_regularizer_learns_what_will_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    targets: list[Target] = []

    def watched(couplings: Sequence[Coupling], strength: float, target: Target) -> None:
        targets.append(target)

    spec = dataclasses.replace(REGULARIZERS["none"], make_for_target=watched)
    method = dataclasses.replace(METHODS["none"], regularizer=spec)
    monkeypatch.setitem(METHODS, "none", method)
    record = run_cell(small_bench(tmp_path), small_cell("none", steps=2))
    shares = [target.macs_kept for target in targets]  # each twice: one does not train, but tells its checkpoint apart
    assert record.complete and shares == [0.75, 0.75, 0.5, 0.5]
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


def test_statistics_that_are_not_finite_are_a_divergence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search then tries other strengths, instead of giving up the method."""

    def refuse(*args: object) -> None:
        raise NotFiniteError("batch 0 makes norm.running_var NaN or infinite")

    monkeypatch.setattr("benchmarks.running.run.recalibrate", refuse)
    record = run_cell(small_bench(tmp_path), small_cell())
    assert record.failure is not None and record.failure["kind"] == "DivergedError"
    assert "recalibration: batch 0 makes norm.running_var" in record.failure["reason"]


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


@pytest.mark.parametrize("changes", [{}, {"steps": 2}, {"steps": 2, "cap_of": "current", "max_removed": 0.2}])
def test_a_target_out_of_reach_is_said_before_any_training(tmp_path: Path, changes: dict[str, Any]) -> None:
    bench, log = small_bench(tmp_path), Log()
    cell = small_cell(macs_kept=0.001, **changes)
    record = run_cell(dataclasses.replace(bench, observers=[log]), cell)
    assert record.failure is not None and record.failure["kind"] == "OutOfReachError"
    assert "is out of reach" in record.failure["reason"] and record.failure["last_good_epoch"] is None
    assert log.trained == [] and not bench.store.folder.exists()


def test_a_target_within_reach_of_several_removals_is_not_refused(tmp_path: Path) -> None:
    cell = small_cell(macs_kept=0.5, steps=3, cap_of="current", max_removed=0.3)
    assert run_cell(small_bench(tmp_path), cell).complete  # one removal would not do


def test_a_selection_that_fails_of_meaningless_scores_is_not_judged_by_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = find_method("oicsr-gl")
    given: list[Any] = []

    def choosy(scores: Any, *arguments: Any, **options: Any) -> Any:
        given.append(scores)
        if len(given) == 1:
            raise AssertionError("such scores cannot be")
        return method.selection.select(scores, *arguments, **options)

    selection = dataclasses.replace(method.selection, select=choosy)
    monkeypatch.setitem(METHODS, "oicsr-gl", dataclasses.replace(method, selection=selection))
    assert run_cell(small_bench(tmp_path), small_cell()).complete and len(given) == 2


def test_run_that_fails_right_after_its_last_removal_leaves_a_record_that_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("benchmarks.running.run._Run.measure_now", fail)
    bench, cell = small_bench(tmp_path), small_cell(steps=2)
    run_cell(bench, cell)
    record = read_record(record_path(bench.results, cell))
    assert record.failure is not None and record.failure["reason"] == "out of memory"
    assert [removal["step"] for removal in record.removals] == [0] and record.widths
    assert [len(survey(bench, [cell]).failed), survey(bench, [cell]).damaged] == [1, []]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"removals": [{"step": 0}]}, r"removals\.0\.macs: Field required"), ({"seed": -1}, "seed: .* not '-1'")],
)
def test_a_record_that_could_not_be_read_is_not_written(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecordError, match=message):
        write_record(tmp_path, fake_record(small_cell(), **changes), fake_history())
    assert not list(tmp_path.iterdir())


def test_a_state_without_a_finite_loss_is_a_failed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(run: _Run, model: nn.Module) -> None:
        next(model.parameters()).data.fill_(torch.nan)

    monkeypatch.setattr(_Run, "recalibrate", spoil)
    record = run_cell(small_bench(tmp_path), small_cell())
    assert record.failure is not None and record.failure["kind"] == "DivergedError"
    assert record.failure["reason"].startswith("evaluated on the test split: the loss is nan")
    assert list(record.states) == ["dense", "regularized", "pruned"]


def test_a_checkpoint_without_a_finite_loss_is_a_failed_run(tmp_path: Path) -> None:
    bench, cell = small_bench(tmp_path), small_cell()
    assert run_cell(bench, cell).complete
    (key, *_) = (stage.key for stage in stages_of(cell, find_method(cell.method), 0.0, "cpu"))
    saved = bench.store.load(key)
    assert saved is not None
    saved["scores"]["validation"]["loss"] = math.nan
    bench.store.save(key, saved, {"epoch": 1, "finished": True, "seconds": [1.0], "machine": "m"})
    record = run_cell(bench, cell)
    assert record.failure is not None and record.failure["reason"].startswith(f"checkpoint {key}: the loss is nan")


def test_finished_runs_are_not_run_again_and_other_configurations_refused(tmp_path: Path) -> None:
    bench, cell = small_bench(tmp_path), small_cell()
    run_cell(bench, cell)
    assert survey(bench, [cell]).todo == [] and len(survey(bench, [cell]).complete) == 1
    with pytest.raises(RecordError, match=r"finetune\.epochs is 3 now and was 1.*--results"):
        survey(bench, [small_cell(finetune=Phase(epochs=3, learning_rate=0.01))])


def test_a_search_after_some_runs_names_all_that_have_another_strength(tmp_path: Path) -> None:
    bench, cells = small_bench(tmp_path), [small_cell(seed=seed) for seed in range(3)]
    for cell in cells[:2]:
        write_record(bench.results, fake_record(cell, strength=0.04, strength_source=UNTUNED), fake_history())
    chosen = {"schema": SCHEMA, "chosen": {"oicsr-gl": {"0.5": 0.5}}}
    path = tuning_path(bench.tuning, "small", "quick")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(chosen))
    with pytest.raises(RecordError) as caught:
        survey(bench, cells)
    assert re.search(
        r"keep50-seed0 was made with another configuration.*strength is 0.5 now and was 0.04; the strength is "
        r"'tuned on validation.*' now and was 'middle of the grid, not tuned'\. "
        r"So were .*/quick-oicsr-gl-keep50-seed1\. Move these folders away",
        str(caught.value),
    )


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


def test_every_damaged_record_of_a_run_is_kept(tmp_path: Path) -> None:
    bench, cell = small_bench(tmp_path), small_cell()
    path = record_path(bench.results, cell)
    path.parent.mkdir(parents=True)
    for text in "abc":
        path.write_text(text)
        (said,) = survey(bench, [cell]).damaged
    kept = {each.name: each.read_text() for each in path.parent.iterdir()}
    assert kept == {"record.json.damaged": "a", "record.json.damaged-2": "b", "record.json.damaged-3": "c"}
    assert said.endswith("; renamed to record.json.damaged-3")


@pytest.mark.parametrize("name", ["record.json", "history.csv"])
def test_a_record_that_cannot_be_read_just_now_is_not_taken_for_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    bench, cell = small_bench(tmp_path), small_cell()
    path = write_record(bench.results, fake_record(cell), fake_history())
    before = sorted(path.parent.iterdir())

    def fail(at: Path) -> str:
        if at.name == name:
            raise OSError(errno.EIO, "Input/output error", str(at))
        return at.read_text()

    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.records.record.read_plain", fail)
        with pytest.raises(OSError, match=f"Input/output error: .*{name}"):
            survey(bench, [cell])
        with pytest.raises(OSError, match=f"Input/output error: .*{name}"):  # nor is it replaced
            merge(bench, bench.results, {})
        with pytest.raises(RecordError, match="1 unreadable"):  # a report leaves it out, and says why
            read_records(bench.results)
    assert sorted(path.parent.iterdir()) == before and survey(bench, [cell]).todo == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "other"}, "no record of schema"),
        ({"states": {"dense": {"top1": 97.0}}}, "states"),
        ({"status": "done"}, "status is 'done'"),
        ({"seed": "0"}, "seed: Input should be a valid integer, not '0'"),
        ({"surprise": 1}, r"unknown \['surprise'\]"),
        ({"run_id": "another"}, "which it calls 'another'"),
    ],
)
def test_records_that_are_none_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    bench, cell = small_bench(tmp_path), small_cell()
    run_cell(bench, cell)
    path = record_path(bench.results, cell)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RecordError, match=message):
        read_record(path)


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


def test_dense_control_removes_nothing_at_any_target(tmp_path: Path) -> None:
    (cell,) = cells_of(small_experiment(), "quick", methods=["dense-long"], macs_kept=[0.5])
    record = run_cell(small_bench(tmp_path), cell)
    assert cell.macs_kept == 1.0
    assert record.states["finetuned"]["macs"] == record.states["dense"]["macs"]
    assert record.states["pruned"]["top1"] == record.states["regularized"]["top1"]
    assert record.epochs == {"dense": 1, "regularized": 1, "finetune": 1}
