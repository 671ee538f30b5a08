"""Standard output and error that may go away: work goes on when nobody reads it, or when it cannot be written."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO


class Screen:
    """A stream whose text, from the first error on, goes nowhere.

    Args:
        stream: Where text goes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        """Be the stream in everything else."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or do as if."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Flush, or do as if."""
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.error = self.error or error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())  # what is still in buffers goes there too, at exit
        os.close(nowhere)

    @property
    def lost(self) -> OSError | None:
        """Why text was lost; None where all was written, or its reader (`head`, `less`) had enough."""
        return None if self.error is None or self.error.errno == errno.EPIPE else self.error


def _or_nowhere(stream: TextIO | None) -> TextIO:
    """Return a stream, or one that leads nowhere where the command was started with a closed one (`>&-`)."""
    return stream if stream is not None else Path(os.devnull).open("w", encoding="utf-8")


@contextmanager
def lasting_screen() -> Iterator[Screen]:
    """Let neither standard output nor standard error end what is at work; gives the former."""
    before = sys.stdout, sys.stderr
    out = Screen(_or_nowhere(sys.stdout))
    sys.stdout, sys.stderr = out, Screen(_or_nowhere(sys.stderr))
    try:
        yield out
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
