"""Reading files that anybody may have put there: never a pipe or a device, nor more than such a file can hold."""

from __future__ import annotations

import errno
from pathlib import Path

LARGEST_FILE = 64 << 20  # bytes


def read_plain(path: Path) -> str:
    """Return the text of a file.

    Raises:
        OSError: It is missing, no plain file (a pipe would be waited for, a device may never end), too large, or
            cannot be read.
        UnicodeDecodeError: It is not UTF-8.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no plain file", str(path))
    if path.is_file() and path.stat().st_size > LARGEST_FILE:
        raise OSError(errno.EFBIG, f"it is larger than {LARGEST_FILE >> 20} MiB", str(path))
    return path.read_bytes().decode("utf-8")
