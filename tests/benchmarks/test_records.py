"""Records over the versions of the protocol, and fields that join later."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.records.record import (
    STATES_OF,
    Record,
    RecordError,
    checksum,
    parse_record,
    read_records,
    without_defaults,
)
from tests.benchmarks.fakes import fake_record
from tests.benchmarks.small import small_cell


@pytest.fixture
def record() -> Record:
    return fake_record(small_cell())


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
    with pytest.raises(RecordError, match="protocol is 99; this version knows"):
        parse_record(replace(record, protocol=99).to_json(), "here")


def test_published_records_are_readable() -> None:
    published = Path(__file__).parents[2] / "results"
    records = read_records(published, ["demo"])
    assert records and all(record.complete for record in records)
