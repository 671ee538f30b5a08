"""Runs as tasks of a Ray cluster (extra `ray`): several small networks on one GPU, retried when a worker dies.

Records come back to the driver, which alone writes them. Checkpoints are under `--checkpoints` on the worker's machine.
On a cluster this should be a shared folder, so that any machine can resume a run.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

from benchmarks.config import Cell
from benchmarks.machine.paths import ROOT
from benchmarks.machine.provenance import git_state, this_command
from benchmarks.records.record import with_provenance
from benchmarks.running.bench import Bench
from benchmarks.running.engines.contract import Died, Ended, Event, Task, Tell, perform
from benchmarks.running.engines.driver import ATTEMPTS
from benchmarks.running.stopping import Control, Seldom

POLL = 0.5  # seconds


PACKAGES = ("oicsr", "baselines", "benchmarks")

INSTALL = "the Ray engine needs the extra `ray`: pip install 'ray[default]' (or '.[bench,ray]')"


class Mailbox:
    """An actor that carries events to the driver and stop requests to the workers."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._stopping = False

    def put(self, event: Event) -> None:
        """Take an event."""
        self._events.append(event)

    def stopping(self) -> bool:
        """Return whether to stop."""
        return self._stopping

    def take(self) -> list[Event]:
        """Return the events since the last time."""
        events, self._events = self._events, []
        return events

    def stop(self) -> None:
        """Let every worker stop after its next checkpoint."""
        self._stopping = True


class RayTasks:
    """Every run is a Ray task.

    Args:
        bench: Where to run; its folders as they are called on every machine.
        control: The control of the command.
        jobs: How many runs at a time, at most.
        expected: Seconds of an epoch by stage key.
        address: Of a cluster (`auto`: the one that runs on this machine); None starts one here.
        gpu_share: Share of a GPU that a run takes.
        threads: CPU cores that a run takes.

    Raises:
        ValueError: Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(
        self,
        bench: Bench,
        control: Control,
        jobs: int,
        expected: dict[str, float],
        *,
        address: str | None = None,
        gpu_share: float = 1.0,
        threads: int = 1,
    ) -> None:
        self.slots = jobs
        self._ray = _connect(address, jobs * threads)
        store = type(bench.store)(bench.store.folder.absolute())
        self._bench = replace(bench, observers=(), control=Control(), store=store, results=bench.results.absolute())
        self._control, self._expected, self._threads = control, expected, threads
        gpus = gpu_share if bench.device.type == "cuda" else 0
        # Ray retries a task whose worker died, but not on exceptions: `perform` reports those
        options = {"num_cpus": threads, "num_gpus": gpus, "max_retries": ATTEMPTS - 1, "retry_exceptions": False}
        self._remote = self._ray.remote(**options)(_work)
        self._mailbox = self._ray.remote(num_cpus=0)(Mailbox).remote()
        self._tasks: dict[Any, Cell] = {}

    def start(self, task: Task) -> None:
        """Submit a task; it may begin later, so that its time ends by `stop` where it does not end by itself."""
        seconds = self._control.seconds_left
        reference = self._remote.remote(self._bench, task, self._mailbox, seconds, self._expected, self._threads)
        self._tasks[reference] = task.cell

    def wait(self, tell: Tell) -> None:
        """Report what arrived in the mailbox, and which tasks ended."""
        done, _ = self._ray.wait(list(self._tasks), timeout=POLL)
        for event in self._ray.get(self._mailbox.take.remote()):
            tell(event)
        for reference in done:
            cell = self._tasks.pop(reference)
            tell(self._outcome(reference, cell))

    def _outcome(self, reference: Any, cell: Cell) -> Ended | Died:
        try:
            ended: Ended = self._ray.get(reference)
        except (self._ray.exceptions.WorkerCrashedError, self._ray.exceptions.OutOfMemoryError) as error:
            return Died(cell, f"its Ray worker died ({type(error).__name__}), {ATTEMPTS} times", final=True)
        except self._ray.exceptions.RayError as error:
            return Died(cell, f"its Ray task was lost ({type(error).__name__})", final=True)
        if ended.outcome is None:
            return ended
        here = {**git_state(), "command": this_command()}  # a worker knows neither
        return replace(ended, outcome=replace(ended.outcome, record=with_provenance(ended.outcome.record, **here)))

    def stop(self) -> None:
        """Ask every task to end after its next checkpoint."""
        self._ray.get(self._mailbox.stop.remote())

    def close(self) -> None:
        """Cancel what is still at work, and leave the cluster."""
        for reference in self._tasks:
            self._ray.cancel(reference, force=True)
        self._tasks = {}
        self._ray.shutdown()


def _connect(address: str | None, cpus: int) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Ray about itself
            import ray
    except ImportError as error:
        raise ValueError(INSTALL) from error
    options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "warning"}
    if address is None:
        options |= {"num_cpus": cpus}
    else:  # a cluster's machines need the code
        options = {**options, "address": address, "runtime_env": {"py_modules": [str(ROOT / p) for p in PACKAGES]}}
        options.pop("include_dashboard")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ValueError(f"the Ray cluster {address or 'on this machine'!r} cannot be reached: {error}") from error
    return ray


def _work(
    bench: Bench, task: Task, mailbox: Any, seconds: float | None, expected: dict[str, float], threads: int
) -> Ended:
    """Do one run in a Ray worker."""
    import ray
    import torch

    torch.set_num_threads(threads)
    ended: list[Ended] = []

    def tell(event: Event) -> None:
        if isinstance(event, Ended):
            ended.append(event)
        else:
            mailbox.put.remote(event)

    control = Control(seconds, Seldom(lambda: bool(ray.get(mailbox.stopping.remote()))), expected)
    perform(bench, task, control, tell)
    return ended[-1]
