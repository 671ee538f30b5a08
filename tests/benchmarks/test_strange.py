"""A strange record blocks no report: it is named with its file and left out, and the exit code says so."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import cli
from benchmarks.config import run_name
from benchmarks.experiments import EXPERIMENTS
from benchmarks.methods.registry import find_method
from benchmarks.records.record import Record, RecordError, parse_record, read_record, stamped, write_record
from benchmarks.records.rows import CURVE_POINTS, history_csv
from benchmarks.reporting import build as report
from benchmarks.reporting.gathered import gather
from benchmarks.running.checkpoints import CheckpointStore, CheckpointWarning
from tests.benchmarks.fakes import fake_history, fake_record
from tests.benchmarks.small import small_cell, small_experiment

pytestmark = pytest.mark.usefixtures("blank_figures")  # it is pages and messages that are read here

SIZES = fake_record(small_cell()).states
PRUNED, CONFIG = SIZES["pruned"], fake_record(small_cell()).config


def state(**changes: Any) -> dict[str, Any]:
    record = fake_record(small_cell())
    return {**record.states, "pruned": {**PRUNED, **changes}}


ODD: list[tuple[dict[str, Any], str]] = [
    ({"states": state(top1="high")}, r"states\.pruned\.top1: .*not 'high'"),
    ({"states": state(top1=1.5)}, r"states\.pruned\.top1: .*less than or equal to 1, not '1.5'"),
    ({"states": state(top1=True)}, r"states\.pruned\.top1: .*not 'True'"),
    ({"states": state(macs="1e6")}, r"states\.pruned\.macs: .*not '1e6'"),
    ({"states": {**state(), "pruned": {"top1": 0.5}}}, r"states\.pruned\.val_top1: Field required"),
    ({"states": {**state(), "sold": PRUNED}}, r"states \['sold'\] are unknown"),
    ({"strength": -1.0}, r"strength: .*greater than or equal to 0"),
    ({"strength": "much"}, r"strength: .*not 'much'"),
    ({"seed": -1}, "seed: .*greater than or equal to 0"),
    ({"seed": 10**30}, "'seed' is a number of 25 hexadecimal digits"),
    ({"macs_kept": 0}, "macs_kept: .*greater than 0"),
    ({"widths": {"a": [16]}}, r"widths\.a: .*at least 2 items"),
    ({"widths": {"a": [0, 0]}}, r"widths\.a\.0: .*greater than or equal to 1"),
    ({"widths": {"a\0": [16, 8]}}, "a text with characters that cannot be written"),
    ({"removals": [{}]}, r"removals\.0\.step: Field required"),
    ({"structure": {"regularized": {"near_zero": 0.1, "concentration": 0.1, "cumulative": [1]}}}, "at least 41 items"),
    ({"compute": {"dense": 1}}, "compute has a total"),
    ({"compute": {"total": "many"}}, r"compute\.total: .*not 'many'"),
    ({"epochs": {"dense": 3, "nap": 1}}, "epochs are of dense, regularized, finetune"),
    ({"timing": {"dense_seconds": "long"}}, r"timing\.dense_seconds: .*not 'long'"),
    ({"provenance": {"device_type": 7}}, r"provenance\.device_type: .*not '7'"),
    ({"failure": {"kind": "odd"}, "status": "failed"}, r"failure\.reason: Field required"),
    ({"title": 7}, "'title' is '7'; a text is needed"),
    ({"title": "a\0b"}, r"'title' is 'a\\x00b', a text with characters"),
    ({"config": {"deep": json.loads("[" * 30 + "]" * 30)}}, "nested more than 20 deep"),
]


@pytest.mark.parametrize(("changes", "message"), ODD)
def test_odd_values_are_refused_by_their_names(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecordError, match=f"^here: .*{message}"):
        parse_record(fake_record(small_cell(), **changes).to_json(), "here")


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(text: str) -> None:
    whole = fake_record(small_cell()).to_json()
    with pytest.raises(RecordError, match=r"here.*a finite number is needed"):
        parse_record(whole.replace('"dense_seconds": 10.0', f'"dense_seconds": {text}'), "here")


def test_a_lone_surrogate_is_refused() -> None:
    whole = fake_record(small_cell(), title="TITLE").to_json()
    with pytest.raises(RecordError, match="characters that cannot be written"):
        parse_record(whole.replace("TITLE", "\\ud800"), "here")


def called(record: Record, **changes: Any) -> Record:
    record = replace(record, **changes)
    return replace(record, run_id=run_name(record.profile, record.method, record.macs_kept, record.seed))


def put(results: Path, record: Record) -> Path:
    """Write a record as somebody would who can count checksums."""
    history = fake_history(record.epochs)
    folder = results / "runs" / record.experiment / record.run_id
    folder.mkdir(parents=True)
    (folder / "history.csv").write_text(history_csv(history))
    (folder / "record.json").write_text(stamped(record, history, ()).to_json())
    return folder / "record.json"


def good_records() -> list[Record]:
    return [fake_record(small_cell(method, seed)) for method in ("oicsr-gl", "gl-out", "none") for seed in (0, 1, 2)]


STRANGE: dict[str, tuple[Record, str]] = {
    "unknown method": (called(fake_record(small_cell()), method="unheard-of"), "unheard-of"),
    "text for a number": (fake_record(small_cell(seed=7), states=state(top1="high")), "states.pruned.top1"),
    "other couplings": (fake_record(small_cell(seed=7), widths={"other": [16, 8]}), "its couplings"),
    "other epochs": (fake_record(small_cell(seed=7), epochs={"dense": 1, "finetune": 5}), "finetune is 5, not 1"),
    "other configuration": (fake_record(small_cell(seed=7, batch_size=63)), "batch_size is 63, not 64"),
    "no configuration": (fake_record(small_cell(seed=7), config={}), "batch_size is missing, not 64"),
    "configuration of lists": (fake_record(small_cell(seed=7), config={"precision": ["a"]}), "config.precision"),
    "other dense network": (
        fake_record(
            small_cell(seed=7), states={**SIZES, "dense": {**PRUNED, "macs": 2000000, "macs_with_norm_pool": 9}}
        ),
        "it differs from most runs beside it in its dense network: macs is 2000000, not 1000000",
    ),
    "other device": (
        fake_record(small_cell("gl-separate"), provenance={"device_type": "cuda"}),
        "device type is cuda, not cpu",
    ),
    "other precision": (
        fake_record(small_cell("gl-separate"), config={**CONFIG, "precision": "bfloat16"}),
        "precision is bfloat16, not float32",
    ),
    "no total": (fake_record(small_cell(seed=7), compute={}), "compute has a total"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_report_names_and_leaves_out_one_strange_record(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for record in good_records():
        put(tmp_path / "good", record)
        put(tmp_path / "mixed", record)
    record, reason = STRANGE[kind]
    path = put(tmp_path / "mixed", record)
    assert cli.main(["report", "--results", str(tmp_path / "good")]) == 0
    capsys.readouterr()
    for more in ([], ["--check"]):
        assert cli.main(["report", "--results", str(tmp_path / "mixed"), *more]) == 1
        shown = capsys.readouterr().err
        assert f"left out: {path}" in shown and reason in shown and shown.count("left out") == 1
    page = (tmp_path / "mixed" / "checks.md").read_text()
    assert "Records that are left out" in page and f"runs/small/{record.run_id}" in page
    assert "**1 record is left out** ([why](checks.md))" in (tmp_path / "mixed" / "RESULTS.md").read_text()
    for name in ("small-quick.md", "small-quick.csv"):
        tables = [(tmp_path / folder / "tables" / name).read_bytes() for folder in ("good", "mixed")]
        assert tables[0] == tables[1]


@pytest.mark.parametrize("kind", ["unknown method", "text for a number"])
def test_merge_refuses_it(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    record, reason = STRANGE[kind]
    path = put(tmp_path / "elsewhere", record)
    put(tmp_path / "elsewhere", fake_record(small_cell()))
    assert cli.main(["merge", str(tmp_path / "elsewhere"), "--results", str(tmp_path / "results")]) == 1
    shown = capsys.readouterr()
    assert str(path) in shown.err and reason in shown.err and "1 added" in shown.out


def test_merge_refuses_a_record_whose_parts_are_those_of_another_method(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "elsewhere", fake_record(small_cell(), importance="random"))
    assert cli.main(["merge", str(tmp_path / "elsewhere"), "--results", str(tmp_path / "results")]) == 1
    assert "the importance is 'random'; that of 'oicsr-gl' is 'out-in'" in capsys.readouterr().err


def test_merge_refuses_what_could_not_stand_in_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "results", fake_record(small_cell()))
    put(tmp_path / "elsewhere", fake_record(small_cell("gl-out"), provenance={"device_type": "cuda"}))
    assert cli.main(["merge", str(tmp_path / "elsewhere"), "--results", str(tmp_path / "results")]) == 1
    shown = capsys.readouterr().err
    assert "cannot be compared with" in shown and "different device type within seed 0: cpu, cuda" in shown
    assert cli.main(["report", "--results", str(tmp_path / "results")]) == 0


def test_failed_records_of_another_shape_stay(tmp_path: Path) -> None:
    failed = fake_record(small_cell(seed=9), failure={"reason": "it diverged"}, epochs={"dense": 1}, widths={})
    for record in [*good_records(), failed]:
        put(tmp_path, record)
    found = gather(tmp_path)
    assert not found.left_out and len(found.records) == 10


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def huge(path: Path) -> None:
    os.truncate(path, 65 << 20)


@pytest.mark.parametrize("name", ["record.json", "history.csv"])
@pytest.mark.parametrize("harm", [pipe, folder, huge])
def test_what_is_no_plain_file_is_not_read(tmp_path: Path, name: str, harm: Callable[[Path], None]) -> None:
    path = put(tmp_path, fake_record(small_cell()))
    harm(path.with_name(name))
    with pytest.raises(RecordError, match=f"{name} is no readable"):
        read_record(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("perf/cpu.json", '{"sections": {"latency": {"rows": 7}}}'),
        ("perf/cpu.json", '{"sections": {"latency": 7}}'),
        ("perf/cpu.json", "{}"),
        ("perf/cpu.json", "[]"),
        ("perf/a b.json", '{"sections": {}}'),
        ("coverage.csv", "network\nvgg\n"),
        ("coverage.csv", "\xff"),
        ("tuning/small-quick.json", '{"schema": "oicsr-tuning-1", "chosen": {}, "scores": 7}'),
        ("tuning/small-quick.json", '{"schema": "oicsr-tuning-1", "chosen": {"oicsr-gl": {"0.5": NaN}}}'),
        ("tuning/small-quick.json", '{"schema": "oicsr-tuning-1", "chosen": {"oicsr-gl": {"0.5": true}}}'),
        ("tuning/small-quick.json", '{"schema": "oicsr-tuning-1", "chosen": {"oicsr-gl": {"half": 0.1}}}'),
        ("tuning/small-quick.json", '{"schema": "oicsr-tuning-1", "chosen": {"oicsr-gl": {"-1": 0.1}}}'),
        (
            "tuning/small-quick.json",
            '{"schema": "oicsr-tuning-1", "chosen": {}, "scores": {"oicsr-gl": {"0.5": {"0.1": ["a"]}}}}',
        ),
        ("tuning/small-quick.json", '{"schema": "oicsr-tuning-2", "chosen": {}, "reason": 7}'),
        ("tuning/small-quick.json", '{"schema": "oicsr-tuning-2", "chosen": {}, "reason": {"oicsr-gl": "inside"}}'),
        ("tuning/small-quick.json", '{"schema": "oicsr-tuning-2", "chosen": {}, "reason": {"oicsr-gl": {"0.5": 7}}}'),
    ],
)
def test_other_strange_files_of_a_results_folder_are_named(
    tmp_path: Path, name: str, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for record in good_records():
        put(tmp_path, record)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content, encoding="latin-1")
    assert cli.main(["report", "--results", str(tmp_path)]) == 2
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize("name", ["perf/cpu.json", "coverage.csv", "tuning/small-quick.json", "reliability.json"])
@pytest.mark.parametrize("harm", [pipe, folder])
def test_no_reader_waits_for_a_pipe(
    tmp_path: Path, name: str, harm: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    for record in good_records():
        put(tmp_path, record)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    harm(path)
    assert cli.main(["report", "--results", str(tmp_path)]) == 2
    assert str(path) in (shown := capsys.readouterr().err) and "no plain file" in shown


def test_pipes_in_place_of_sweeps_and_checkpoints_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "elsewhere", fake_record(small_cell()))
    (tmp_path / "elsewhere" / "sweeps").mkdir()
    os.mkfifo(tmp_path / "elsewhere" / "sweeps" / "small.json")
    assert cli.main(["merge", str(tmp_path / "elsewhere"), "--results", str(tmp_path / "results")]) == 1
    assert "small.json is not a readable experiment" in capsys.readouterr().err
    store = CheckpointStore(tmp_path / "checkpoints")
    store.save("key", {"epoch": 1}, {"epoch": 1})
    for path in (tmp_path / "checkpoints" / "key").iterdir():
        pipe(path)
    with pytest.warns(CheckpointWarning, match="it is no plain file"):
        assert store.load("key") is None
    assert store.progress("key") is None


ESCAPE = "\x1b]0;title\x07\x1b[2J"  # renames a terminal's window and clears it


def test_names_of_files_and_fields_do_not_steer_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = replace(small_experiment(), name="pictures", dataset=f"imagefolder:/nowhere/{ESCAPE}")
    monkeypatch.setitem(EXPERIMENTS, "small", small_experiment())
    monkeypatch.setitem(EXPERIMENTS, "pictures", pictures)
    put(tmp_path, fake_record(small_cell()))
    assert cli.main(["report", "--results", str(tmp_path)]) == 0
    (tmp_path / "tables" / f"{ESCAPE}.md").touch()
    folders = ["--results", str(tmp_path), "--checkpoints", str(tmp_path / "checkpoints"), "--device", "cpu"]
    assert cli.main(["report", "--check", "--results", str(tmp_path)]) == 1
    path = put(tmp_path, fake_record(small_cell("none"), timing={ESCAPE: "long"}))
    assert cli.main(["status", "small", *folders]) == 0
    assert cli.main(["run", "small", "--plan", *folders]) == 0
    assert path.is_file()  # a plan changes nothing
    assert cli.main(["run", "pictures", "--methods", "none", "--jobs", "1", "--wandb", "disabled", *folders]) == 1
    shown = capsys.readouterr()
    text = shown.out + shown.err
    assert text.count(r"\x1b[2J") >= 4 and not any(character in text for character in "\x1b\x07")


def test_energy_is_drawn_of_the_records_that_hold_it(tmp_path: Path) -> None:
    structure = {"regularized": {"near_zero": 0.1, "concentration": 0.1, "cumulative": [0.5] * CURVE_POINTS}}
    put(tmp_path, fake_record(small_cell()))
    put(tmp_path, fake_record(small_cell(seed=1), structure=structure))
    assert cli.main(["report", "--results", str(tmp_path)]) == 0
    assert (tmp_path / "figures" / "small-quick-energy.png").is_file()


@pytest.mark.parametrize("epochs", [{}, {"finetune": 1}])
def test_a_table_of_runs_without_a_dense_phase(tmp_path: Path, epochs: dict[str, int]) -> None:
    put(tmp_path, fake_record(small_cell(), epochs=epochs, compute={"total": 5}))
    assert cli.main(["report", "--results", str(tmp_path)]) == 0
    assert (tmp_path / "tables" / "small-quick.md").is_file()


def test_nothing_strange_is_left_out_of_a_plain_folder(tmp_path: Path) -> None:
    path = write_record(tmp_path, fake_record(small_cell()), fake_history())
    assert gather(tmp_path).left_out == {} and read_record(path).complete
    artefacts = report.build(tmp_path)
    assert not [page for page in ("RESULTS.md", "checks.md") if b"left out" in artefacts[tmp_path / page]]
    assert b"Left out" not in artefacts[tmp_path / "experiments" / "small.md"]
    older = replace(fake_record(small_cell("gl-out"), protocol=1), provenance={"device_type": "cpu"})
    put(tmp_path, older)
    assert gather(tmp_path).left_out == {}
    page = report.build(tmp_path)[tmp_path / "experiments" / "small.md"].decode()
    assert "Left out: 1 record of an older protocol." in page and find_method("gl-out").title not in page
