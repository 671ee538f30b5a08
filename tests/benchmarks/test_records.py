"""Records over the versions of the protocol, and fields that join later."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.records.record import (
    CHECKSUM,
    FAILED,
    SCHEMA,
    STATES_OF,
    NewerRecordError,
    Record,
    RecordError,
    checksum,
    parse_record,
    read_records,
    without_defaults,
    write_record,
)
from benchmarks.running.merge import merge
from benchmarks.running.survey import survey
from tests.benchmarks.fakes import fake_history, fake_record
from tests.benchmarks.small import small_bench, small_cell


@pytest.fixture
def record() -> Record:
    return fake_record(small_cell())


@pytest.mark.parametrize(
    ("failure", "reason"),
    [({"reason": "it diverged"}, "it diverged"), ({"reason": ""}, "reason unknown"), (None, "reason unknown")],
)
def test_a_failed_run_has_a_reason_to_show(record: Record, failure: dict[str, str] | None, reason: str) -> None:
    assert replace(record, status=FAILED, failure=failure).failure_reason == reason


def test_a_field_that_joined_later_is_absent_where_it_holds_its_default(record: Record) -> None:
    text = replace(record, protocol=1).to_json()
    assert "protocol" not in json.loads(text)
    read = parse_record(text, "here")
    assert read.protocol == 1 and checksum(vars(read)) == checksum(without_defaults(vars(read)))


def test_another_value_of_it_is_written_and_guarded(record: Record) -> None:
    states = {**record.states, "recalibrated": record.states["pruned"]}
    text = replace(record, protocol=2, states=states).to_json()
    assert parse_record(text, "here").protocol == 2
    with pytest.raises(RecordError, match="was changed"):
        parse_record(text.replace('"protocol": 2', '"protocol": 1'), "here")


def test_complete_records_hold_all_states_of_their_protocol(record: Record) -> None:
    states = dict.fromkeys(STATES_OF[1], record.states["pruned"])
    with pytest.raises(RecordError, match=r"states \['recalibrated'\] are missing"):
        parse_record(replace(record, protocol=2, states=states).to_json(), "here")


def test_unknown_protocol_is_refused(record: Record) -> None:
    with pytest.raises(RecordError, match="protocol is 0; this version knows"):
        parse_record(replace(record, protocol=0).to_json(), "here")


def newer(record: Record, kind: str) -> str:
    """Return the text of a record as a version of this suite to come may write it."""
    if kind == "protocol":
        return replace(record, protocol=99).to_json()
    values = json.loads(record.to_json())
    if kind == "schema":
        return json.dumps({**values, "schema": "oicsr-record-2"})
    values["claim"] = "a field that joins later"
    del values["schema"]
    values["provenance"][CHECKSUM] = checksum(values)
    return json.dumps({**values, "schema": SCHEMA})


@pytest.mark.parametrize("kind", ["protocol", "schema", "field"])
def test_a_record_of_a_newer_version_is_not_taken_for_damaged(kind: str, record: Record, tmp_path: Path) -> None:
    bench, cell = small_bench(tmp_path), small_cell()
    path = write_record(bench.results, record, fake_history())
    text = newer(record, kind)
    path.write_text(text)
    with pytest.raises(NewerRecordError, match="a newer version of this suite made it: update this checkout"):
        survey(bench, [cell])
    write_record(tmp_path / "other", record, fake_history())
    merged = merge(bench, tmp_path / "other", {"small": cell.experiment}, replace=True)
    assert "update this checkout" in str(merged.refused)
    assert path.read_text() == text and not list(path.parent.glob("*.damaged"))


def test_an_edited_record_with_another_field_is_no_newer_one(record: Record) -> None:
    edited = json.dumps({**json.loads(record.to_json()), "claim": "mine"})
    with pytest.raises(RecordError, match=r"unknown \['claim'\]") as caught:
        parse_record(edited, "here")
    assert not isinstance(caught.value, NewerRecordError) and "missing" not in str(caught.value)


def test_published_records_are_readable() -> None:
    published = Path(__file__).parents[2] / "results"
    records = read_records(published, ["demo"])
    assert records and all(record.complete for record in records)
