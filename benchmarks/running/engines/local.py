"""Runs on this machine: in this process, or each in its own process."""

from __future__ import annotations

import multiprocessing
import signal
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from benchmarks.config import Cell
from benchmarks.running.bench import Bench
from benchmarks.running.engines.contract import Died, Ended, Task, Tell, perform
from benchmarks.running.stopping import Control

POLL = 0.5  # seconds

# imported on first use: it would cost every process seconds
LAZY = ["torch.export._trace", "sklearn.datasets", "torchvision.datasets"]


class InProcess:
    """One run at a time, in this process."""

    slots = 1

    def __init__(self, bench: Bench, control: Control) -> None:
        self._bench, self._control = bench, control
        self._task: Task | None = None

    def start(self, task: Task) -> None:
        """Note the task; `wait` does it."""
        self._task = task

    def wait(self, tell: Tell) -> None:
        """Do the task."""
        task, self._task = self._task, None
        if task is not None:
            perform(self._bench, task, self._control, tell)

    def stop(self) -> None:
        """Do nothing: the given control decides when."""

    def close(self) -> None:
        """Do nothing: nothing is open."""


@dataclass
class _Worker:
    process: BaseProcess
    events: Connection
    cell: Cell
    slot: int
    ended: bool = False


class Processes:
    """Several runs at a time, each in its own process, so that a killed one does not affect the others.

    Args:
        bench: Where to run. Its CPU threads, and the machine's GPUs, are divided among the processes.
        control: The control of the command.
        jobs: How many runs at a time.
        expected: Seconds of an epoch by stage key.
        device_named: Whether the device was named explicitly; otherwise GPUs are assigned round-robin.
    """

    def __init__(
        self, bench: Bench, control: Control, jobs: int, expected: dict[str, float], *, device_named: bool = False
    ) -> None:
        self.slots = jobs
        self._bench, self._control, self._expected = replace(bench, observers=()), control, expected
        self._devices = 1 if device_named or bench.device.type != "cuda" else torch.cuda.device_count()
        self._threads = max(1, torch.get_num_threads() // jobs)
        # the fork server imports the suite once and never uses a GPU or a thread, so its children start fast and clean
        kinds = multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context("forkserver" if "forkserver" in kinds else "spawn")
        if "forkserver" in kinds:
            self._context.set_forkserver_preload(["benchmarks.running.engines.local", *LAZY])
        self._stop = self._context.Event()
        self._workers: list[_Worker] = []

    def start(self, task: Task) -> None:
        """Start a process."""
        slot = min(set(range(self.slots)) - {worker.slot for worker in self._workers if not worker.ended})
        bench = replace(self._bench, control=Control())
        if self._devices > 1:
            bench = replace(bench, device=torch.device("cuda", slot % self._devices))
        ours, theirs = self._context.Pipe(duplex=False)
        arguments = (theirs, self._stop, bench, task, self._threads, self._control.seconds_left, self._expected)
        process = self._context.Process(target=_work, args=arguments)  # no daemon: loaders start processes of their own
        process.start()
        theirs.close()
        self._workers.append(_Worker(process, ours, task.cell, slot))

    def wait(self, tell: Tell) -> None:
        """Report the events of the processes, and which of them died."""
        ready = wait([worker.events for worker in self._workers], POLL)
        for worker in [worker for worker in self._workers if worker.events in ready]:
            try:
                event = worker.events.recv()
            except EOFError:
                self._bury(worker, tell)
                continue
            worker.ended = worker.ended or isinstance(event, Ended)
            tell(event)

    def _bury(self, worker: _Worker, tell: Tell) -> None:
        worker.process.join()
        worker.events.close()
        self._workers.remove(worker)
        if not worker.ended:
            tell(Died(worker.cell, _reason(worker.process.exitcode)))

    def stop(self) -> None:
        """Ask every process to stop after its next checkpoint."""
        self._stop.set()

    def close(self) -> None:
        """Kill the processes that are still running."""
        for worker in self._workers:
            worker.process.kill()
            worker.process.join()
            worker.events.close()
        self._workers = []


def _reason(code: int | None) -> str:
    if code is not None and code < 0:
        return f"its process was killed by {signal.Signals(-code).name}"
    return f"its process ended with code {code}"


def _work(
    events: Connection,
    stop: Any,
    bench: Bench,
    task: Task,
    threads: int,
    seconds: float | None,
    expected: dict[str, float],
) -> None:
    """Do one run in its own process. If the parent is gone, reporting fails and the process ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C reaches all processes; the parent decides what it means
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(threads)
    try:
        perform(bench, task, Control(seconds, stop.is_set, expected), events.send)
    except BrokenPipeError:
        return
    finally:
        events.close()
