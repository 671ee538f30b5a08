"""Reading files that anybody may have put there: never a pipe or a device, nor more than such a file can hold."""

from __future__ import annotations

import errno
from pathlib import Path

LARGEST_FILE = 64 << 20  # bytes

# Errors that say what is at a path: nothing, something else than a plain file, or too much. Any other is the machine's.
OF_THE_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.EFBIG}


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


def is_of_the_file(error: OSError | UnicodeDecodeError) -> bool:
    """Return whether an error of `read_plain` says that no usable file is there.

    Otherwise the file may be whole, and only this attempt to read it failed: a disk, a network or a permission.
    """
    return isinstance(error, UnicodeDecodeError) or error.errno in OF_THE_FILE
