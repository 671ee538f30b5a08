"""When to stop: Ctrl-C, SIGTERM and a time limit end work after the current step, at a checkpoint."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

SAFETY = 1.2  # times the longest epoch of a stage so far bounds the next one

ANSWER_HOLDS = 0.5  # seconds

RESERVE_SHARE, RESERVE_MAX = 0.1, 20.0  # of a time limit, reserved for the tables and plots; seconds at most


T = TypeVar("T")


class Stopped(Exception):
    """Work ended at a checkpoint, on request."""


INTERRUPT, OUT_OF_TIME = "interrupted", "out of time"


def never() -> bool:
    """Never asks to stop."""
    return False


class Control:
    """Decides whether to continue: before each epoch whether all of it fits, before each step whether to stop there.

    The first epoch begins in any case: it ends at a checkpoint inside it, and a limit shorter than an epoch still leads
    somewhere.

    Args:
        seconds: How long work may continue from now on (None: no limit), on a monotonic clock.
        asked: Returns whether a stop was requested.
        expected: Seconds of an epoch by stage key, for stages that were not measured yet.
    """

    def __init__(
        self,
        seconds: float | None = None,
        asked: Callable[[], bool] = never,
        expected: Mapping[str, float] | None = None,
    ) -> None:
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._asked = asked
        self._expected = dict(expected or {})
        self._measured: dict[str, float] = {}
        self._last: float | None = None
        self._gap = 0.0  # the longest time between two epochs: pruning, measuring

    @property
    def seconds_left(self) -> float | None:
        """How long work may still continue; None: no limit."""
        return None if self._deadline is None else self._deadline - time.monotonic()

    def stop_reason(self, seconds: float = 0.0) -> str | None:
        """Return why not to start something that takes `seconds`, or None to continue."""
        if self._asked():
            return INTERRUPT
        left = self.seconds_left
        return OUT_OF_TIME if left is not None and left < seconds else None

    def check(self, seconds: float = 0.0) -> None:
        """Continue, or raise.

        Raises:
            Stopped: A stop was requested, or `seconds` exceeds the time left.
        """
        reason = self.stop_reason(seconds)
        if reason:
            raise Stopped(reason)

    def before_step(self) -> None:
        """Continue with the next step of training.

        Raises:
            Stopped: See `check`.
        """
        self.check()

    def through(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield batches that are only looked at, as long as no stop was requested.

        Raises:
            Stopped: See `check`.
        """
        for batch in batches:
            self.check()
            yield batch

    def before_epoch(self, key: str) -> None:
        """Continue with an epoch of stage `key` if it, and what follows it, will end in time.

        Raises:
            Stopped: See `check`.
        """
        if self._last is not None:
            self._gap = max(self._gap, time.monotonic() - self._last)
        epoch = SAFETY * self._measured.get(key, self._expected.get(key, 0.0)) if self._measured else 0.0
        self.check(epoch + self._gap)

    def waited(self) -> None:
        """Note that time went by in which nothing was done: another command was at work."""
        self._last = None

    def after_epoch(self, key: str, seconds: float) -> None:
        """Note how long an epoch took."""
        self._measured[key] = max(seconds, self._measured.get(key, 0.0))
        self._last = time.monotonic()


def budget_seconds(minutes: float, age: float) -> float:
    """Return how long to train within a limit in minutes, `age` seconds after the command began.

    Raises:
        ValueError: The limit is not positive.
    """
    if not minutes > 0:
        raise ValueError(f"the budget is {minutes!r} minutes; it must be more than 0")
    return 60 * minutes - min(RESERVE_SHARE * 60 * minutes, RESERVE_MAX) - age


class Seldom:
    """Asks a question that takes long to answer at most twice a second; between, the last answer holds."""

    def __init__(self, ask: Callable[[], bool]) -> None:
        self._ask, self._answer, self._next = ask, False, 0.0

    def __call__(self) -> bool:
        """Return the answer."""
        now = time.monotonic()
        if now >= self._next:
            self._answer, self._next = self._ask(), now + ANSWER_HOLDS
        return self._answer


@contextmanager
def on_signals() -> Iterator[Callable[[], bool]]:
    """Turn SIGINT and SIGTERM into a request to stop; a second SIGINT interrupts at once.

    Yields:
        A function that says whether a signal came.
    """
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if came and number == signal.SIGINT:
            raise KeyboardInterrupt
        came.append(number)
        sys.stderr.write("\nending after this step, at a checkpoint; Ctrl-C again ends at once\n")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
