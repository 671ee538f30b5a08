"""Atomic writes: no file is ever half written."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def write_atomically(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file so that it always holds either the old content or the complete new content.

    Without `durable`, a power failure may undo the write: for files that are easily made again.

    Raises:
        OSError: It cannot be written; the error names `path`, and the old content is as it was.
    """
    try:
        _write(path, path.with_name(f".{path.name}.{os.getpid()}.tmp"), content, durable=durable)
    except OSError as error:  # of a full disk it names no file, and else the temporary one
        raise OSError(error.errno, error.strerror, str(path)) from error


def _write(path: Path, temporary: Path, content: bytes, *, durable: bool) -> None:
    try:
        temporary.unlink(missing_ok=True)  # left by a killed process, or a link that somebody put there
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):  # the first error is the one that says why
            temporary.unlink(missing_ok=True)
        raise
