"""Replaying records into Weights & Biases: one project, a group per experiment, tables and figures as artifacts.

Publishing is idempotent. A ledger next to the W&B files says which record went where, so unchanged records are not sent
again, and the ids of W&B runs derive from the records, so sending one again replaces it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.config import digest
from benchmarks.machine.atomic_write import write_atomically
from benchmarks.records.record import CHECKSUM, Record, find_records, read_beside, runs_folder
from benchmarks.running.checkpoints import CheckpointStore
from benchmarks.running.export import ExportError, FinetunedNetwork, write_safetensors
from benchmarks.running.run_config import record_config
from benchmarks.running.wandb_mirror import (
    OVERVIEW,
    RUN,
    Place,
    log_epoch,
    log_overview,
    log_result,
    open_run,
    overview_row,
)

LEDGER = "published.json"

SUFFIXES = {"tables": ("csv", "md", "tex"), "figures": ("svg", "png")}


@dataclass
class Published:
    """The result: names of W&B runs that were written or existed already, and why records were refused."""

    written: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def publish(
    results: Path,
    place: Place,
    experiments: Sequence[str] | None = None,
    *,
    again: bool = False,
    store: CheckpointStore | None = None,
) -> Published:
    """Write the records of a results folder into W&B, except those that are there already.

    Args:
        results: Holds `runs/`, `tables/` and `figures/`.
        place: The destination.
        experiments: Names (None: all).
        again: Also write those in the ledger; W&B replaces them.
        store: Checkpoints from which the fine-tuned networks are added as artifacts, where they are there.

    Raises:
        RecordError: The files of a record were changed meanwhile.
        wandb.Error, OSError: W&B or its folder failed; what was written is in the ledger.
    """
    ledger = Ledger(place, again=again)
    found = find_records(results, experiments)
    records = found.records
    ledger.published.refused = list(found.refused.values())
    for record in records:
        name, stamp = f"{record.experiment}/{record.run_id}", str(record.provenance.get(CHECKSUM))
        path = runs_folder(results) / record.experiment / record.run_id / "record.json"
        ledger.once(name, stamp, partial(_replay, record, path, place, store))
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record.complete:
            groups.setdefault((record.experiment, record.profile), []).append(record)
    for (experiment, profile), group in groups.items():
        files = list(_files(results, f"{experiment}-{profile}"))
        stamp = digest([[r.provenance.get(CHECKSUM) for r in group], [digest(f.read_bytes().hex()) for f in files]])
        name = f"{experiment}/{profile}-overview"
        ledger.once(name, stamp, partial(_overview, group, files, place))
    return ledger.published


def _files(results: Path, name: str) -> Iterator[Path]:
    for folder, suffixes in SUFFIXES.items():
        for suffix in suffixes:
            path = results / folder / f"{name}.{suffix}"
            if path.is_file():
                yield path


class Ledger:
    """Which record went where, in a file next to W&B's own; a damaged one counts as empty."""

    def __init__(self, place: Place, *, again: bool) -> None:
        self._path = place.folder / LEDGER
        self._target = f"{place.mode}:{place.entity or ''}/{place.project}"
        self._again = again
        self._all = self._load()
        self.published = Published()

    def _load(self) -> dict[str, dict[str, str]]:
        try:
            data = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        entries = data.items() if isinstance(data, dict) else ()
        return {target: entry for target, entry in entries if isinstance(entry, dict)}

    def once(self, name: str, stamp: str, action: Callable[[], None]) -> None:
        """Do something for a record, unless it was already done for the same content."""
        if self.kept(name) == stamp:
            self.published.present.append(name)
            return
        action()
        self.keep(name, stamp)
        self.published.written.append(name)

    def kept(self, name: str) -> str | None:
        """Return what was kept under a name, or None: also where everything is to be sent again."""
        return None if self._again else self._all.get(self._target, {}).get(name)

    def keep(self, name: str, value: str) -> None:
        """Keep a value under a name."""
        self._all.setdefault(self._target, {})[name] = value
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, json.dumps(self._all, indent=1, sort_keys=True).encode())


def _replay(record: Record, path: Path, place: Place, store: CheckpointStore | None) -> None:
    history = read_beside(path, record).history
    run = open_run(place, record.experiment, record.profile, record.run_id, RUN, record_config(record))
    for number, row in enumerate(history, start=1):
        log_epoch(run, row, number)
    log_result(run, record)
    if store is not None and record.complete:
        _log_network(run, record, store)
    run.finish(exit_code=0 if record.complete else 1)


def _log_network(run: Any, record: Record, store: CheckpointStore) -> None:
    """Add the fine-tuned network (safetensors: weights and plan) as an artifact, if its checkpoint is still there."""
    import wandb

    try:
        network = FinetunedNetwork(record, store)
    except ExportError:
        return
    values = {"method": record.method, "macs_kept": record.macs_kept, **record.states["finetuned"]}
    artifact: Any = wandb.Artifact(f"{record.experiment}-{record.run_id}", type="model", metadata=values)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "pruned.safetensors"
        write_safetensors(path, network)
        artifact.add_file(str(path))
    run.log_artifact(artifact)


def _overview(records: Sequence[Record], files: Sequence[Path], place: Place) -> None:
    import wandb

    first = records[0]
    name = f"{first.profile}-overview"
    run = open_run(place, first.experiment, first.profile, name, OVERVIEW, {"experiment": first.experiment})
    log_overview(run, map(overview_row, records))
    for kind in SUFFIXES:
        mine = [path for path in files if path.parent.name == kind]
        if mine:
            artifact: Any = wandb.Artifact(f"{first.experiment}-{first.profile}-{kind}", type=kind)
            for path in mine:
                artifact.add_file(str(path))
            run.log_artifact(artifact)
    run.finish()
