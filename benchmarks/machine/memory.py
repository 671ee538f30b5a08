"""Where the C library's allocator keeps memory that training has freed, for the next step to use again."""

from __future__ import annotations

import ctypes
from functools import cache

# Names and values of <malloc.h> in glibc.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3

NEVER = -1

LARGEST = (1 << 30, 1 << 25)  # bytes; before 2.35 or so glibc takes no more than 32 MiB


@cache
def keep_freed_memory() -> bool:
    """Make this process keep the memory that it frees.

    A step of training frees all its activations at its end. glibc then hands them back to the system, which clears
    every page again when the next step asks for it: on two CPU cores 4 to 5 % of a step of ResNet-20 (LOG.md). The
    process stays as large as it was at its largest; results are the same to the last bit.

    Returns:
        Whether the C library has such settings and took them; False on macOS, with musl, and on Windows.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc; Windows has no library of that name
        return False
    kept = any(mallopt(M_MMAP_THRESHOLD, size) for size in LARGEST)
    return kept and bool(mallopt(M_TRIM_THRESHOLD, NEVER))
