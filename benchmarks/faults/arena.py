"""A folder in which a sweep is run, killed, resumed and compared with an undisturbed one."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import leases
from benchmarks.machine.leases import read_owner
from benchmarks.records.record import RecordError, read_record, record_paths
from benchmarks.running.engines.local import LAZY

PRELOAD = ["benchmarks.faults.injections", "benchmarks.commands.run", "benchmarks.commands.sweep", *LAZY]

PATIENCE = 900.0  # seconds after which a command counts as hanging

DEMO = ("run", "demo", "--wandb", "disabled")

TINY = (
    *("sweep", "--models", "digits-resnet", "--datasets", "digits", "--template", "demo", "--wandb", "disabled"),
    *("--methods", "oicsr-gl,none,l1", "--macs-kept", "0.5", "--seeds", "0"),
    *("--epochs", "2,2,1", "--train-images", "128", "--test-images", "100"),
)

FAR_STALE, FAR_HEARTBEAT = 3.0, 0.3  # seconds, in place of a minute and five seconds, for machines that seem far away

YEARS = 10 * 365 * 86_400.0  # seconds


class FaultError(AssertionError):
    """A fault was not survived; the message says what was lost."""


@dataclass
class Tally:
    """How often a fault was tried, and survived.

    Attributes:
        what: The fault, in words.
        tried: Number of attempts.
        survived: Attempts without a loss.
        losses: What went wrong.
    """

    what: str
    tried: int = 0
    survived: int = 0
    losses: list[str] = field(default_factory=list)

    def note(self, loss: str | None) -> None:
        """Count one try; `loss` is None where nothing was lost."""
        self.tried += 1
        if loss is None:
            self.survived += 1
        else:
            self.losses.append(loss)


@dataclass(frozen=True)
class Trouble:
    """What is wrong with the machine that a command runs on.

    Attributes:
        file_limit: Bytes; longer files cannot be written, as on a full disk.
        clock: Whether the clock jumps by years.
        machine: What the machine is called, for owners of leases that are to seem far away.
    """

    file_limit: int | None = None
    clock: bool = False
    machine: str | None = None


class CheckoutProcess:
    """A command that runs with the code of another checkout, with those methods of `multiprocessing` used here."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process, self.pid = process, process.pid

    @property
    def exitcode(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    def is_alive(self) -> bool:
        """Return whether it runs."""
        return self.exitcode is None

    def join(self, timeout: float) -> None:
        """Wait until it ends, at most `timeout` seconds."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)

    def kill(self) -> None:
        """Kill it."""
        self._process.kill()


@dataclass
class Running:
    """A command running in its own process."""

    process: Any
    log: Path

    def wait(self) -> int:
        """Wait for its end; return its exit code.

        Raises:
            FaultError: It hangs.
        """
        self.process.join(PATIENCE)
        if self.process.exitcode is None:
            self.process.kill()
            raise FaultError(f"the command did not end in {PATIENCE:g} s: {self.text()[-500:]}")
        return int(self.process.exitcode)

    def text(self) -> str:
        """Return its output so far."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.is_file() else ""

    def is_training(self) -> bool:
        """Return whether it has begun to train, or found nothing to do."""
        return "expected to take" in self.text() or "nothing to run" in self.text()

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """Wait until a condition holds; False if the command ended first."""
        while not condition():
            if not self.process.is_alive():
                return condition()
            time.sleep(0.01)
        return True


class Arena:
    """A sweep, a folder to run it in, and the records it makes when nothing disturbs it.

    Args:
        folder: Holds everything.
        command: The sweep, without folders.
        seed: Of the faults.
    """

    def __init__(self, folder: Path, command: Sequence[str] = TINY, seed: int = 0) -> None:
        self.folder, self.command = folder, tuple(command)
        self.random = random.Random(seed)
        kinds = multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context("forkserver" if "forkserver" in kinds else "spawn")
        if "forkserver" in kinds:
            # imports the suite once: commands start without delay, so that kills hit their work and not their imports
            self._context.set_forkserver_preload(PRELOAD)
        self._started = 0
        self.folder.mkdir(parents=True, exist_ok=True)
        self.reference = self._undisturbed()

    @property
    def results(self) -> Path:
        """The folder of the records."""
        return self.folder / "results"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.folder / "checkpoints"

    def _undisturbed(self) -> dict[str, Any]:
        command = self.start()
        command.wait_for(command.is_training)
        start = time.monotonic()
        if command.wait() != 0:
            raise FaultError(f"the undisturbed sweep failed: {command.text()[-2000:]}")
        self.seconds = time.monotonic() - start
        return self.recorded()

    def start(self, *more: str, trouble: Trouble | None = None) -> Running:
        """Start the sweep."""
        log, argv = self._next_log(), self._argv(*more)
        process = self._context.Process(target=_run_command, args=(argv, str(log), trouble or Trouble()), daemon=False)
        process.start()
        return Running(process, log)

    def start_in(self, checkout: Path) -> Running:
        """Start the sweep with the code of another checkout."""
        log = self._next_log()
        with log.open("ab") as output:
            command = [sys.executable, "-m", "benchmarks", *self._argv()]
            process = subprocess.Popen(command, stdout=output, stderr=output, cwd=checkout)
        return Running(CheckoutProcess(process), log)

    def _next_log(self) -> Path:
        self._started += 1
        return self.folder / f"command-{self._started}.log"

    def _argv(self, *more: str) -> list[str]:
        folders = ["--results", str(self.results.absolute()), "--checkpoints", str(self.checkpoints.absolute())]
        return [*self.command, *folders, *more]

    def clear(self) -> None:
        """Remove everything that sweeps left behind."""
        for folder in (self.results, self.checkpoints):
            shutil.rmtree(folder, ignore_errors=True)

    def record_paths(self) -> list[Path]:
        """Return the records that are there."""
        return record_paths(self.results)

    def stage_owners(self) -> list[int]:
        """Return the processes that are training a stage."""
        owners = [read_owner(path) for path in (self.checkpoints / ".locks").glob("*.owner")]
        return [owner.pid for owner in owners if owner is not None]

    def recorded(self) -> dict[str, Any]:
        """Return the results of all records and histories: everything but times and provenance.

        Raises:
            RecordError: One cannot be read, or its history was changed.
        """
        return {f"{path.parent.parent.name}/{path.parent.name}": results_of(path) for path in self.record_paths()}

    def loss(self) -> str | None:
        """Return how the records differ from those of the undisturbed sweep, or None."""
        try:
            found = self.recorded()
        except RecordError as error:
            return f"a record cannot be read: {error}"
        if found.keys() != self.reference.keys():
            return f"runs missing {sorted(self.reference.keys() - found.keys())}"
        different = [label for label, values in self.reference.items() if found[label] != values]
        return f"other results in {different}" if different else None

    def recover(self, *more: str) -> str | None:
        """Run the sweep to completion; return what was lost, or None."""
        command = self.start(*more)
        code = command.wait()
        return f"exit code {code}: {command.text()[-1500:]}" if code else self.loss()


def results_of(path: Path) -> tuple[Any, str]:
    """Return what a record and its history say, without times and provenance."""
    record = read_record(path)
    values = asdict(record)
    del values["timing"], values["provenance"]
    rows = [line.rpartition(",")[0] for line in path.with_name("history.csv").read_text().splitlines()]
    return values, "\n".join(rows)


def _run_command(argv: list[str], log: str, trouble: Trouble) -> None:
    """Run a command; the body of its process."""
    number = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(number, 1)
    os.dup2(number, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if trouble.file_limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit fails as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (trouble.file_limit, trouble.file_limit))
    if trouble.machine is not None:
        leases.STALE_AFTER, leases.HEARTBEAT = FAR_STALE, FAR_HEARTBEAT
        leases.this_machine = lambda: trouble.machine  # type: ignore[assignment]
    if trouble.clock:
        true_time, jumps = time.time, random.Random(os.getpid())
        time.time = lambda: true_time() + jumps.uniform(-YEARS, YEARS)
    sys.argv = ["benchmarks", *argv]
    runpy.run_module("benchmarks", run_name="__main__")  # as `python -m benchmarks` does
