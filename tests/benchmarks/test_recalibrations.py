"""What the number and augmentation of images do to recalibration: measured on validation images, kept, read back."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest

from benchmarks.cli import main
from benchmarks.experiments import EXPERIMENTS
from benchmarks.records import recalibrations
from benchmarks.records.recalibrations import (
    Measured,
    Recalibrations,
    all_recalibrations,
    read_recalibrations,
    write_recalibrations,
)
from benchmarks.records.record import RecordError
from benchmarks.running.run import _Run, validate, validate_recalibrations
from tests.benchmarks.fakes import write_at_once
from tests.benchmarks.small import small_bench, small_cell, small_experiment

ROW = Recalibrations("none", 0.5, 0, 0.0, 0.2, 0.8, {64: 0.7, 128: 0.8}, {64: 0.6, 128: 0.7})
MEASURED = Measured("digits", "cpu", 2, 4096, (ROW,), {"commit": "0" * 40})


def test_the_protocols_own_images_give_what_a_run_gives(tmp_path: Path) -> None:
    bench, cell = small_bench(tmp_path), small_cell("none", recalibration_images=64)
    row = validate_recalibrations(bench, cell, 0.0, (64, 128, 4096), "cpu")
    assert set(row.augmented) == set(row.clean) == {64, 128}  # an epoch has 128 images
    assert row.protocol == row.augmented[64] == pytest.approx(validate(bench, cell, 0.0).top1, abs=1e-6)
    assert 0 <= row.pruned <= 1


def test_images_differ_in_number_and_augmentation_and_repeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int | None, bool]] = []
    original = _Run.recalibrate

    def noted(run: _Run, model: object, images: int | None = None, *, augmented: bool = True) -> None:
        seen.append((images, augmented))
        original(run, model, images, augmented=augmented)  # type: ignore[arg-type]

    monkeypatch.setattr(_Run, "recalibrate", noted)
    bench, cell = small_bench(tmp_path), small_cell("none")
    first, again = (validate_recalibrations(bench, cell, 0.0, (64, 128), "cpu") for _ in range(2))
    assert first == again
    assert seen[:5] == [(64, True), (128, True), (64, False), (128, False), (None, True)]


def test_two_commands_that_measure_at_once_keep_each_others_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ROW, replace(ROW, seed=1)
    writers = [partial(write_recalibrations, tmp_path, replace(MEASURED, rows=(row,))) for row in rows]
    path = write_at_once(monkeypatch, recalibrations, writers)
    assert read_recalibrations(path).rows == rows


def test_measurements_are_read_back_and_replaced_by_newer_ones(tmp_path: Path) -> None:
    path = write_recalibrations(tmp_path, MEASURED)
    assert read_recalibrations(path) == MEASURED
    newer, other = replace(ROW, pruned=0.3), replace(ROW, seed=1)
    write_recalibrations(tmp_path, replace(MEASURED, rows=(newer, other)))
    assert [found.rows for found in all_recalibrations(tmp_path)] == [(newer, other)]
    write_recalibrations(tmp_path, replace(MEASURED, version=3, rows=(other,)))
    assert read_recalibrations(path).rows == (other,)  # nothing of an older protocol beside the new one


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "another"},
        {"rows": [{"method": "none"}]},
        {"rows": 3},
        {"experiment": "../up"},
        {"version": "two"},
    ],
)
def test_anything_else_is_refused_with_the_file_and_what_to_do(tmp_path: Path, change: dict[str, object]) -> None:
    path = write_recalibrations(tmp_path, MEASURED)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(RecordError, match=r"digits-cpu.json holds no readable measurements .* measure again"):
        all_recalibrations(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"), [("pruned", 1.5), ("protocol", True), ("macs_kept", 0), ("clean", {"64": -1})]
)
def test_values_that_cannot_be_are_refused(tmp_path: Path, name: str, value: object) -> None:
    path = write_recalibrations(tmp_path, MEASURED)
    data = json.loads(path.read_text())
    data["rows"][0][name] = value
    path.write_text(json.dumps(data))
    with pytest.raises(RecordError, match="measure again"):
        read_recalibrations(path)


def test_the_command_measures_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ["--results", str(tmp_path / "results"), "--checkpoints", str(tmp_path / "checkpoints")]
    with patch.dict(EXPERIMENTS, {"small": small_experiment()}):
        arguments = ["recalibration", "small", "--methods", "none", "--images", "64,128", "--device", "cpu", *folders]
        assert main([*arguments, "--precision", "float32"]) == 0
        assert main([*arguments[:-4], "--images", "0", *folders]) == 2
    [found] = all_recalibrations(tmp_path / "results")
    assert found.experiment == "small" and found.provenance["command"].startswith("python -m benchmarks")
    assert "small/quick-none-keep50-seed0: pruned" in capsys.readouterr().out
