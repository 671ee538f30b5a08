"""Standard output and error that may go away: work continues if nobody reads them or they cannot be written."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO


class Screen:
    """A stream that discards its text after the first error.

    Args:
        stream: The stream to write to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        """Delegate everything else to the stream."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or pretend to."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Flush, or pretend to."""
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
        """Why text was lost; None if everything was written, or the reader (`head`, `less`) closed the pipe."""
        return None if self.error is None or self.error.errno == errno.EPIPE else self.error


def _or_nowhere(stream: TextIO | None) -> TextIO:
    """Return the stream, or one that discards everything if the command was started with a closed one (`>&-`)."""
    return stream if stream is not None else Path(os.devnull).open("w", encoding="utf-8")


@contextmanager
def lasting_screen() -> Iterator[Screen]:
    """Keep errors on standard output and error from ending the command; yields the former."""
    before = sys.stdout, sys.stderr
    out = Screen(_or_nowhere(sys.stdout))
    sys.stdout, sys.stderr = out, Screen(_or_nowhere(sys.stderr))
    try:
        yield out
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
