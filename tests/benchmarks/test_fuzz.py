"""Files that anybody may have written end in clear errors, and nothing in them is executed."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.analysis.comparison import compare
from benchmarks.analysis.verdicts import judge
from benchmarks.experiments import EXPERIMENTS
from benchmarks.records.histories import Details
from benchmarks.records.record import CHECKSUM, RecordError, checksum, parse_record, stamped, write_record
from benchmarks.records.rows import history_csv
from benchmarks.records.strengths import TuningError, read_tuning
from benchmarks.reporting.comparison_table import comparison_sheet, fairness_sheet
from benchmarks.reporting.gathered import gather
from benchmarks.reporting.reliability import ReliabilityError, reliability_section
from benchmarks.reporting.table_files import files_of_sheet
from benchmarks.running.adhoc import ExperimentError, parse_experiment
from benchmarks.running.checkpoints import MAGIC, CheckpointStore, CheckpointWarning, read_checkpoint
from oicsr import PruningPlan
from tests.benchmarks.fakes import experiment_text, fake_history, fake_record
from tests.benchmarks.small import small_cell

FAST = settings(max_examples=100)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=15,
)
RECORD = json.loads(fake_record().to_json())
PLAN = {"format": "oicsr-plan-1", "kept": {"a": [0, 1]}, "slices": [["a.weight", 0, 4, [0, 1]]]}
EXPERIMENT = json.loads(experiment_text(EXPERIMENTS["demo"]))
TUNING = {
    "schema": "oicsr-tuning-2",
    "seeds": [1000],
    "scores": {"oicsr-gl": {"0.5": {"0.01": {"loss": [0.1, None], "top1": [0.9, None]}}}},
    "chosen": {"oicsr-gl": {"0.5": 0.01}},
    "reason": {"oicsr-gl": {"0.5": "inside"}},
}


@st.composite
def changed(draw: st.DrawFn, whole: Any) -> str:
    """Draw the text of a JSON file with one value, anywhere, replaced, removed or added, or its text cut."""
    data = copy.deepcopy(whole)
    place: Any = data
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            break
        key = draw(st.sampled_from(keys))
        if isinstance(place[key], dict | list) and draw(st.booleans()):
            place = place[key]
            continue
        if isinstance(place, dict) and draw(st.booleans()):
            place.pop(key)
            place[draw(st.text(max_size=8))] = draw(JSON)
        else:
            place[key] = draw(JSON)
        break
    text = json.dumps(data)
    return text[: draw(st.integers(0, len(text)))] if draw(st.integers(0, 4)) == 0 else text


MONSTERS = ["[" * 100_000, "1" * 5000, "NaN", "{}", "[]", "null", '{"schema": 1}', "\ud800", "\0"]


def read(parse: Callable[[], Any], kind: type[Exception], words: str) -> Any:
    """Return what a reader returns, or None where it ends in its own, clear error."""
    try:
        return parse()
    except kind as error:
        if words not in str(error):
            raise
        return None


def any_text(whole: Any) -> st.SearchStrategy[str]:
    return st.text() | JSON.map(json.dumps) | changed(whole)


def read_all(text: str, folder: Path) -> list[Any]:
    """Return what the readers of the suite make of a text."""
    path = folder / "file.json"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    return [
        read(lambda: parse_record(text, "here"), RecordError, "here"),
        read(lambda: PruningPlan.from_json(text), ValueError, "plan"),
        read(lambda: parse_experiment(text, "here"), ExperimentError, "here"),
        read(lambda: read_tuning(path), TuningError, str(path)),
    ]


@pytest.mark.parametrize("text", MONSTERS)
def test_monsters_are_refused_by_all(tmp_path: Path, text: str) -> None:
    assert read_all(text, tmp_path) == [None] * 4
    (tmp_path / "reliability.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(ReliabilityError, match="make faults"):
        reliability_section(tmp_path)


@FAST
@given(any_text(RECORD))
def test_only_the_whole_record_is_accepted(text: str) -> None:
    record = read(lambda: parse_record(text, "here"), RecordError, "here")
    assert record is None or json.loads(record.to_json()) == RECORD


COMPANY = [fake_record(small_cell(method, seed)) for method in ("oicsr-gl", "gl-out", "none") for seed in (0, 1)]
HISTORY = fake_history()
STRANGER = json.loads(stamped(fake_record(small_cell(seed=7)), HISTORY, ()).to_json())


def write_with_its_checksum(path: Path, text: str) -> None:
    """Write the text of a record as somebody would who can count checksums."""
    data = read(lambda: json.loads(text), ValueError, "")
    if isinstance(data, dict) and isinstance(data.get("provenance"), dict):
        values = {name: value for name, value in data.items() if name != "schema"}
        text = json.dumps({**data, "provenance": {**data["provenance"], CHECKSUM: checksum(values)}})
    path.write_text(text, encoding="utf-8", errors="surrogatepass")


@FAST
@given(changed(STRANGER))
def test_no_record_with_a_right_checksum_blocks_the_tables_of_others(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    results = tmp_path_factory.mktemp("results")
    for record in COMPANY:
        write_record(results, record, HISTORY)
    folder = results / "runs" / "small" / small_cell(seed=7).run_id
    folder.mkdir()
    (folder / "history.csv").write_text(history_csv(HISTORY))
    write_with_its_checksum(folder / "record.json", text)
    found = gather(results)
    assert set(found.left_out) <= {folder / "record.json"}
    comparisons = compare(found.records)
    judge(found.records, Details(results))
    for comparison in comparisons:
        for sheet in (comparison_sheet(comparison, "Small"), fairness_sheet(comparison, "Small")):
            assert all(files_of_sheet(sheet).values())
    assert {record.seed for record in comparisons[0].records} >= {0, 1}


@FAST
@given(any_text(PLAN))
def test_plans(text: str) -> None:
    plan = read(lambda: PruningPlan.from_json(text), ValueError, "plan")
    assert plan is None or PruningPlan.from_json(plan.to_json()).kept == plan.kept


@FAST
@given(any_text(EXPERIMENT))
def test_experiments(text: str) -> None:
    experiment = read(lambda: parse_experiment(text, "here"), ExperimentError, "here")
    assert experiment is None or parse_experiment(experiment_text(experiment), "again") == experiment


@FAST
@given(any_text(TUNING))
def test_tuning_records(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tuning.json"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    data = read(lambda: read_tuning(path), TuningError, str(path))
    assert data is None or all(v is None or float(v) == v for c in data["chosen"].values() for v in c.values())
    assert data is None or all(isinstance(why, str) for given in data["reason"].values() for why in given.values())


@FAST
@given(any_text({"schema": "oicsr-reliability-1", "kinds": {"kill": {"what": "x", "tried": 1, "survived": 1}}}))
def test_reliability(tmp_path: Path, text: str) -> None:
    (tmp_path / "reliability.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(ReliabilityError, match="make faults"):
        reliability_section(tmp_path)


@FAST
@given(any_text({"epoch": 1, "finished": True, "seconds": [1.0], "machine": "m"}))
def test_progress_beside_checkpoints(tmp_path: Path, text: str) -> None:
    store = CheckpointStore(tmp_path)
    store.save("a", {"epoch": 1})
    (tmp_path / "a" / "progress.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    found = store.progress("a")
    assert found is None or isinstance(found, dict)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


def sealed(payload: bytes) -> bytes:
    """Return a checkpoint file with a right checksum around anything."""
    import hashlib

    return MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload


def whole_checkpoint() -> bytes:
    buffer = io.BytesIO()
    torch.save({"epoch": 3, "model": {"w": torch.ones(4)}}, buffer)
    return buffer.getvalue()


@FAST
@given(st.data())
def test_checkpoints_with_a_right_checksum_around_damage(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(whole_checkpoint())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.ckpt"
    path.write_bytes(sealed(bytes(content[: data.draw(st.integers(0, len(content)))])))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = read_checkpoint(path)
    assert state is None or isinstance(state, dict)


@pytest.mark.parametrize("kind", ["pickle", "inside"])
def test_code_in_a_checkpoint_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    payload = pickle.dumps(Bomb())
    if kind == "inside":
        buffer = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(whole_checkpoint())) as whole, zipfile.ZipFile(buffer, "w") as changed_file:
            for name in whole.namelist():
                content = payload if name.endswith("data.pkl") else whole.read(name)
                changed_file.writestr(name, content)
        payload = buffer.getvalue()
    path = tmp_path / "x.ckpt"
    path.write_bytes(sealed(payload))
    with pytest.warns(CheckpointWarning, match="damaged"):
        assert read_checkpoint(path) is None
    assert not (tmp_path / "exploded").exists()
