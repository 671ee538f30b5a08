"""What is typed wrongly is refused before anything is done: in one line that quotes it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from benchmarks import cli
from benchmarks.records.record import write_record
from tests.benchmarks.fakes import fake_history, fake_record
from tests.benchmarks.small import small_cell

NAMED = {
    **dict.fromkeys(("run", "status", "tune", "recalibration", "publish", "sign"), "demo"),
    "gpu": "perf",
    "perf": "train",
}
FIELDS = {"gpu": "parts", "perf": "benchmark"}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return what a command says that ends with 2 and changes nothing."""
    try:
        code: object = cli.main(arguments)
    except SystemExit as ended:
        code = ended.code
    shown = capsys.readouterr()
    assert code == 2 and shown.out == "" and shown.err.count("\n") == 1, shown
    return shown.err


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("command", NAMED)
def test_what_is_named_twice_is_taken_once(command: str) -> None:
    name = NAMED[command]
    arguments = [command, name, name, *(["--key", "key"] if command == "sign" else [])]
    options = cli.build_parser(command).parse_args(arguments)
    assert getattr(options, FIELDS.get(command, "experiments")) == [name]


@pytest.mark.parametrize(
    ("command", "option"),
    [
        *((command, "--results") for command in cli.COMMANDS if command != "list"),
        *((command, "--checkpoints") for command in ("run", "sweep", "status", "tune", "export", "publish", "gpu")),
        *((command, "--profile") for command in ("run", "sweep", "status", "tune", "gpu")),
        *((command, "--device") for command in ("run", "status", "perf")),
        *(("perf", option) for option in ("--models", "--backends")),
    ],
)
def test_an_empty_value_is_not_taken_for_the_default(
    command: str, option: str, capsys: pytest.CaptureFixture[str], empty_folder: Path
) -> None:
    said = refused(capsys, command, option, "")
    assert option in said and "'' names nothing" in said
    assert not any(empty_folder.iterdir())


@pytest.mark.parametrize("given", ["1.5", "0", "-0.5", "nan"])
def test_a_share_to_start_from_is_checked_before_it_is_looked_up(
    given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, "tune", "demo", f"--start-from={given}")
    assert f"--start-from: '{given}' is no share of the MACs in (0, 1]" in said and "--macs-kept" not in said


@pytest.mark.parametrize("kind", ["file", "link that leads nowhere", "pipe"])
@pytest.mark.parametrize("option", ["--results", "--checkpoints"])
def test_what_is_no_folder_is_refused(
    option: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "place"
    if kind == "file":
        place.write_text("")
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to(tmp_path / "nowhere")
    assert f"{str(place)!r} is no folder" in refused(capsys, "run", "demo", option, str(place))


def test_a_folder_and_a_link_to_one_and_one_to_be_made_are_taken(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    for place in (tmp_path, tmp_path / "link", tmp_path / "new" / "one"):
        options = cli.build_parser("run").parse_args(["run", "demo", "--results", str(place)])
        assert options.results == place


def test_a_wrong_name_among_experiments_to_sign_is_said_and_nothing_signed(
    capsys: pytest.CaptureFixture[str], empty_folder: Path
) -> None:
    path = write_record(empty_folder / "r", fake_record(small_cell()), fake_history())
    before = sorted(path.parent.iterdir())
    said = refused(capsys, "sign", "small", "smalls", "--results", "r", "--key", "key")
    assert re.search(r"no experiment with records to sign 'smalls'\. Did you mean 'small'\?", said)
    assert sorted(path.parent.iterdir()) == before


def test_a_backend_that_is_unknown_is_not_measured_as_another(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "perf", "latency", "--models", "digits-resnet", "--backends", "eager,compield")
    assert "no backend 'compield'. Did you mean 'compiled'?" in said


def test_ctrl_c_while_a_command_is_being_imported_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.importlib, "import_module", interrupted)
    assert cli.main(["list"]) == 130
    assert capsys.readouterr().err.split("\n") == ["", "interrupted; run the same command again to continue", ""]
