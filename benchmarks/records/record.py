"""Records: what a run leaves. `record.json` is written last and atomically: where it is, the run is over.

A record carries its own checksum and that of its history (in `provenance`, because a history holds times): flipped bits
and edited numbers are found whenever the record is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from benchmarks.config import LARGEST, Cell, canonical
from benchmarks.machine.atomic_write import write_atomically
from benchmarks.machine.paths import OutsideError, check_inside, inside, unused
from benchmarks.machine.plain_files import is_of_the_file, read_plain
from benchmarks.records.rows import (
    ChannelRow,
    EpochRow,
    RowError,
    channels_csv,
    history_csv,
    read_channels,
    read_history,
)
from benchmarks.records.schema import COMPLETE as COMPLETE
from benchmarks.records.schema import NewerRecordError as NewerRecordError
from benchmarks.records.schema import RecordError as RecordError
from benchmarks.records.schema import check_values
from benchmarks.records.signatures import SUFFIX

SCHEMA = "oicsr-record-1"
LATER_SCHEMA = re.compile(r"oicsr-record-([2-9]|[1-9][0-9]+)")  # of versions to come
NEWER = "a newer version of this suite made it: update this checkout, or give another folder with --results"

STATES = ("dense", "regularized", "pruned", "recalibrated", "finetuned")
STATES_OF = {1: tuple(state for state in STATES if state != "recalibrated"), 2: STATES}  # by version of the protocol

FAILED = "failed"

CHECKSUM, HISTORY_CHECKSUM, CHANNELS_CHECKSUM = "record_sha256", "history_sha256", "channels_sha256"

BESIDE = {"history.csv": HISTORY_CHECKSUM, "channels.csv": CHANNELS_CHECKSUM}  # files that belong to a record

SIGNATURE = f"record.json{SUFFIX}"  # where somebody signed it


@dataclass(frozen=True)
class Beside:
    """What the files beside a record hold.

    Attributes:
        history: One row per epoch.
        channels: One row per channel; none where the run wrote none.
    """

    history: list[EpochRow]
    channels: list[ChannelRow]


@dataclass(frozen=True)
class Record:
    """One run: one method, seed and target.

    Attributes:
        run_id: Name of its folder.
        experiment: Name of the experiment.
        profile: Name of the profile.
        method: As on the command line.
        title: Of the method, for tables.
        regularizer: What was added while training.
        importance: What scored the channels.
        selection: What chose them.
        strength: λ.
        strength_source: Where λ comes from.
        seed: Of the run.
        macs_kept: The target.
        status: `"complete"` or `"failed"`.
        config: The experiment's and the profile's values, resolved.
        states: By name (see `STATES`; `recalibrated` since protocol 2): test top-1 and loss, validation top-1, MACs
            (and with BatchNorm and pooling, as fvcore counts) and parameters.
        widths: Coupling name to channels before and after.
        structure: How energy is distributed over the channels, of the dense network and before the first removal.
        removals: One per step: MACs left, and validation top-1 just before and just after the removal.
        epochs: By phase, those of all steps together.
        compute: By phase and in total: multiply-accumulates of training, three times those of a forward pass
            (forward, gradient of inputs, gradient of weights) for each image; regularisers are not counted.
        timing: Seconds; the only part besides `provenance` in which two equal runs differ.
        provenance: Commit, versions, device, data, command.
        failure: Why it failed, where it did.
        protocol: Version of what is measured and how (PAPER.md says what each changed); tables never mix versions.
    """

    run_id: str
    experiment: str
    profile: str
    method: str
    title: str
    regularizer: str
    importance: str
    selection: str
    strength: float
    strength_source: str
    seed: int
    macs_kept: float
    status: str
    config: dict[str, Any]
    states: dict[str, dict[str, Any]]
    widths: dict[str, list[int]]
    structure: dict[str, Any]
    removals: list[dict[str, Any]]
    epochs: dict[str, int]
    compute: dict[str, int]
    timing: dict[str, float]
    provenance: dict[str, Any]
    failure: dict[str, Any] | None = None
    protocol: int = 1

    @property
    def complete(self) -> bool:
        """Whether the run finished."""
        return self.status == COMPLETE

    @property
    def failure_reason(self) -> str:
        """Why the run failed, for people."""
        return str((self.failure or {}).get("reason") or "reason unknown")

    def to_json(self) -> str:
        """Return the text of `record.json`, its checksum in it."""
        values = {"schema": SCHEMA, **without_defaults(vars(self))}
        values["provenance"] = {**self.provenance, CHECKSUM: checksum(values)}
        return json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def checksum(values: dict[str, Any]) -> str:
    """Return the SHA-256 over all values of a record but the checksum itself."""
    provenance = {name: value for name, value in values["provenance"].items() if name != CHECKSUM}
    # shallow copies, so that a thousand records are read in a second or two
    values = {**without_defaults(values), "provenance": provenance, "schema": SCHEMA}
    return hashlib.sha256(canonical(values).encode()).hexdigest()


def without_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values without fields that joined later and hold their default: older records stay what they were."""
    return {name: value for name, value in values.items() if name not in LATER or value != LATER[name]}


FIELDS = {each.name: each for each in fields(Record)}
OPTIONAL = {each.name for each in fields(Record) if each.default is not MISSING}
# Fields that joined after the first records were published, by default; a new one needs a default, and no more.
LATER = {name: FIELDS[name].default for name in OPTIONAL - {"failure"}}

TEXTS = {name for name, each in FIELDS.items() if each.type == "str"}


def parse_record(text: str, where: str, *, unchecked: bool = False) -> Record:
    """Read the text of a record; nothing in it is executed.

    Args:
        text: Of the file.
        where: Named in errors.
        unchecked: Accept a record without checksum (a wrong one is refused all the same).

    Raises:
        RecordError: It does not follow the schema, or was changed; the message says where and why.
        NewerRecordError: It was made by a newer version of this suite.
    """
    record = _parse(text, where)
    _verify(record, where, unchecked)
    return record


def _verify(record: Record, where: str, unchecked: bool) -> None:
    found = record.provenance.get(CHECKSUM)
    if found != checksum(vars(record)) and not (unchecked and found is None):
        raise RecordError(f"{where} has checksum {str(found)[:12]!r}, which is not that of its values: it was changed")


def _parse(text: str, where: str) -> Record:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{where} is no readable record: {error}") from error
    schema = data.pop("schema", None) if isinstance(data, dict) else None
    if isinstance(schema, str) and LATER_SCHEMA.fullmatch(schema):
        raise NewerRecordError(f"{where} is of schema {schema[:40]!r}, not {SCHEMA!r}: {NEWER}")
    if schema != SCHEMA:
        raise RecordError(f"{where} is no record of schema {SCHEMA!r}")
    missing, extra = FIELDS.keys() - data.keys(), data.keys() - FIELDS.keys()
    if extra and not missing - OPTIONAL and _is_whole(data):
        raise NewerRecordError(f"{where} has fields that are unknown here, {sorted(extra)}: {NEWER}")
    if missing - OPTIONAL or extra:
        lists = {"missing": sorted(missing - OPTIONAL), "unknown": sorted(extra)}
        raise RecordError(f"{where}: fields {', '.join(f'{what} {names}' for what, names in lists.items() if names)}")
    for name in TEXTS & data.keys():  # one that joined later may be absent
        if not isinstance(data[name], str):
            raise RecordError(f"{where}: {name!r} is {str(data[name])[:40]!r}; a text is needed")
    check_values(data, where)
    if data["status"] not in (COMPLETE, FAILED):
        raise RecordError(f"{where}: status is {data['status']!r}; it must be {COMPLETE!r} or {FAILED!r}")
    record = Record(**data)
    _check_states(record, where)
    return record


def _is_whole(values: dict[str, Any]) -> bool:
    """Return whether values carry the checksum that is theirs: then what is unknown in them is no damage."""
    provenance = values.get("provenance")
    try:
        return isinstance(provenance, dict) and provenance.get(CHECKSUM) == checksum(values)
    except (ValueError, TypeError, RecursionError):
        return False


def _check_states(record: Record, where: str) -> None:
    """Refuse states that are unknown, and complete runs without all states of their protocol."""
    if type(record.protocol) is int and record.protocol > max(STATES_OF) and _is_whole(vars(record)):
        raise NewerRecordError(
            f"{where} is of protocol {record.protocol}, this version knows {sorted(STATES_OF)}: {NEWER}"
        )
    if record.protocol not in STATES_OF:
        raise RecordError(f"{where}: protocol is {record.protocol!r}; this version knows {sorted(STATES_OF)}")
    missing = [state for state in STATES_OF[record.protocol] if state not in record.states]
    if record.complete and missing:
        raise RecordError(f"{where}: the run is complete, but states {missing} are missing")
    unknown = sorted(record.states.keys() - set(STATES))
    if unknown:
        raise RecordError(f"{where}: states {unknown} are unknown; this version knows {list(STATES)}")


def runs_folder(results: Path) -> Path:
    """Return the folder of the runs in a results folder."""
    return results / "runs"


def record_paths(results: Path) -> list[Path]:
    """Return the files of all records in a results folder, in order."""
    return sorted(runs_folder(results).glob("*/*/record.json"))


def run_folder(results: Path, experiment: str, run_id: str) -> Path:
    """Return the folder of a run.

    Raises:
        OutsideError: It leads out of the results folder.
    """
    return inside(results, "runs", experiment, run_id)


def record_path(results: Path, cell: Cell) -> Path:
    """Return the path of a cell's record."""
    return run_folder(results, cell.experiment.name, cell.run_id) / "record.json"


def read_record(path: Path, *, unchecked: bool = False) -> Record:
    """Read a record from its file, and verify it and the files beside it.

    Args:
        path: `.../<experiment>/<run_id>/record.json`.
        unchecked: Accept a record without checksums.

    Raises:
        RecordError: It cannot be read, is in the folder of another run, or it, its history or its channels were
            changed.
        OSError: The disk, the network or a permission failed: the record may be whole.
    """
    text = _text_of(path, "record")
    record = _parse(text, str(path))
    if (record.experiment, record.run_id) != (path.parent.parent.name, path.parent.name):
        raise RecordError(f"{path} holds the record of {record.experiment}/{record.run_id}: it is in the wrong place")
    _verify(record, str(path), unchecked)
    _check_beside(path, record, unchecked)
    return record


@dataclass
class Found:
    """The records of a results folder.

    Attributes:
        records: Those that can be read, sorted by path.
        refused: Why the others cannot, by path of the record.
    """

    records: list[Record] = field(default_factory=list)
    refused: dict[Path, str] = field(default_factory=dict)


def find_records(results: Path, experiments: Sequence[str] | None = None) -> Found:
    """Read all records in a results folder; one that cannot be read keeps no other from being read."""
    found = Found()
    for path in record_paths(results):
        if experiments is not None and path.parent.parent.name not in experiments:
            continue
        try:
            inside(results, path.relative_to(results))
            found.records.append(read_record(path))
        except (RecordError, OutsideError, OSError) as error:
            found.refused[path] = str(error)
    return found


def read_records(results: Path, experiments: Sequence[str] | None = None) -> list[Record]:
    """Read all records in a results folder, sorted by path.

    Raises:
        RecordError: Some cannot be read; the message names all of them.
    """
    found = find_records(results, experiments)
    if found.refused:
        advice = "Restore each file or move its folder away; the other records are untouched."
        raise RecordError("\n".join([f"{len(found.refused)} unreadable:", *found.refused.values(), advice]))
    return found.records


def write_record(
    results: Path, record: Record, history: Iterable[EpochRow], channels: Iterable[ChannelRow] = ()
) -> Path:
    """Write the history and, where there are any, the channels, then the record; return the record's path.

    Raises:
        RecordError: The record holds values that no reader accepts; nothing was written.
    """
    history, channels = list(history), list(channels)
    folder = run_folder(results, record.experiment, record.run_id)
    path = folder / "record.json"
    check_values(vars(record), str(path))
    folder.mkdir(parents=True, exist_ok=True)
    set_aside(path, record.protocol)
    write_atomically(folder / "history.csv", history_csv(history).encode())
    if channels:
        write_atomically(folder / "channels.csv", channels_csv(channels).encode())
    else:
        (folder / "channels.csv").unlink(missing_ok=True)  # of an earlier attempt
    (folder / SIGNATURE).unlink(missing_ok=True)  # of the record that this one replaces
    write_atomically(path, stamped(record, history, channels).to_json().encode())
    return path


def set_aside(path: Path, protocol: int) -> None:
    """Keep a record of another protocol in a folder of its own before one of this protocol takes its place."""
    try:
        text = read_plain(path)
    except (OSError, UnicodeDecodeError) as error:
        if not is_of_the_file(error):
            raise
        return  # none
    try:
        before = json.loads(text).get("protocol", LATER["protocol"])
    except (ValueError, RecursionError, AttributeError):  # damaged: nothing that could be read later
        return
    if before != protocol and type(before) is int and 0 < before <= LARGEST:
        move_to(f"protocol-{before}", path)


def move_to(name: str, path: Path) -> None:
    """Move a record, and the files that belong to it, into a folder beside it, whose name gets a number if it is taken.

    The record is moved last, and the other files are copied: a kill in between takes nothing away.
    """
    # without a record, a move into it was cut short, and the record is still where it was
    folder = unused(path.with_name(name), taken=lambda each: os.path.lexists(each / path.name))
    check_inside(path.parent, folder)
    folder.mkdir(exist_ok=True)
    for each in (*BESIDE, SIGNATURE):
        try:
            content = read_plain(path.with_name(each)).encode()
        except (OSError, UnicodeDecodeError) as error:  # missing or damaged
            if not is_of_the_file(error):
                raise
            (folder / each).unlink(missing_ok=True)
            continue
        write_atomically(folder / each, content)
    path.replace(folder / path.name)


def with_provenance(record: Record, **values: Any) -> Record:
    """Return a record that says more, or something else, of its origin."""
    return replace(record, provenance={**record.provenance, **values})


def stamped(record: Record, history: Sequence[EpochRow], channels: Sequence[ChannelRow]) -> Record:
    """Return a record with the checksums of the files that will be beside it."""
    sums = {HISTORY_CHECKSUM: _sha256(history_csv(history))}
    if channels:
        sums[CHANNELS_CHECKSUM] = _sha256(channels_csv(channels))
    return with_provenance(record, **sums)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def read_beside(path: Path, record: Record, *, unchecked: bool = False) -> Beside:
    """Read and verify the history and, where the record names any, the channels beside it.

    Args:
        path: Of the record.
        record: What it holds.
        unchecked: Accept a record that does not name the checksum of its history.

    Raises:
        RecordError: A file is missing, was changed, or is not a table of its kind.
    """
    history = _text_beside(path, record, "history.csv", unchecked)
    channels = _text_beside(path, record, "channels.csv", unchecked)
    try:
        beside = Beside(read_history(history or ""), [] if channels is None else read_channels(channels))
    except RowError as error:
        raise RecordError(f"a file beside {path} cannot be read: {error}") from error
    return beside


def _check_beside(path: Path, record: Record, unchecked: bool) -> None:
    epochs: dict[str, int] = {}
    for row in read_beside(path, record, unchecked=unchecked).history:
        epochs[row.phase] = epochs.get(row.phase, 0) + 1
    if epochs != record.epochs:
        raise RecordError(f"{path} counts the epochs {record.epochs}, its history {epochs}: one of them was changed")


def _text_of(path: Path, what: str) -> str:
    """Return the text of a file: never what a pipe or a device gives, nor more than a record can be."""
    try:
        return read_plain(path)
    except (OSError, UnicodeDecodeError) as error:
        if not is_of_the_file(error):
            raise
        raise RecordError(f"{path} is no readable {what}: {error}") from error


def _text_beside(path: Path, record: Record, name: str, unchecked: bool) -> str | None:
    """Return the text of a file beside a record; None for channels that the record does not name."""
    expected = record.provenance.get(BESIDE[name])
    if expected is None:
        if name != "history.csv":
            return None
        if not unchecked:
            raise RecordError(f"{path} does not name the SHA-256 of its {name}: it was changed")
    text = _text_of(path.with_name(name), name)
    found = _sha256(text)
    if expected is not None and found != expected:
        raise RecordError(f"{name} beside {path} has SHA-256 {found[:12]}, expected {str(expected)[:12]}")
    return text
