"""The same work in several processes at a time, as `run --jobs` does runs."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self

import torch

from benchmarks.perf.measure import Candidate


class Workers:
    """Processes that each build their own candidate and, at every call, all run it once simultaneously.

    Args:
        count: How many.
        make: Makes the candidate, in the process; can be pickled.
        threads: Threads of each process.
    """

    def __init__(self, count: int, make: Callable[[], Candidate], threads: int = 1) -> None:
        context = multiprocessing.get_context("spawn")
        self._ends: list[Connection] = []
        self._processes = []
        for _ in range(count):
            mine, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, make, threads), daemon=True)
            process.start()
            theirs.close()
            self._ends.append(mine)
            self._processes.append(process)
        self._wait()

    def __call__(self) -> None:
        """Let all run once, and wait for the last.

        Raises:
            RuntimeError: A process has ended.
        """
        for end in self._ends:
            end.send(True)
        self._wait()

    def _wait(self) -> None:
        try:
            for end in self._ends:
                end.recv()
        except EOFError as error:
            raise RuntimeError("a process that was measured has ended; its own message says why") from error

    def __enter__(self) -> Self:
        """Return the workers."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes."""
        for end in self._ends:
            end.close()
        for process in self._processes:
            process.join(10)
            process.terminate()


def _serve(end: Connection, make: Callable[[], Candidate], threads: int) -> None:
    torch.set_num_threads(threads)
    candidate = make()
    while _asked(end):
        candidate()


def _asked(end: Connection) -> bool:
    """Say that all is done, and wait for the next call; return False where the other side has ended."""
    try:
        end.send(True)
        end.recv()
    except (EOFError, ConnectionError):
        return False
    return True
