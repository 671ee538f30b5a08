"""The rows of the files beside a record, written and read back: `history.csv` and `channels.csv`."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields

PHASES = ("dense", "regularized", "finetune")

LONGEST_COUNT = 9  # digits of an epoch, a step or a channel

CURVE_POINTS = 41  # of the cumulative energy in a record's structure


@dataclass(frozen=True)
class EpochRow:
    """One line of `history.csv`."""

    phase: str
    step: int
    epoch: int
    learning_rate: float
    train_loss: float
    penalty: float
    train_top1: float
    val_loss: float
    val_top1: float
    seconds: float


@dataclass(frozen=True)
class ChannelRow:
    """A channel before any removal: its energies on both sides, and whether it stays to the end."""

    coupling: str
    channel: int
    out: float
    inward: float
    kept: bool = True


CHANNEL_COLUMNS = ("coupling", "channel", "out_energy", "in_energy", "kept")

EPOCH_COLUMNS = tuple(field.name for field in fields(EpochRow))


class RowError(ValueError):
    """A file beside a record cannot be read."""


def history_csv(history: Iterable[EpochRow]) -> str:
    """Return the text of `history.csv`: one row per epoch; numbers only, accuracies in [0, 1]."""
    rows = ([f"{v:.6g}" if isinstance(v, float) else v for v in asdict(row).values()] for row in history)
    return _csv(EPOCH_COLUMNS, rows)


def channels_csv(channels: Iterable[ChannelRow]) -> str:
    """Return the text of `channels.csv`: the energies of every channel before any removal, and which ones stay."""
    rows = ([r.coupling, r.channel, f"{r.out:.5g}", f"{r.inward:.5g}", f"{r.kept:d}"] for r in channels)
    return _csv(CHANNEL_COLUMNS, rows)


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()


def read_history(text: str) -> list[EpochRow]:
    """Read the text of `history.csv`.

    Raises:
        RowError: A column is missing or unknown, or a value is not what its column holds; says in which line.
    """
    rows = []
    for line, values in _rows(text, EPOCH_COLUMNS):
        if values[0] not in PHASES:
            raise RowError(f"line {line}: phase is {values[0][:40]!r}; it must be one of {', '.join(PHASES)}")
        step, epoch = (_count(line, name, value) for name, value in zip(("step", "epoch"), values[1:3], strict=True))
        others = [_number(line, name, value) for name, value in zip(EPOCH_COLUMNS[3:], values[3:], strict=True)]
        row = EpochRow(values[0], step, epoch, *others)
        if not 0 <= row.val_top1 <= 1:
            raise RowError(f"line {line}: val_top1 is {row.val_top1!r}; a share in [0, 1] is needed")
        rows.append(row)
    return rows


def read_channels(text: str) -> list[ChannelRow]:
    """Read the text of `channels.csv`.

    Raises:
        RowError: A column is missing or unknown, or a value is not what its column holds; says in which line.
    """
    rows = []
    for line, (coupling, channel, out, inward, kept) in _rows(text, CHANNEL_COLUMNS):
        energies = _number(line, "out_energy", out), _number(line, "in_energy", inward)
        if not all(math.isfinite(energy) and energy >= 0 for energy in energies):
            raise RowError(f"line {line}: the energies are {out[:40]!r} and {inward[:40]!r}; they must be 0 or more")
        if kept not in ("0", "1"):
            raise RowError(f"line {line}: kept is {kept[:40]!r}; it must be 0 or 1")
        rows.append(ChannelRow(coupling, _count(line, "channel", channel), energies[0], energies[1], kept == "1"))
    return rows


def _rows(text: str, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and values of every row after the heading."""
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        found = next(reader, [])
        if tuple(found) != tuple(columns):
            raise RowError(f"the columns are {', '.join(found)[:200]!r}; they must be {', '.join(columns)}")
        for values in reader:
            if len(values) != len(columns):
                raise RowError(f"line {reader.line_num} has {len(values)} values; {len(columns)} are needed")
            yield reader.line_num, values
    except csv.Error as error:
        raise RowError(f"it is not a table: {error}") from error


def _count(line: int, name: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= LONGEST_COUNT):
        raise RowError(f"line {line}: {name} is {value[:40]!r}; a whole number is needed")
    return int(value)


def _number(line: int, name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise RowError(f"line {line}: {name} is {value[:40]!r}; a number is needed") from error
