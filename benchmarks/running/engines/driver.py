"""From a list of runs to their records: which is next, who else is at work, and what to do when a worker dies."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.config import PROTOCOL, Cell
from benchmarks.machine.leases import PAUSE, Lease, Watch, lease_path, try_lease
from benchmarks.methods.registry import find_method
from benchmarks.records.record import CHECKSUM, Record, RecordError, read_record, record_path, write_record
from benchmarks.running.bench import Bench, Observer
from benchmarks.running.engines.contract import Died, Ended, Engine, EpochDone, Event, Started, Task, Waiting
from benchmarks.running.run import lost_worker_record, strength_of
from benchmarks.running.stages import stages_of
from benchmarks.running.stopping import Control

ATTEMPTS = 3  # attempts per run if its workers die

LOOK_AHEAD = 64  # runs that are compared when the next is chosen


class MachineTroubleError(OSError):
    """A file cannot be written, so the command cannot continue here."""


@dataclass
class SweepOutcome:
    """The result of a sweep.

    Attributes:
        records: Records of the runs that ended here.
        elsewhere: Records that another command wrote in the meantime.
        left: Runs without a record.
        stopped: Why some runs are left, or None.
    """

    records: list[Record] = field(default_factory=list)
    elsewhere: list[Record] = field(default_factory=list)
    left: list[Cell] = field(default_factory=list)
    stopped: str | None = None


class Driver:
    """Does runs on an engine, except those that another command on the same results is doing."""

    def __init__(self, bench: Bench, engine: Engine, control: Control, observers: Sequence[Observer]) -> None:
        self._bench, self._engine, self._control, self._observers = bench, engine, control, observers
        self._tasks: dict[str, Task] = {}  # this and what follows: by label
        self._stages: dict[str, list[str]] = {}
        self._before: dict[str, str | None] = {}
        self._leases: dict[str, Lease] = {}
        self._watches: dict[str, Watch] = {}
        self._attempts: dict[str, int] = {}
        self._trained: set[str] = set()  # keys of stages that are known to be finished
        self._outcome = SweepOutcome()

    def drive(self, cells: Sequence[Cell]) -> SweepOutcome:
        """Do runs until all have a record or it is time to stop.

        Raises:
            MachineTroubleError: The disk is full, for example; all earlier work is safe.
        """
        for cell in cells:
            self._note(cell)
        todo = list(cells)
        try:
            while todo or self._leases:
                self._check_deadline()
                while len(self._leases) < self._engine.slots and not self._outcome.stopped:
                    if not self._start_one(todo):
                        break
                if self._leases:
                    self._engine.wait(self._handle)
                elif self._outcome.stopped:
                    break
                elif todo:  # another command is doing all remaining runs
                    self._control.waited()
                    time.sleep(PAUSE)
        finally:
            self._engine.close()
            for lease in self._leases.values():
                lease.release()
        self._outcome.left += todo
        return self._outcome

    def _note(self, cell: Cell) -> None:
        strength, device = strength_of(self._bench, cell), self._bench.device.type
        self._tasks[cell.label] = Task(cell, strength)
        stages = stages_of(cell, find_method(cell.method), strength.value, device)
        self._stages[cell.label] = [stage.key for stage in stages]
        self._before[cell.label] = _checksum_of(self._read(cell))

    def _check_deadline(self) -> None:
        reason = self._control.stop_reason()
        if reason and not self._outcome.stopped:
            self._outcome.stopped = reason
            self._engine.stop()  # out of time, too: a task that waited for its turn counts from when it began

    def _start_one(self, todo: list[Cell]) -> bool:
        """Start the first run that no other command is doing, or mark it as done; return whether there was one."""
        for cell in self._in_order(todo):
            path = lease_path(self._bench.results, cell.experiment.name, cell.run_id)
            lease = try_lease(path, self._watches.setdefault(cell.label, Watch()))
            if lease is None:
                self._watch_owner(cell, path)
                continue
            todo.remove(cell)
            record = self._read(cell)
            if record is not None and (_is_done(record) or _checksum_of(record) != self._before[cell.label]):
                lease.release()  # another command did it in the meantime
                self._outcome.elsewhere.append(record)
                return True
            self._leases[cell.label] = lease
            self._engine.start(self._tasks[cell.label])
            return True
        return False

    def _watch_owner(self, cell: Cell, path: Path) -> None:
        owner = self._watches[cell.label].to_say(path)
        if owner is not None:
            self._say_waiting(Waiting(cell, f"{owner} does this run"))

    def _say_waiting(self, event: Waiting) -> None:
        for observer in self._observers:
            observer.waiting(event.cell, event.reason)

    def _in_order(self, todo: Sequence[Cell]) -> list[Cell]:
        """Put runs first that need not wait for a stage in training, as far as can be seen."""
        if not self._leases:
            return list(todo)
        busy = {key for label in self._leases for key in self._open_stages(label)}
        near, far = todo[:LOOK_AHEAD], todo[LOOK_AHEAD:]
        return [*sorted(near, key=lambda cell: not busy.isdisjoint(self._open_stages(cell.label))), *far]

    def _open_stages(self, label: str) -> list[str]:
        return [key for key in self._stages[label] if not self._is_trained(key)]

    def _is_trained(self, key: str) -> bool:
        if key not in self._trained and (self._bench.store.progress(key) or {}).get("finished"):
            self._trained.add(key)
        return key in self._trained

    def _read(self, cell: Cell) -> Record | None:
        path = record_path(self._bench.results, cell)
        try:
            return read_record(path) if path.is_file() else None
        except RecordError:
            return None

    def _handle(self, event: Event) -> None:
        match event:
            case Started():
                for observer in self._observers:
                    observer.run_started(event.cell, event.stages)
            case EpochDone():
                for observer in self._observers:
                    observer.epoch_done(event.cell, event.stage, event.row, cached=event.cached)
            case Waiting():
                self._say_waiting(event)
            case Ended():
                self._end(event)
            case Died():
                self._mourn(event)

    def _end(self, event: Ended) -> None:
        if event.trouble:
            raise MachineTroubleError(f"{event.cell.label} cannot continue: {event.trouble}")
        if event.outcome is not None:
            record, history = event.outcome.record, event.outcome.history
            self._leases[event.cell.label].check()
            write_record(self._bench.results, record, history, event.outcome.channels)
            self._outcome.records.append(record)
            for observer in self._observers:
                observer.run_finished(event.cell, record, history)
        else:
            self._outcome.left.append(event.cell)
            self._outcome.stopped = self._outcome.stopped or event.stopped
        self._leases.pop(event.cell.label).release()

    def _mourn(self, event: Died) -> None:
        """Retry after a worker died; after some attempts the run counts as failed."""
        cell = event.cell
        attempts = self._attempts[cell.label] = self._attempts.get(cell.label, 0) + 1
        if self._outcome.stopped:
            self._end(Ended(cell, stopped=self._outcome.stopped))
        elif attempts < ATTEMPTS and not event.final:
            self._engine.start(self._tasks[cell.label])
        else:
            reason = event.reason if event.final else f"{event.reason}, {attempts} times"
            strength = self._tasks[cell.label].strength
            self._end(Ended(cell, lost_worker_record(self._bench, cell, strength, reason)))


def _is_done(record: Record) -> bool:
    """Return whether a run need not be done again: not so under an older protocol."""
    return record.complete and record.protocol == PROTOCOL


def _checksum_of(record: Record | None) -> str | None:
    return None if record is None else str(record.provenance.get(CHECKSUM))
