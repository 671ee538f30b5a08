"""Names from files never become paths that lead elsewhere, and nothing is written outside of the folders given."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import cli
from benchmarks.config import Cell, Experiment, check_name, run_name
from benchmarks.experiments import EXPERIMENTS
from benchmarks.machine.atomic_write import write_atomically
from benchmarks.machine.leases import lease_path, try_lease
from benchmarks.machine.paths import OutsideError, inside
from benchmarks.records.record import Record, RecordError, find_records, parse_record, write_record
from benchmarks.records.strengths import tuning_path
from benchmarks.records.table_names import whose_table
from benchmarks.reporting import build as report
from benchmarks.running.adhoc import SCHEMA, ExperimentError, find_any, parse_experiment, save_experiment
from benchmarks.running.checkpoints import CheckpointStore
from benchmarks.running.merge import bring_in_sweeps, merge
from tests.benchmarks.fakes import fake_history, fake_record
from tests.benchmarks.small import small_bench, small_cell, small_experiment

BAD_NAMES = [
    *("../../README", "x/../../../README", "/etc/passwd", "a/b", "a\\b", "..", ".hidden", "-rf", "", "a b", "a\0b"),
    *("a\nb", "ä", "x" * 500, 'x" onmouseover="', "$(id)", "COM1:", "=cmd", "+1", "a%2fb", "<script>", "`id`"),
]


def files_under(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("kind", ["experiment", "profile", "method"])
def test_one_check_refuses_every_name_that_is_no_plain_one(kind: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"the {kind} is called"):
        check_name(kind, name)


@pytest.mark.parametrize("name", ["oicsr-gl+out-in", "tp-bn-scale", "cifar10-resnet56", "timm-vit.in1k", "a_b"])
def test_plain_names_pass(name: str) -> None:
    check_name("method", name)
    assert Cell(small_experiment(), "quick", name, 0, 0.5).method == name


def record_named(**changes: str) -> Record:
    record = fake_record(small_cell(), **changes)
    return replace(record, run_id=run_name(record.profile, record.method, record.macs_kept, record.seed))


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("field", ["experiment", "profile", "method"])
def test_records_with_such_names_are_refused(field: str, name: str) -> None:
    with pytest.raises(RecordError, match=r"^here: (the (experiment|profile|method) is called|'\w+' is )"):
        parse_record(record_named(**{field: name}).to_json(), "here")


def test_a_run_is_called_by_its_profile_method_target_and_seed() -> None:
    with pytest.raises(RecordError, match="holds the run 'quick-oicsr-gl-keep50-seed0', which it calls 'another'"):
        parse_record(fake_record(small_cell(), run_id="another").to_json(), "here")


@pytest.mark.parametrize("command", [["report"], ["merge"]])
@pytest.mark.parametrize("field", ["experiment", "profile"])
def test_a_record_that_names_a_place_outside_changes_nothing_there(
    tmp_path: Path, command: list[str], field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = record_named(**{field: "x/../../../README"})
    honest = write_record(tmp_path / "elsewhere", record_named(), fake_history())
    place = tmp_path / "elsewhere" / "runs" / "odd" / "odd"
    place.mkdir(parents=True)
    (place / "record.json").write_text(bad.to_json())
    (place / "history.csv").write_bytes(honest.with_name("history.csv").read_bytes())
    before = files_under(tmp_path)
    results = tmp_path / "elsewhere" if command == ["report"] else tmp_path / "results"
    source = [] if command == ["report"] else [str(tmp_path / "elsewhere")]
    assert cli.main([*command, *source, "--results", str(results)]) == 1
    assert f"the {field} is called 'x/../../../README'" in capsys.readouterr().err
    new = files_under(tmp_path) - before
    assert all(name.startswith(f"{results.name}/") for name in new)


@pytest.mark.parametrize("name", ["../../outside", "x/../../../outside", "a b"])
def test_profiles_of_sweep_files_are_checked(name: str) -> None:
    experiment = small_experiment()
    data = {"schema": SCHEMA, **asdict(experiment), "profiles": {name: asdict(experiment.profiles["quick"])}}
    with pytest.raises(ExperimentError, match=r"^here: .*the profile is called"):
        parse_experiment(json.dumps(data), "here")


def sweep_text(**changes: Any) -> str:
    return json.dumps({"schema": SCHEMA, **asdict(small_experiment()), **changes})


def test_a_kept_sweep_is_called_like_its_file(tmp_path: Path) -> None:
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "other.json").write_text(sweep_text())
    with pytest.raises(ExperimentError, match=r"other.json holds an experiment called 'small'"):
        find_any("other", tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dataset", "imagefolder:/home/someone/pictures"),
        ("dataset", "imagefolder:.@32"),
        ("weights", "/models/model.pt"),
    ],
)
def test_merged_sweeps_do_not_say_what_is_read_here(
    tmp_path: Path, field: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, results = tmp_path / "elsewhere", tmp_path / "results"
    write_record(source, record_named(), fake_history())
    (source / "sweeps").mkdir()
    theirs = source / "sweeps" / "small.json"
    theirs.write_text(sweep_text(**{field: value}))
    assert cli.main(["merge", str(source), "--results", str(results)]) == 1
    shown = capsys.readouterr()
    assert f"{theirs}: the {field} is {value!r}, a place on this machine" in shown.err and "1 added" in shown.out
    assert not (results / "sweeps").exists()
    save_experiment(parse_experiment(theirs.read_text(), "theirs"), results)  # by somebody who means it
    assert bring_in_sweeps(source, results) == {}


def test_pretrained_weights_of_the_hub_are_no_place(tmp_path: Path) -> None:
    write_record(tmp_path / "elsewhere", record_named(), fake_history())
    save_experiment(replace(small_experiment(), weights="pretrained"), tmp_path / "elsewhere")
    assert bring_in_sweeps(tmp_path / "elsewhere", tmp_path / "results") == {}
    assert (tmp_path / "results" / "sweeps" / "small.json").is_file()


TABLES = [("paper", "pruned"), ("field", "x"), ("latency", "cpu"), ("digits-cpu", "methods")]


@pytest.mark.parametrize(("experiment", "profile"), TABLES)
def test_merge_takes_no_table_of_others(tmp_path: Path, experiment: str, profile: str) -> None:
    source = tmp_path / "elsewhere"
    kept = replace(small_experiment(), name=experiment, profiles={profile: small_experiment().profiles["quick"]})
    write_record(source, record_named(experiment=experiment, profile=profile), fake_history())
    save_experiment(kept, source)
    said = [*bring_in_sweeps(source, tmp_path / "results").values()]
    said += merge(small_bench(tmp_path), source, EXPERIMENTS).refused.values()
    assert len(said) == 2 and all("belongs to" in reason for reason in said)
    assert not (tmp_path / "results").exists()


def test_report_gives_a_table_to_one_experiment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        record = fake_record(small_cell(seed=seed), 0.5, experiment="a-b")
        write_record(tmp_path, record, fake_history())
    before = report.build(tmp_path)
    odd = [record_named(experiment="a", profile="b-quick"), record_named(experiment="a-b-quick", profile="kept")]
    paths = [write_record(tmp_path, record, fake_history()) for record in odd]
    assert cli.main(["report", "--results", str(tmp_path)]) == 1
    shown = capsys.readouterr().err
    for path in paths:
        assert f"left out: {path}: the name of its table, " in shown and "belongs to experiment 'a-b'" in shown
    names = [path for path in before if path.parent.name in ("tables", "figures")]
    assert names and all(path.read_bytes() == before[path] for path in names)


def test_no_two_experiments_share_a_table() -> None:
    pairs = [(name, profile) for name, experiment in EXPERIMENTS.items() for profile in experiment.profiles]
    assert [pair for pair in pairs if whose_table(*pair, pairs)] == []
    assert whose_table("a-b", "c", [("a", "b-c")]) == "experiment 'a', profile 'b-c'"
    assert whose_table("a", "b-c", [("a-b", "c")]) == "experiment 'a-b', profile 'c'"
    assert whose_table("a-b", "kept", [("a", "b")]) == "experiment 'a', profile 'b'"
    assert whose_table("a", "b", [("a", "b"), ("a", "b-c"), ("ab", "b")]) is None


def test_merged_sweeps_add_to_known_ones_and_change_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, results = tmp_path / "elsewhere", tmp_path / "results"
    kept = small_experiment()
    path = save_experiment(kept, results)
    (source / "sweeps").mkdir(parents=True)
    write_record(source, record_named(), fake_history())
    theirs = source / "sweeps" / "small.json"
    for changes, message in (
        ({"model": "vgg16"}, "model is 'vgg16', not 'digits-resnet'"),
        ({"profiles": {"quick": {**asdict(kept.profiles["quick"]), "batch_size": 1}}}, "'quick' has other values"),
        ({"profiles": {"../x": asdict(kept.profiles["quick"])}}, "the profile is called '../x'"),
        ({"profiles": {"quick": {**asdict(kept.profiles["quick"]), "methods": ["what"]}}}, "'what'"),
    ):
        before = path.read_bytes()
        theirs.write_text(sweep_text(**changes))
        assert cli.main(["merge", str(source), "--results", str(results)]) == 1
        shown = capsys.readouterr().err
        assert f"refused: {theirs}" in shown and message in shown and path.read_bytes() == before
    theirs.write_text(
        sweep_text(title="Theirs", profiles={"quick": {**asdict(kept.profiles["quick"]), "seeds": [0, 7]}})
    )
    assert cli.main(["merge", str(source), "--results", str(results)]) == 0
    merged = find_any("small", results)
    assert merged.title == kept.title and merged.profiles["quick"].seeds == (0, 7)


def test_paths_stay_in_their_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "in").symlink_to(tmp_path / "out")
    (tmp_path / "in" / "link").symlink_to(tmp_path)
    assert inside(tmp_path / "in", "a", "b") == tmp_path / "in" / "a" / "b"  # the folder itself may be a link
    for parts in (("..",), ("a", "../../b"), ("/etc/passwd",), ("link", "a")):
        with pytest.raises(OutsideError, match="leads out of"):
            inside(tmp_path / "in", *parts)


def linked(folder: Path, name: str) -> Path:
    """Let a name in a folder lead to a file or folder beside it; return where it leads."""
    outside = folder.parent / "outside"
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    outside.mkdir(exist_ok=True)
    (folder / name).symlink_to(outside)
    return outside


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("runs/small", lambda results: write_record(results, record_named(), fake_history())),
        ("runs", lambda results: write_record(results, record_named(), fake_history())),
        ("sweeps", lambda results: save_experiment(small_experiment(), results)),
        ("tables", lambda results: report.write(report.build(results))),
        ("figures", lambda results: report.write(report.build(results))),
        (".locks", lambda results: try_lease(lease_path(results, "a", "b"))),
        ("key", lambda results: CheckpointStore(results).save("key", {})),
        ("small-quick.json", lambda results: tuning_path(results, "small", "quick")),
    ],
)
def test_links_that_lead_out_are_not_followed(tmp_path: Path, name: str, write: Any) -> None:
    outside = linked(tmp_path / "results", name)
    with pytest.raises(OutsideError, match="leads out of"):
        write(tmp_path / "results")
    assert not any(outside.iterdir())


def test_a_link_in_place_of_a_lock_or_lease_is_not_written_through(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    path = tmp_path / "results" / ".locks" / "a--b.owner"
    path.parent.mkdir(parents=True)
    path.symlink_to(precious)
    with pytest.raises(OutsideError):
        lease_path(tmp_path / "results", "a", "b")
    path.unlink()
    path.with_suffix(".lock").symlink_to(precious)
    with pytest.raises(OutsideError):
        try_lease(lease_path(tmp_path / "results", "a", "b"))
    assert precious.read_text() == "mine"


def test_a_link_in_place_of_the_temporary_file_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    monkeypatch.setattr("benchmarks.machine.atomic_write.os.getpid", lambda: 7)
    (tmp_path / ".file.7.tmp").symlink_to(precious)
    write_atomically(tmp_path / "file", b"theirs")
    assert precious.read_text() == "mine" and (tmp_path / "file").read_bytes() == b"theirs"


def test_records_behind_a_link_are_not_read(tmp_path: Path) -> None:
    path = write_record(tmp_path / "other", record_named(), fake_history())
    (tmp_path / "results" / "runs").mkdir(parents=True)
    (tmp_path / "results" / "runs" / "small").symlink_to(path.parents[1])
    found = find_records(tmp_path / "results")
    assert not found.records and "leads out of" in next(iter(found.refused.values()))


def test_every_experiment_of_the_suite_has_such_names() -> None:
    for experiment in EXPERIMENTS.values():
        assert isinstance(experiment, Experiment)
        for name in experiment.profiles:
            for method in experiment.profiles[name].methods:
                check_name("method", method)
