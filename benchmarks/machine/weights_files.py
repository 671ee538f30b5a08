"""Errors for files of weights that are damaged, malicious, or something else entirely."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

from safetensors import SafetensorError

# what torch.load and safetensors raise: beside their own, the errors of pickle's machine and of tensors
READ_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    pickle.UnpicklingError,
    SafetensorError,
)

POINTER_STARTS = (b"version https://git-lfs.github.com/", b"/annex/objects/", b"../.git/annex/", b".git/annex/")

CODE = re.compile(r"Unsupported global: GLOBAL (\S+)")  # what a pickle would import

LOOKED_AT = 512  # bytes


def what_it_is_instead(path: str | Path) -> str | None:
    """Return what a text file given as weights really is, and what to do; None for a binary file.

    Raises:
        OSError: It cannot be read.
    """
    with Path(path).open("rb") as file:
        start = file.read(LOOKED_AT)
    if not start:
        return "it is empty; get it again"
    if start.startswith(POINTER_STARTS):
        return "it is a pointer of a store of large files; get the file itself (`git lfs pull`, `git annex get`)"
    if all(byte >= 32 or byte in b"\t\n\r\f" for byte in start) and _is_utf8(start):
        return f"it is a text that begins with {start[:40].decode('utf-8', 'ignore')!r}"
    return None


def _is_utf8(start: bytes) -> bool:
    try:
        start.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(start) - 4 and len(start) == LOOKED_AT  # a character that the limit cut
    return True


def in_short(error: Exception) -> str:
    """Return an error as one line: its kind and its first sentence, without the advice to read the file unsafely."""
    code = CODE.search(str(error))
    if code:
        return f"it asks for {code[1]}, which is no part of plain weights; save `model.state_dict()` instead"
    first = str(error).strip().partition("\n")[0].partition(". ")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
