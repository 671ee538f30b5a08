"""How many runs at a time suit this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.config import Cell
from benchmarks.models import input_shape

SMALL = 64  # pixels on a side: networks for images up to this size hardly gain from a second thread (results/perf)

CONTAINER = (  # where Linux says how much memory the processes of a container may use: control groups 2, and 1
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
MEMORY = 2 * 2**30  # bytes of a run: MobileNetV2 in batches of 128 takes 1.4 GiB


def choose_jobs(cells: Sequence[Cell], device: torch.device, most: int) -> int | None:
    """Return how many runs of one thread each are done at a time; None where a run is better off with all threads.

    One per thread that PyTorch may use, as far as there are runs and memory, where all networks are small and trained
    on the CPU. A run then has one thread however many there are, so that its record does not depend on their number.

    Args:
        cells: The runs.
        device: Of their training.
        most: How many can be done at a time.
    """
    if device.type != "cpu" or any(input_shape(cell.experiment.model)[1] > SMALL for cell in cells):
        return None
    return max(1, min(torch.get_num_threads(), most, _memory() // MEMORY))


def _memory() -> int:
    """Return the bytes of memory of this machine, or of its container; very many where the system does not say."""
    names, most = getattr(os, "sysconf_names", {}), 2**62
    if "SC_PHYS_PAGES" in names and "SC_PAGE_SIZE" in names:
        most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([most, *_limits()])


def _limits() -> Iterator[int]:
    """Yield the bytes that a container allows its processes; a limit that is not set is a word, or very many."""
    for path in CONTAINER:
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text.isdecimal():
            yield int(text)
