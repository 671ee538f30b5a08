"""Leases: at most one process does a piece of work, and a dead owner blocks nobody.

A lease is a small file that names its owner. An owner on this machine is dead if its process is gone (or its PID now
belongs to a process that started at another time). An owner on another machine is dead if its file was not touched for
`STALE_AFTER` seconds *of the observer's own monotonic clock*: clocks are never compared, so clock jumps do no harm. The
file is read and changed under a kernel lock that is held only briefly.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from benchmarks.machine.atomic_write import write_atomically
from benchmarks.machine.paths import inside
from benchmarks.machine.plain_files import read_plain

HEARTBEAT = 5.0  # seconds between two touches of an owner's file

STALE_AFTER = 60.0  # seconds without a touch after which an owner on another machine counts as dead

PAUSE = 0.2  # seconds between two attempts at a held lease

GUARD_WAIT = 10.0  # seconds; exceeded only if a process was frozen while holding the kernel's lock

SAY_AFTER = 3.0  # seconds of waiting for one owner before a message is printed


class LeaseLostError(OSError):
    """Another process took over: this one was silent for too long."""


@dataclass(frozen=True)
class Owner:
    """Who holds a lease.

    Attributes:
        machine: Host name, boot and process namespace: where its process number means something.
        pid: Process number.
        started: When that process started, in clock ticks since boot ("" where that is not known).
        token: Unique to this lease.
    """

    machine: str
    pid: int
    started: str
    token: str

    def __str__(self) -> str:
        """Return machine and process in words."""
        return f"process {self.pid} on {self.machine.partition('/')[0]}"


@cache
def this_machine() -> str:
    """Return an identifier of this machine, since its boot, and of this container."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    parts = [boot.read_text().strip() if boot.is_file() else "", str(namespace.stat().st_ino) if boot.is_file() else ""]
    return "/".join([socket.gethostname(), *parts])


def process_started(pid: int) -> str | None:
    """Return when a process of this machine started, or None if it does not exist (zombies do not count)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "" if not Path("/proc/self/stat").is_file() and _is_alive(pid) else None
    fields = text.rpartition(")")[2].split()  # after the name, which may hold anything: state is field 3, start 22
    return None if fields[0] in "ZX" else fields[19]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def process_age() -> float:
    """Return the seconds since this process started (0 where that is not known)."""
    uptime = Path("/proc/uptime")
    started = process_started(os.getpid())
    if not uptime.is_file() or not started:
        return 0.0
    return max(0.0, float(uptime.read_text().split()[0]) - int(started) / os.sysconf("SC_CLK_TCK"))


def new_owner() -> Owner:
    """Return this process as an owner."""
    pid = os.getpid()
    return Owner(this_machine(), pid, process_started(pid) or "", uuid.uuid4().hex)


def read_owner(path: Path) -> Owner | None:
    """Return the owner of the lease at `path`; None if it is free, or the file is incomplete."""
    try:
        data = json.loads(read_plain(path))
        owner = Owner(**data)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return owner if isinstance(owner.pid, int) and isinstance(owner.token, str) else None


@dataclass
class Watch:
    """What an observer saw of a lease's owner, to tell a dead owner from a living one."""

    seen: tuple[str, int] | None = None
    since: float = 0.0
    waiting_for: str = ""
    waiting_since: float = 0.0
    said: bool = False

    def to_say(self, path: Path) -> Owner | None:
        """Return the owner of a lease once, after more than `SAY_AFTER` seconds of waiting."""
        owner = read_owner(path)
        if owner is None:
            return None
        if owner.token != self.waiting_for:
            self.waiting_for, self.waiting_since, self.said = owner.token, time.monotonic(), False
        if self.said or time.monotonic() - self.waiting_since < SAY_AFTER:
            return None
        self.said = True
        return owner

    def is_dead(self, owner: Owner, path: Path) -> bool:
        """Return whether the owner is known to be dead."""
        if owner.machine == this_machine():
            return process_started(owner.pid) != owner.started
        try:
            sign = owner.token, path.stat().st_mtime_ns
        except FileNotFoundError:
            return False  # just released: the next attempt finds it free
        if sign != self.seen:
            self.seen, self.since = sign, time.monotonic()
        return time.monotonic() - self.since > STALE_AFTER


@dataclass
class Lease:
    """A lease that this process holds; a context manager that releases it."""

    path: Path
    owner: Owner
    _over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        """Start touching the file at regular intervals."""
        threading.Thread(target=self._beat, daemon=True, name=f"lease {self.path.name}").start()

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT):
            if read_owner(self.path) not in (self.owner, None):  # None: perhaps it could only not be read just now
                return
            try:
                os.utime(self.path)
            except OSError:  # the disk failed: the lease will expire
                continue

    def check(self) -> None:
        """Make sure that the lease is still held.

        Raises:
            LeaseLostError: Another process took over.
        """
        holder = read_owner(self.path) or read_owner(self.path)  # one attempt may fail, on a disk of a network
        if holder != self.owner:
            raise LeaseLostError(f"lease {self.path} was taken over by {holder}: this process was silent for too long")

    def release(self) -> None:
        """Release the lease, if it is still held."""
        self._over.set()
        with suppress(Timeout), _guard(self.path):  # a lease that cannot be released now ends with this process
            if read_owner(self.path) == self.owner:
                self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()


def _guard(path: Path) -> FileLock:
    return FileLock(inside(path.parent, path.with_suffix(".lock").name), timeout=GUARD_WAIT)


def try_lease(path: Path, watch: Watch | None = None) -> Lease | None:
    """Acquire the lease at `path` if it is free or its owner is dead; return None if it is held."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _guard(path):
            holder = read_owner(path)
            if holder is not None and not (watch or Watch()).is_dead(holder, path):
                return None
            owner = new_owner()
            # a new file in place of whatever is there: writing into a pipe would wait for a reader
            write_atomically(path, json.dumps(asdict(owner)).encode(), durable=False)
    except Timeout:
        return None
    return Lease(path, owner)


def _say_nothing(owner: Owner) -> None:
    """Do nothing."""


def wait_for_lease(path: Path, pause: Callable[[], None], say: Callable[[Owner], None] = _say_nothing) -> Lease:
    """Acquire the lease at `path`, waiting until it is free.

    Args:
        path: The lease.
        pause: Called between attempts; may raise.
        say: Called once with the owner after some seconds of waiting.
    """
    watch = Watch()
    while (lease := try_lease(path, watch)) is None:
        owner = watch.to_say(path)
        if owner is not None:
            say(owner)
        pause()
    return lease


def only_writer(path: Path) -> Lease:
    """Wait until no other process changes a file, then hold its lease: from before it is read until it is written."""
    return wait_for_lease(lease_path(path.parent, path.name), partial(time.sleep, PAUSE))


def lease_path(folder: Path, *names: str) -> Path:
    """Return the path of a lease in a folder of results or checkpoints.

    Raises:
        OutsideError: That leads out of the folder.
    """
    return inside(folder, ".locks", "--".join(names) + ".owner")
