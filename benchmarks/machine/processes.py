"""The processes of one run under torchrun: rank, and values that all must agree on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class Rank:
    """The rank of this process in a run."""

    index: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.index == 0

    def check(self, batch_size: int) -> None:
        """Refuse batches that cannot be split equally.

        Raises:
            ValueError: The processes do not divide the batch size.
        """
        if batch_size % self.count:
            raise ValueError(f"batches of {batch_size} images cannot be shared equally by {self.count} processes")

    def share(self, batch: Tensor) -> Tensor:
        """Return this process's part of a global batch."""
        return batch if self.count == 1 else batch.chunk(self.count)[self.index]


ALONE = Rank()


def current_rank() -> Rank:
    """Return which process this is; alone, unless a process group was set up."""
    return Rank(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else ALONE


def local_device(device: torch.device) -> torch.device:
    """Return this process's own GPU under `torchrun`, else the device itself."""
    local = os.environ.get("LOCAL_RANK")
    return torch.device("cuda", int(local)) if local and device.type == "cuda" and device.index is None else device


@contextmanager
def process_group(device: torch.device) -> Iterator[Rank]:
    """Join the processes that `torchrun` started (gloo on CPUs, NCCL on GPUs), if any."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        yield current_rank()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # the others wait while the first one waits for another command, or reads images
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(days=7))
    try:
        yield current_rank()
    finally:
        dist.destroy_process_group()


def from_first(make: Callable[[], T]) -> T:
    """Return on every process what `make` returns on the first one; the others do not call it.

    Errors stay on the process that raises them; `torchrun` then ends the others.
    """
    rank = current_rank()
    if rank.count == 1:
        return make()
    box: list[Any] = [make() if rank.first else None]
    dist.broadcast_object_list(box)
    result: T = box[0]
    return result


def agreed(scores: Sequence[Tensor]) -> list[Tensor]:
    """Return the first process's scores of channels on every process: no rounding may let plans differ."""
    return from_first(lambda: [score.cpu() for score in scores]) if current_rank().count > 1 else list(scores)


def summed(totals: Tensor) -> Tensor:
    """Add totals up over the processes, in place."""
    if current_rank().count > 1:
        dist.all_reduce(totals)
    return totals
