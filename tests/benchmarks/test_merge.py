"""Records from elsewhere: verified, never written over others unseen."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import cli
from benchmarks.config import Cell, Phase, run_name
from benchmarks.experiments import EXPERIMENTS
from benchmarks.records.record import Record, read_record, record_path, write_record
from benchmarks.records.rows import ChannelRow
from benchmarks.running.merge import Merged, merge
from tests.benchmarks.fakes import fake_history, fake_record
from tests.benchmarks.small import small_bench, small_cell, small_experiment

CELL = small_cell()
OTHER_HISTORY = [replace(row, train_loss=9.0) for row in fake_history()]
CHANNELS = [ChannelRow("layer0", 0, 1.0, 2.0)]
KNOWN = {"small": small_experiment()}


def put(results: Path, record: Record) -> Path:
    return write_record(results, record, fake_history(record.epochs))


def bring(folder: Path, **options: bool) -> Merged:
    return merge(small_bench(folder), folder / "elsewhere", KNOWN, **options)


def test_record_is_added_with_its_history_and_found_the_second_time(tmp_path: Path) -> None:
    source = put(tmp_path / "elsewhere", fake_record(CELL))
    assert bring(tmp_path).added == [CELL.label]
    target = record_path(tmp_path / "results", CELL)
    assert target.read_bytes() == source.read_bytes()
    assert target.with_name("history.csv").read_bytes() == source.with_name("history.csv").read_bytes()
    again = bring(tmp_path)
    assert again.present == [CELL.label] and not again.added and not again.refused


def test_records_of_an_older_protocol_do_not_keep_newer_ones_out(tmp_path: Path) -> None:
    put(tmp_path / "results", fake_record(small_cell("gl-out"), protocol=1))
    put(tmp_path / "elsewhere", fake_record(CELL))
    assert bring(tmp_path).added == [CELL.label]


def test_a_newer_protocol_takes_the_place_of_an_older_one_and_never_the_other_way(tmp_path: Path) -> None:
    older, newer = fake_record(CELL, 0.8, protocol=1), fake_record(CELL, 0.9)
    target, source = put(tmp_path / "results", older), put(tmp_path / "elsewhere", newer)
    before = target.read_bytes()
    assert bring(tmp_path).replaced == [CELL.label]
    assert target.read_bytes() == source.read_bytes() and read_record(target).protocol == newer.protocol
    assert (target.with_name("protocol-1") / "record.json").read_bytes() == before
    kept = target.read_bytes()
    put(tmp_path / "elsewhere", older)
    for replace_it in (False, True):
        refused = bring(tmp_path, replace=replace_it).refused[CELL.label]
        assert "is of protocol 1" in refused and "under protocol 2, which supersedes it" in refused
        assert target.read_bytes() == kept


def test_company_of_mixed_protocols_is_judged_by_its_own_protocol(tmp_path: Path) -> None:
    put(tmp_path / "results", fake_record(small_cell("gl-out"), protocol=1, provenance={"device_type": "cuda"}))
    put(tmp_path / "results", fake_record(small_cell("none", seed=1)))
    put(tmp_path / "elsewhere", fake_record(CELL))
    assert bring(tmp_path).added == [CELL.label]
    put(tmp_path / "results", fake_record(small_cell("none"), provenance={"device_type": "cuda"}))
    put(tmp_path / "others", fake_record(small_cell("gl-separate")))
    refused = merge(small_bench(tmp_path), tmp_path / "others", KNOWN).refused
    assert "different device type within seed 0" in next(iter(refused.values()))


def test_records_of_other_data_are_refused_within_a_seed(tmp_path: Path) -> None:
    def made_on(data: str, cell: Cell) -> Record:
        return fake_record(cell, provenance={"device_type": "cpu", "data_sha256": data * 64})

    elsewhere = replace(CELL.experiment, name="elsewhere", dataset="imagefolder:/nowhere")
    put(tmp_path / "results", made_on("a", replace(CELL, experiment=elsewhere)))
    put(tmp_path / "others", made_on("b", replace(small_cell("gl-separate"), experiment=elsewhere)))
    refused = merge(small_bench(tmp_path), tmp_path / "others", {}).refused
    assert "different data within seed 0" in next(iter(refused.values()))
    put(tmp_path / "own", made_on("b", CELL))  # the data are here, and others
    refused = merge(small_bench(tmp_path), tmp_path / "own", KNOWN).refused
    assert f"and was {12 * 'b'}" in next(iter(refused.values()))


def test_times_and_machines_may_differ(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere", fake_record(CELL, timing={"dense_seconds": 99.0}, provenance={"device": "another"}))
    put(tmp_path / "results", fake_record(CELL))
    assert bring(tmp_path).present == [CELL.label]


def test_other_complete_record_is_refused_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere", fake_record(CELL, 0.9))
    target = write_record(tmp_path / "results", fake_record(CELL, 0.8), OTHER_HISTORY, CHANNELS)
    target.with_name("record.json.sig").write_text("a signature")
    files = ("record.json", "history.csv", "channels.csv", "record.json.sig")
    kept = {name: target.with_name(name).read_bytes() for name in files}
    before = target.read_bytes()
    refused = bring(tmp_path).refused[CELL.label]
    assert "differs from the complete record" in refused and "'states'" in refused and "--replace" in refused
    assert target.read_bytes() == before
    assert bring(tmp_path, replace=True).replaced == [CELL.label]
    assert read_record(target).states["dense"]["top1"] == 0.9
    assert {path.name: path.read_bytes() for path in target.with_name("replaced").iterdir()} == kept
    assert not target.with_name("record.json.sig").exists()


def test_every_record_that_was_replaced_is_kept(tmp_path: Path) -> None:
    target = put(tmp_path / "results", fake_record(CELL, 0.1))
    texts = [target.read_text()]
    for top1 in (0.2, 0.3):
        put(tmp_path / "elsewhere", fake_record(CELL, top1))
        assert bring(tmp_path, replace=True).replaced == [CELL.label]
        texts.append(target.read_text())
    kept = [target.with_name(name) / "record.json" for name in ("replaced", "replaced-2")]
    assert [path.read_text() for path in kept] == texts[:2] and not target.with_name("replaced-3").exists()
    kept[1].unlink()  # as where the move was cut short: its folder is used again
    put(tmp_path / "elsewhere", fake_record(CELL, 0.4))
    bring(tmp_path, replace=True)
    assert kept[1].read_text() == texts[2]


def test_complete_record_replaces_a_failed_one_and_not_the_other_way(tmp_path: Path) -> None:
    failed = fake_record(CELL, failure={"reason": "it diverged"})
    put(tmp_path / "elsewhere", fake_record(CELL))
    put(tmp_path / "results", failed)
    assert bring(tmp_path).replaced == [CELL.label]
    put(tmp_path / "elsewhere", failed)
    assert bring(tmp_path).present == [CELL.label]
    assert read_record(record_path(tmp_path / "results", CELL)).complete


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ("value", "it was changed"),
        ("torn", "no readable record"),
        ("history", r"history\.csv beside"),
        ("no history", "no readable history"),
        ("place", "wrong place"),
        ("no checksum", "it was changed"),
    ],
)
def test_damaged_records_are_refused(tmp_path: Path, harm: str, message: str) -> None:
    path = put(tmp_path / "elsewhere", fake_record(CELL))
    history = path.with_name("history.csv")
    if harm == "value":
        path.write_text(path.read_text().replace('"top1": 0.75', '"top1": 0.85', 1))
    elif harm == "torn":
        path.write_text(path.read_text()[:-40])
    elif harm == "history":
        history.write_text(history.read_text().replace("1.5", "1.4", 1))
    elif harm == "no history":
        history.unlink()
    elif harm == "place":
        path.parent.rename(path.parent.with_name("quick-none-keep50-seed0"))
    else:
        strip_checksums(path)
    refused = bring(tmp_path).refused
    assert len(refused) == 1 and re.search(message, next(iter(refused.values())))
    assert not (tmp_path / "results" / "runs").exists()


def strip_checksums(path: Path) -> None:
    data = json.loads(path.read_text())
    data["provenance"] = {key: value for key, value in data["provenance"].items() if not key.endswith("sha256")}
    path.write_text(json.dumps(data))


def test_record_without_checksum_gets_one_where_that_is_asked_for(tmp_path: Path) -> None:
    strip_checksums(put(tmp_path / "elsewhere", fake_record(CELL)))
    assert bring(tmp_path, unchecked=True).added == [CELL.label]
    assert "record_sha256" in read_record(record_path(tmp_path / "results", CELL)).provenance


def renamed(**changes: str) -> Record:
    """Return a record of another profile or method, called accordingly."""
    record = fake_record(CELL, **changes)
    return replace(record, run_id=run_name(record.profile, record.method, record.macs_kept, record.seed))


def test_other_configuration_profile_or_method_is_refused(tmp_path: Path) -> None:
    other = small_cell(finetune=Phase(epochs=3, learning_rate=0.01))
    put(tmp_path / "elsewhere", fake_record(other))
    assert "finetune.epochs is 1 now and was 3" in bring(tmp_path).refused[CELL.label]
    put(tmp_path / "elsewhere", renamed(profile="paper"))
    put(tmp_path / "elsewhere", renamed(method="unheard-of"))
    refused = bring(tmp_path).refused
    assert "of profile 'paper'" in refused["small/paper-oicsr-gl-keep50-seed0"]
    assert "unheard-of" in refused["small/quick-unheard-of-keep50-seed0"]


def test_a_target_that_looks_like_a_known_one_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    near = 0.5000000001
    put(tmp_path / "elsewhere", fake_record(CELL, macs_kept=near))
    assert f"macs_kept is 0.5 now and was {near}" in bring(tmp_path).refused[CELL.label]
    others = [fake_record(small_cell("gl-out")), fake_record(small_cell("none"))]
    for record in others:
        put(tmp_path / "results", record)
    refused = merge(small_bench(tmp_path), tmp_path / "elsewhere", {}).refused  # of an unknown experiment
    assert f"different target within keep50: 0.5, {near}" in refused[CELL.label]
    odd = put(tmp_path / "results", fake_record(CELL, macs_kept=near))
    assert cli.main(["report", "--results", str(tmp_path / "results")]) == 1
    assert f"left out: {odd}: it differs from most runs beside it in its target" in capsys.readouterr().err
    with pytest.raises(ValueError, match=f"names 0.5 and {near}; runs of both would be called 'keep50'"):
        small_experiment(macs_kept=(0.5, near))


def test_second_run_of_a_sweep_is_taken_over_into_an_experiment_of_the_same_values(tmp_path: Path) -> None:
    put(tmp_path / "results", fake_record(CELL))
    source = put(tmp_path / "elsewhere", fake_record(CELL, 0.9))
    again = replace(small_experiment(), name="again")
    known = {**KNOWN, "again": again, "other": replace(small_experiment(finetune=Phase(3, 0.01)), name="other")}

    def take(into: str) -> Merged:
        return merge(small_bench(tmp_path), tmp_path / "elsewhere", known, into=into)

    label = f"again/{CELL.run_id}"
    assert take("again").added == [label]
    taken = read_record(record_path(tmp_path / "results", replace(CELL, experiment=again)))
    assert taken.provenance["made_as"] == "small" and taken.states == read_record(source).states
    assert read_record(record_path(tmp_path / "results", CELL)).states != taken.states
    assert take("again").present == [label]
    assert "finetune.epochs is 3 now and was 1" in take("other").refused[CELL.label]
    with pytest.raises(ValueError, match=r"no experiment 'unheard'\..* Known: again, other, small\."):
        take("unheard")
    # from there on it is a record like any other, copied as it is
    moved = merge(small_bench(tmp_path / "third"), tmp_path / "results", known)
    assert label in moved.added
    path = record_path(tmp_path / "third" / "results", replace(CELL, experiment=again))
    assert path.read_bytes() == record_path(tmp_path / "results", replace(CELL, experiment=again)).read_bytes()


def test_command_exits_with_one_where_a_record_was_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(EXPERIMENTS, "small", small_experiment())
    source, results = tmp_path / "elsewhere", tmp_path / "results"
    assert cli.main(["merge", str(source), "--results", str(results)]) == 2
    assert "no records under" in capsys.readouterr().err
    put(source, fake_record(CELL))
    assert cli.main(["merge", str(source), "--results", str(results)]) == 0
    assert "1 added" in capsys.readouterr().out
    put(source, fake_record(CELL, 0.1))
    assert cli.main(["merge", str(source), "--results", str(results)]) == 1
    shown = capsys.readouterr()
    assert "1 refused" in shown.out and f"refused: {CELL.label}" in shown.err
