"""Warnings that show the caller's line, however deep in the library they are given."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

from oicsr.networks.copying import OTHERS


def warn(message: str, category: type[Warning]) -> None:
    """Warn in the name of the nearest code that is neither this library's nor PyTorch's.

    Python 3.12 can do so by itself (`warnings.warn(skip_file_prefixes=)`); 3.11 cannot.
    """
    level = 1
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_filename.startswith(OTHERS):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
