"""Merging records that were made elsewhere: each is verified, and none silently replaces another."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.analysis.fairness import UnfairComparisonError, check_comparable
from benchmarks.config import Cell, Experiment, canonical, target_name
from benchmarks.datasets.image_folder import PREFIX
from benchmarks.experiments import EXPERIMENTS
from benchmarks.machine.atomic_write import write_atomically
from benchmarks.machine.paths import OutsideError, inside
from benchmarks.methods.registry import find_method
from benchmarks.models.hub import PRETRAINED
from benchmarks.records.record import (
    BESIDE,
    CHECKSUM,
    HISTORY_CHECKSUM,
    SIGNATURE,
    NewerRecordError,
    Record,
    RecordError,
    move_to,
    read_beside,
    read_record,
    record_paths,
    run_folder,
    runs_folder,
    set_aside,
    stamped,
    with_provenance,
)
from benchmarks.records.rows import channels_csv, history_csv
from benchmarks.records.signatures import SignatureError, Signers
from benchmarks.records.table_names import table_name, whose_table
from benchmarks.running.adhoc import check_adds_only, find_any, known_experiments, load_experiment, save_experiment
from benchmarks.running.bench import Bench
from benchmarks.running.cells import cells_of
from benchmarks.running.survey import check_same_configuration
from benchmarks.suggest import unknown_name

# what another machine needs before it runs anything
ADVICE = "Run it there with the strengths of this folder (copy its `tuning` first) and the same code."

MADE_AS = "made_as"  # in the provenance: the experiment that a record was made as, where another one took it over


@dataclass
class Merged:
    """The result of a merge, by run.

    Attributes:
        added: Copied.
        replaced: Copied over a failed run, or over another record that was to be replaced.
        present: Already there, with the same results.
        refused: Refused, with the reason.
    """

    added: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def records_under(source: Path) -> list[Path]:
    """Return the files of the records that can be merged from a results folder.

    Raises:
        ValueError: There are none.
    """
    paths = record_paths(source)
    if not paths:
        raise ValueError(f"there are no records under {runs_folder(source)}")
    return paths


def merge(
    bench: Bench,
    source: Path,
    experiments: Mapping[str, Experiment],
    *,
    replace: bool = False,
    unchecked: bool = False,
    signers: Signers | None = None,
    into: str | None = None,
) -> Merged:
    """Copy the records under a results folder into that of `bench`.

    Args:
        bench: Its results folder receives the records.
        source: Another results folder.
        experiments: By name: a record of one of these must have been made with its values.
        replace: Let a complete record replace another complete one of the same run, keeping the old file.
        unchecked: Accept records without a checksum and add one.
        signers: Who must have signed each record; None: nobody.
        into: An experiment that takes over all records, if it has the values that they were made with; each names in
            its provenance the experiment that it was made as. So a sweep that was run twice can be published twice.

    Raises:
        ValueError: There are no records under `source`, or `into` is unknown.
        OSError: A file cannot be read now, or not written; what was merged before stays.
    """
    if into is not None and into not in experiments:
        raise ValueError(unknown_name("experiment", into, sorted(experiments)))
    merged = Merged()
    for path in records_under(source):
        label = f"{path.parent.parent.name}/{path.parent.name}"
        try:
            inside(source, path.relative_to(source))
            record = read_record(path, unchecked=unchecked)
            if signers is not None:
                signers.check(path)
            _check_method(record, str(path))
            _check_table(record.experiment, record.profile, experiments, str(path))
            _check_configuration(bench, record, experiments, str(path))
            if into is not None and into != record.experiment:
                origin = {MADE_AS: record.provenance.get(MADE_AS, record.experiment)}
                record = with_provenance(dataclasses.replace(record, experiment=into), **origin)
                _check_configuration(bench, record, experiments, str(path))
            _check_company(bench.results, record, str(path))
            _bring_in(bench.results, path, record, merged, replace=replace, signers=signers)
        except (RecordError, OutsideError, SignatureError) as error:
            merged.refused[label] = str(error)
    return merged


def bring_in_sweeps(source: Path, results: Path, signers: Signers | None = None) -> dict[str, str]:
    """Copy the saved sweeps of a results folder; return why some are refused, by path.

    A sweep that exists already may gain methods, targets and seeds, but nothing else may differ. A new one may not say
    which folders and files of this machine are read. Where there are `signers`, one of them must have signed it.
    """
    refused = {}
    for path in sorted((source / "sweeps").glob("*.json")):
        try:
            inside(source, path.relative_to(source))
            new = load_experiment(path)
            if signers is not None:
                signers.check(path)
            for profile in new.profiles:
                cells_of(new, profile)
            if new.name in known_experiments(results):
                kept = find_any(new.name, results)
                check_adds_only(kept, new, str(path))
                new = dataclasses.replace(new, title=kept.title, claim=kept.claim, priority=kept.priority)
            else:
                _check_reads_nothing_here(new, str(path))
                for profile in new.profiles:
                    _check_table(new.name, profile, EXPERIMENTS, str(path))
            if new.name not in EXPERIMENTS:
                save_experiment(new, results)
        except ValueError as error:
            refused[str(path)] = str(error)
    return refused


def _check_reads_nothing_here(new: Experiment, where: str) -> None:
    """Refuse a sweep that names a folder or file of this machine: only its users may say what is read."""
    named = {"dataset": new.dataset.startswith(PREFIX), "weights": new.weights not in (None, PRETRAINED)}
    for name, place in named.items():
        if place:
            raise ValueError(
                f"{where}: the {name} is {getattr(new, name)!r}, a place on this machine. If that is meant, copy the "
                "file into the folder `sweeps` of your results, and merge again"
            )


def _check_table(experiment: str, profile: str, known: Mapping[str, Experiment], where: str) -> None:
    """Refuse an experiment whose tables would have the names of a known one's.

    Raises:
        RecordError: They would; the message says whose.
    """
    pairs = [(name, each) for name, other in known.items() for each in other.profiles]
    owner = None if experiment in known else whose_table(experiment, profile, pairs)
    if owner is not None:
        name = table_name(experiment, profile)
        raise RecordError(f"{where}: the name of its table, {name!r}, belongs to {owner}; rename the experiment")


def _check_method(record: Record, where: str) -> None:
    """Refuse a record whose parts are not those of its method."""
    try:
        method = find_method(record.method)
    except ValueError as error:
        raise RecordError(f"{where}: {error}") from error
    for part in ("regularizer", "importance", "selection"):
        expected, found = getattr(method, part).name, getattr(record, part)
        if found != expected:
            raise RecordError(f"{where}: the {part} is {found[:40]!r}; that of {record.method!r} is {expected!r}")


def _check_company(results: Path, record: Record, where: str) -> None:
    """Refuse a record that cannot share a table with the existing ones: of its target, of its seed, or any."""
    if not record.complete:
        return
    names = (f"*-{target_name(record.macs_kept)}-seed*", f"*-seed{record.seed}", "*")
    for there in filter(None, [_first_beside(results, record, name) for name in names]):
        try:
            check_comparable([there, record])
        except UnfairComparisonError as error:
            path = run_folder(results, there.experiment, there.run_id) / "record.json"
            raise RecordError(f"{where} cannot be compared with {path}: {error}") from error


def _first_beside(results: Path, record: Record, names: str) -> Record | None:
    """Return the first existing record that a table would show beside another one."""
    folder = runs_folder(results) / record.experiment
    for path in sorted(folder.glob(f"{record.profile}-{names}/record.json")):
        there = _existing(path)
        if there is None or not there.complete or there.run_id == record.run_id:
            continue
        if (there.profile, there.protocol) == (record.profile, record.protocol):
            return there
    return None


def _check_configuration(bench: Bench, record: Record, experiments: Mapping[str, Experiment], where: str) -> None:
    experiment = experiments.get(record.experiment)
    if experiment is None:
        return  # of a sweep that is unknown here: its records are checked against each other when tables are made
    if record.profile not in experiment.profiles:
        raise RecordError(f"{where} is of profile {record.profile!r}, which {record.experiment!r} does not have")
    targets = {target_name(share): share for share in experiment.profile(record.profile).macs_kept}
    target = targets.get(target_name(record.macs_kept), record.macs_kept)
    cell = Cell(experiment, record.profile, record.method, record.seed, target)
    if cell.run_id != record.run_id:
        raise RecordError(f"{where} holds a run that is called {cell.run_id!r}, not {record.run_id!r}")
    check_same_configuration(cell, record, where, bench, ADVICE)


def _bring_in(
    results: Path, path: Path, record: Record, merged: Merged, *, replace: bool, signers: Signers | None
) -> None:
    label = f"{record.experiment}/{record.run_id}"
    target = run_folder(results, record.experiment, record.run_id) / "record.json"
    existing = _existing(target)
    if existing is not None and _results(existing) == _results(record):
        merged.present.append(label)
        return
    if existing is not None and existing.complete:
        if not record.complete:
            merged.present.append(label)
            return
        if record.protocol < existing.protocol:
            raise RecordError(
                f"{path} is of protocol {record.protocol}; {target} holds the same run under protocol "
                f"{existing.protocol}, which supersedes it"
            )
        if not replace and record.protocol == existing.protocol:
            raise RecordError(
                f"{path} differs from the complete record {target} ({_first_difference(existing, record)}): one is "
                "wrong. Look at both; --replace takes the new one and keeps a copy of the old one"
            )
    if target.is_file():
        set_aside(target, record.protocol)
    if target.is_file():
        move_to("replaced", target)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_name(SIGNATURE).unlink(missing_ok=True)
    # files with valid checksums are copied unchanged, without fsync: the source still exists
    unchanged = path.parent.parent.name == record.experiment
    if unchanged and CHECKSUM in record.provenance and HISTORY_CHECKSUM in record.provenance:
        contents = {name: path.with_name(name).read_bytes() for name, key in BESIDE.items() if key in record.provenance}
        contents["record.json"] = path.read_bytes()
        if signers is not None:  # of what is written, whatever was read before
            contents[SIGNATURE] = signers.check(path, contents["record.json"])
    else:
        contents = _stamped_files(path, record)
    for name, content in contents.items():
        write_atomically(target.with_name(name), content, durable=False)
    (merged.added if existing is None else merged.replaced).append(label)


def _stamped_files(path: Path, record: Record) -> dict[str, bytes]:
    """Return the files of a record that had no checksums, or others, by name, with checksums added."""
    beside = read_beside(path, record, unchecked=True)
    files = {"history.csv": history_csv(beside.history)}
    if beside.channels:
        files["channels.csv"] = channels_csv(beside.channels)
    files["record.json"] = stamped(record, beside.history, beside.channels).to_json()
    return {name: text.encode() for name, text in files.items()}


def _existing(target: Path) -> Record | None:
    """Return the existing record; a damaged one counts as missing, one that cannot be read now is an error."""
    try:
        return read_record(target) if target.is_file() else None
    except NewerRecordError:  # it stays
        raise
    except RecordError:
        return None


def _results(record: Record) -> dict[str, Any]:
    """Return everything that must match between two equal runs."""
    values = {name: value for name, value in vars(record).items() if name not in ("timing", "provenance")}
    if record.failure:  # a traceback names files of one machine
        values["failure"] = {name: value for name, value in record.failure.items() if name != "traceback"}
    return values


def _first_difference(one: Record, other: Record) -> str:
    first, second = _results(one), _results(other)
    names = [name for name in first if canonical(first[name]) != canonical(second[name])]
    return f"in {names[0]!r}" if names else "in nothing"
