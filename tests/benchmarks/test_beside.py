"""What lies beside a record is verified whenever the record is read: by `report` as by `merge`."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import cli
from benchmarks.records.histories import Details
from benchmarks.records.record import RecordError, read_record, read_records, write_record
from benchmarks.records.rows import (
    CHANNEL_COLUMNS,
    EPOCH_COLUMNS,
    ChannelRow,
    RowError,
    channels_csv,
    history_csv,
    read_channels,
    read_history,
)
from tests.benchmarks.fakes import fake_history, fake_record
from tests.benchmarks.small import small_cell

CHANNELS = [ChannelRow("a, b", 0, 1.5, 0.25, True), ChannelRow("c", 1, 0.0, 2.0, False)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_record(tmp_path, fake_record(small_cell()), fake_history(), CHANNELS)


def test_rows_are_read_back_as_they_were_written() -> None:
    assert read_history(history_csv(fake_history())) == fake_history()
    assert read_channels(channels_csv(CHANNELS)) == CHANNELS


@pytest.mark.parametrize(("name", "old", "new"), [("history.csv", "1.5", "1.4"), ("channels.csv", "0.25", "0.35")])
def test_an_edited_file_is_noticed_by_every_reader(path: Path, name: str, old: str, new: str) -> None:
    record, results = read_record(path), path.parents[3]
    file = path.with_name(name)
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(RecordError, match=f"{name} beside .*record.json has SHA-256"):
        read_record(path)
    with pytest.raises(RecordError, match=f"{name} beside"):
        read_records(results)
    with pytest.raises(RecordError, match=f"{name} beside"):
        Details(results).history(record)


@pytest.mark.parametrize("name", ["history.csv", "channels.csv"])
def test_a_missing_file_is_noticed(path: Path, name: str) -> None:
    path.with_name(name).unlink()
    with pytest.raises(RecordError, match=f"no readable {name}"):
        read_record(path)


@pytest.mark.parametrize("check", [[], ["--check"]])
def test_report_does_not_draw_an_edited_history(
    path: Path, check: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    history = path.with_name("history.csv")
    history.write_text(history.read_text().replace("1.5", "1.4", 1))
    assert cli.main(["report", "--results", str(path.parents[3]), *check]) != 0
    assert f"history.csv beside {path}" in capsys.readouterr().err


def test_channels_that_the_record_does_not_name_are_not_read(tmp_path: Path) -> None:
    path = write_record(tmp_path, fake_record(small_cell()), fake_history())
    path.with_name("channels.csv").write_text(channels_csv(CHANNELS))
    assert Details(tmp_path).channels(read_record(path)) == []
    write_record(tmp_path, fake_record(small_cell()), fake_history())
    assert not path.with_name("channels.csv").exists()


def test_epochs_of_record_and_history_agree(tmp_path: Path) -> None:
    path = write_record(tmp_path, fake_record(small_cell(), epochs={"dense": 99}), fake_history())
    with pytest.raises(RecordError, match=r"counts the epochs {'dense': 99}, its history {'dense': 1, .*: one of them"):
        read_record(path)


LINE = "dense,0,1,0.1,1.5,0,0.5,1.5,0.5,1"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (LINE.replace("dense", "=cmd"), "line 2: phase is '=cmd'"),
        (LINE.replace(",1,0.1", ",-1,0.1"), "epoch is '-1'"),
        (LINE.replace(",1,0.1", f",{'1' * 5000},0.1"), "epoch is '1111"),
        (LINE.replace("0.5,1.5,0.5", "0.5,1.5,nan"), "val_top1 is nan"),
        (LINE.replace("0.5,1.5,0.5", "0.5,1.5,high"), "val_top1 is 'high'"),
        (LINE + ",1", "11 values"),
        ('"' + LINE, "not a table"),
    ],
)
def test_odd_histories_are_refused(line: str, message: str) -> None:
    with pytest.raises(RowError, match=message):
        read_history(",".join(EPOCH_COLUMNS) + "\n" + line + "\n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a,b,1,1,1", "channel is 'b'"),
        ("a,0,inf,1,1", "energies are 'inf'"),
        ("a,0,1,-1,1", "energies are '1' and '-1'"),
        ("a,0,1,1,yes", "kept is 'yes'"),
    ],
)
def test_odd_channels_are_refused(line: str, message: str) -> None:
    with pytest.raises(RowError, match=message):
        read_channels(",".join(CHANNEL_COLUMNS) + "\n" + line + "\n")


def test_other_columns_are_refused() -> None:
    with pytest.raises(RowError, match="the columns are 'phase, epoch'; they must be"):
        read_history("phase,epoch\n")
