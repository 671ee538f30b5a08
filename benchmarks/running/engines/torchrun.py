"""One run at a time on all processes that torchrun started: the first one drives, the others do what it does."""

from __future__ import annotations

import signal
from dataclasses import replace

from benchmarks.machine.processes import from_first
from benchmarks.running.bench import Bench
from benchmarks.running.engines.contract import Event, Task, Tell, perform
from benchmarks.running.shared import SharedControl, SharedStore
from benchmarks.running.stopping import Control


class TorchrunEngine:
    """Does each task on every process at once; of the first process."""

    slots = 1

    def __init__(self, bench: Bench, control: Control, expected: dict[str, float]) -> None:
        self._bench = replace(bench, store=SharedStore(bench.store.folder))
        self._control = SharedControl(control, expected)
        self._task: Task | None = None

    def start(self, task: Task) -> None:
        """Note the task; `wait` does it."""
        self._task = task

    def wait(self, tell: Tell) -> None:
        """Send the task to the others, and do it with them."""
        task, self._task = self._task, None
        if task is not None:
            from_first(lambda: task)
            perform(self._bench, task, self._control, tell)

    def stop(self) -> None:
        """Nothing: the control that was given says when."""

    def close(self) -> None:
        """Nothing is left open: `dismiss` ends the others."""


def follow(bench: Bench) -> None:
    """Do every task with the first process, until it says that there are no more."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the first process says what they mean
        signal.signal(number, signal.SIG_IGN)
    shared, control = replace(bench, store=SharedStore(bench.store.folder)), SharedControl(Control(), {})
    while True:
        task: Task | None = from_first(lambda: None)
        if task is None:
            return
        perform(shared, task, control, _ignore)


def dismiss() -> None:
    """Tell the others that there are no more tasks."""
    from_first(lambda: None)


def _ignore(event: Event) -> None:
    pass
