"""Whole commands over files that anybody may have written: they end in 0, 1 or 2, and touch their own folders alone."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import html5lib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import cli
from benchmarks.escape import FORMULA
from benchmarks.machine.paths import ROOT, OutsideError
from benchmarks.records.record import Record, stamped
from benchmarks.records.rows import ChannelRow, channels_csv, history_csv
from benchmarks.records.strengths import TuningError, read_tuning, tuning_path
from benchmarks.running.adhoc import SCHEMA
from benchmarks.running.checkpoints import CheckpointStore
from tests.benchmarks.fakes import fake_history, fake_record
from tests.benchmarks.hostile import TEXTS
from tests.benchmarks.small import small_cell, small_experiment

OFTEN = settings(max_examples=60)
SELDOM = settings(OFTEN, max_examples=8)

PLACES = [
    "../../README",
    "x/../../../outside",
    "/tmp/oicsr-outside",
    "..",
    "a\\..\\b",
    "~/x",
    "a\0b",
    "$(touch x)",
    "-rf",
]
NAMES = st.sampled_from([*PLACES, *TEXTS.values()]) | st.text(max_size=12)
FIELDS = ("experiment", "profile", "method", "run_id", "title", "regularizer", "importance", "selection")


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder deep in another one, so that a few steps upwards can be watched."""
    inner = tmp_path / "a" / "b" / "c"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    return tmp_path


def seen(folder: Path, *own: Path) -> dict[str, str]:
    """Return the files under a folder that belong to none of its own folders, with digests."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if not any(path.is_relative_to(mine) for mine in own):
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return found


def put(results: Path, folder: str, record: Record, channels: list[ChannelRow]) -> None:
    """Write a record as somebody would who can count checksums, wherever it says that it belongs."""
    history = fake_history(record.epochs)
    place = results / "runs" / "small" / folder
    place.mkdir(parents=True, exist_ok=True)
    (place / "history.csv").write_text(history_csv(history))
    (place / "channels.csv").write_text(channels_csv(channels), errors="surrogatepass")
    text = stamped(record, history, channels).to_json()
    (place / "record.json").write_text(text, errors="surrogatepass")


def clear(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


@OFTEN
@given(st.dictionaries(st.sampled_from(FIELDS), NAMES, max_size=4), NAMES)
def test_merge_writes_in_its_results_alone(sandbox: Path, fields: dict[str, str], text: str) -> None:
    theirs, ours = Path("theirs"), Path("ours")
    for folder in (theirs, ours):
        clear(folder)
    record = replace(fake_record(small_cell()), **fields)  # type: ignore[arg-type]
    record = replace(record, provenance={**record.provenance, "command": text}, widths={text: [16, 8]})
    put(theirs, small_cell().run_id, record, [ChannelRow(text.replace("\0", ""), 0, 1.0, 1.0)])
    before = seen(sandbox, ours.absolute())
    assert cli.main(["merge", "theirs", "--results", "ours"]) in (0, 1)
    assert seen(sandbox, ours.absolute()) == before
    allowed = {"record.json", "history.csv", "channels.csv"}
    kept = [path for path in ours.rglob("*") if path.is_file() and ".locks" not in path.parts]
    assert all(path.name in allowed and path.parent.parent.parent == ours / "runs" for path in kept)


@OFTEN
@given(st.dictionaries(st.sampled_from(("name", "title", "claim", "model", "dataset", "weights")), NAMES), NAMES)
def test_sweep_files_name_no_place(sandbox: Path, fields: dict[str, str], profile: str) -> None:
    theirs, ours = Path("theirs"), Path("ours")
    for folder in (theirs, ours):
        clear(folder)
    put(theirs, small_cell().run_id, fake_record(small_cell()), [])
    experiment = asdict(small_experiment())
    data = {"schema": SCHEMA, **experiment, **fields, "profiles": {profile: experiment["profiles"]["quick"]}}
    (theirs / "sweeps").mkdir()
    (theirs / "sweeps" / "small.json").write_text(json.dumps(data))
    before = seen(sandbox, ours.absolute())
    assert cli.main(["merge", "theirs", "--results", "ours"]) in (0, 1)
    for command in (["status"], ["run", "small", "--plan"]):
        code = cli.main([*command, "--results", "theirs", "--checkpoints", "theirs/checkpoints", "--device", "cpu"])
        assert code in (0, 2)
    assert seen(sandbox, ours.absolute()) == before


@pytest.mark.usefixtures("blank_figures")
@SELDOM
@given(st.dictionaries(st.sampled_from(FIELDS[4:]), NAMES), NAMES, st.integers(0, 2))
def test_report_shows_texts_as_texts_and_writes_in_its_results_alone(
    sandbox: Path, fields: dict[str, str], text: str, harm: int
) -> None:
    results = Path("results")
    clear(results)
    for cell in (small_cell(), small_cell("gl-out"), small_cell("none")):
        record = fake_record(cell)
        changes: dict[str, Any] = fields if cell.method == "oicsr-gl" else {}
        record = replace(record, **changes, provenance={**record.provenance, "device": text, "commit": text})
        put(results, cell.run_id, record, [ChannelRow(text.replace("\0", ""), 0, 1.0, 1.0)] if harm else [])
    before = seen(sandbox, results.absolute())
    assert cli.main(["report", "--results", "results"]) in (0, 1)
    assert seen(sandbox, results.absolute()) == before
    page = html5lib.parse((results / "report.html").read_text(), namespaceHTMLElements=False)
    assert not [name for element in page.iter() for name in element.attrib if str(name).lower().startswith("on")]
    for path in results.glob("tables/*.csv"):
        cells = [cell for row in csv.reader(io.StringIO(path.read_text(), newline="")) for cell in row]
        assert not [cell for cell in cells if cell.startswith(FORMULA) and not _is_number(cell)]
    for path in [*results.glob("tables/*.md"), results / "RESULTS.md"]:
        assert "<script" not in path.read_text().lower() and "javascript:" not in path.read_text().lower()
    for path in results.glob("tables/*.tex"):
        assert r"\input" not in path.read_text()


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


@OFTEN
@given(NAMES, NAMES)
def test_names_of_tuning_records_and_checkpoints_stay_in_their_folders(sandbox: Path, name: str, profile: str) -> None:
    before = seen(sandbox, Path("tuning").absolute(), Path("checkpoints").absolute())
    with suppress(OutsideError, ValueError):
        path = tuning_path(Path("tuning"), name, profile)
        assert path.resolve().is_relative_to(Path("tuning").resolve())
        with pytest.raises(TuningError):
            read_tuning(path)
    with suppress(OutsideError, ValueError, OSError):
        CheckpointStore(Path("checkpoints")).save(name, {"epoch": 1})
    assert seen(sandbox, Path("tuning").absolute(), Path("checkpoints").absolute()) == before


ODD_FOLDERS = ["two words", "ä ö 漢字", "-leading", "new\nline", "quo'te\"s", "$(touch x)", "a;b", "%s{0}", "x" * 200]


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("name", ODD_FOLDERS)
def test_folders_of_any_name(sandbox: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    theirs, results = Path(name), Path(f"{name}2")
    put(theirs, small_cell().run_id, fake_record(small_cell()), [])
    assert cli.main(["merge", f"./{name}", f"--results={results}"]) == 0
    assert cli.main(["report", f"--results={results}"]) == 0
    assert cli.main(["report", f"--results={results}", "--check"]) == 0
    assert cli.main(["status", "demo", f"--results={results}", f"--checkpoints={name}3", "--device", "cpu"]) == 0
    assert (results / "RESULTS.md").is_file() and {path.name for path in Path().iterdir()} == {name, f"{name}2"}
    assert "Traceback" not in capsys.readouterr().err


def command(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command in a shell that prepares itself first; as root, without root's right to write everywhere."""
    drop = "-dac_override,-dac_read_search"
    limited = f"setpriv --bounding-set={drop} --inh-caps={drop} " if os.geteuid() == 0 else ""
    shell = f'{before} exec {limited}"$0" -m benchmarks "$@"'
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    whole = ["bash", "-c", shell, sys.executable, *arguments]
    return subprocess.run(whole, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_one_line(sandbox: Path) -> None:
    put(Path("theirs"), small_cell("none").run_id, fake_record(small_cell("none")), [])
    Path("closed").mkdir(mode=0o555)
    folders = ("--results", "closed", "--checkpoints", "closed")
    for arguments in (
        ("merge", "theirs", "--results", "closed"),
        ("report", "--results", "closed"),
        ("tune", "demo", "--methods", "oicsr-gl", *folders),
    ):
        done = command(*arguments)
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
        assert "Permission denied: 'closed" in done.stderr
    assert not any(Path("closed").iterdir())


def test_few_file_handles_are_enough(sandbox: Path) -> None:
    for method in ("oicsr-gl", "gl-out", "none"):
        put(Path("theirs"), small_cell(method).run_id, fake_record(small_cell(method)), [])
    done = command("merge", "theirs", "--results", "ours", before="ulimit -n 24;")
    assert (done.returncode, done.stderr) == (0, "") and "3 added" in done.stdout
    done = command("report", "--results", "ours", before="ulimit -n 24;")
    assert done.returncode == 0 and Path("ours/RESULTS.md").is_file()
