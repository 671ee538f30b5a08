"""Checkpoints and stopping for a run that several processes share: the first one decides."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from benchmarks.machine.leases import PAUSE, Lease, Owner
from benchmarks.machine.processes import current_rank, from_first
from benchmarks.running.checkpoints import CheckpointStore
from benchmarks.running.stopping import Control, T

AGREE_EVERY = 10  # steps


class SharedStore(CheckpointStore):
    """Checkpoints that the first process reads and writes for all."""

    def save(self, key: str, state: dict[str, Any], progress: Mapping[str, Any] | None = None) -> None:
        """Write a checkpoint, on the first process."""
        if current_rank().first:
            super().save(key, state, progress)

    def load(self, key: str) -> dict[str, Any] | None:
        """Return the first process's checkpoint, on every process."""
        return from_first(partial(super().load, key))

    def lease(self, key: str, pause: Callable[[], None], say: Callable[[Owner], None]) -> Lease:
        """Keep others from a stage, as long as the first process holds the lease; all wait until it does."""
        held: Any = _HeldElsewhere()
        if current_rank().first:
            held = super().lease(key, lambda: time.sleep(PAUSE), say)
        from_first(lambda: None)
        result: Lease = held
        return result


class _HeldElsewhere(AbstractContextManager["_HeldElsewhere"]):
    """The lease of another process of this run."""

    def check(self) -> None:
        """Do nothing: the first process checks."""

    def __exit__(self, *error: object) -> None:
        """Do nothing: the first process releases it."""


class SharedControl(Control):
    """Lets the first process decide for all whether to continue."""

    def __init__(self, inner: Control, expected: Mapping[str, float]) -> None:
        super().__init__(expected=expected)
        self._inner = inner
        self._steps = 0

    def before_step(self) -> None:
        """Continue with the next step of training; every tenth time the processes agree on it, which takes time.

        Raises:
            Stopped: See `Control.check`.
        """
        self._steps += 1
        if self._steps % AGREE_EVERY == 0:
            self.check()

    def through(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield all batches: the processes look at different numbers of them, and cannot agree in between."""
        yield from batches

    def stop_reason(self, seconds: float = 0.0) -> str | None:
        """Return the first process's reason to stop."""
        return from_first(lambda: self._inner.stop_reason(seconds))
