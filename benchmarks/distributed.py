"""One run on several processes (`torchrun`): what the processes share, and who writes.

Every process holds the whole network. Of each global batch it takes an equal share, PyTorch's DistributedDataParallel
averages the gradients, the penalty is added on each process to identical weights, and BatchNorm uses the statistics of
the global batch. So the result is that of one process with the same global batch, to rounding; dropout is the
exception: its masks are drawn per process. Process 0 alone reads and writes checkpoints, records and W&B; what it reads
and the scores of channels are sent to the others, so that all of them prune alike and go on alike.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from benchmarks.checkpoints import CheckpointStore
from benchmarks.locking import PAUSE, Lease
from benchmarks.stopping import Control

T = TypeVar("T")


@dataclass(frozen=True)
class Rank:
    """Which of the processes of a run this is."""

    index: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.index == 0

    def check(self, batch_size: int) -> None:
        """Refuse batches that cannot be shared out equally.

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
    """Join the processes that `torchrun` started (gloo on CPUs, NCCL on GPUs); alone where it started none."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        yield current_rank()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield current_rank()
    finally:
        dist.destroy_process_group()


# ----------------------------------------------------------------------------------------------------------------
# agreement
# ----------------------------------------------------------------------------------------------------------------


def from_first(make: Callable[[], T]) -> T:
    """Return on every process what `make` returns on the first one; it is called there alone.

    Errors stay on the process that raises them: the others end with it, by `torchrun`.
    """
    rank = current_rank()
    if rank.count == 1:
        return make()
    box: list[Any] = [make() if rank.first else None]
    dist.broadcast_object_list(box)
    return box[0]


def agreed(scores: Sequence[Tensor]) -> list[Tensor]:
    """Return the first process's scores of channels on every process: no rounding may let plans differ."""
    return from_first(lambda: [score.cpu() for score in scores]) if current_rank().count > 1 else list(scores)


def summed(totals: Tensor) -> Tensor:
    """Add totals up over the processes, in place."""
    if current_rank().count > 1:
        dist.all_reduce(totals)
    return totals


class SharedStore(CheckpointStore):
    """Checkpoints that the first process reads and writes for all."""

    def save(self, key: str, state: dict[str, Any], progress: Mapping[str, Any] | None = None) -> None:
        """Write a checkpoint, on the first process."""
        if current_rank().first:
            super().save(key, state, progress)

    def load(self, key: str) -> dict[str, Any] | None:
        """Return the first process's checkpoint, on every process."""
        return from_first(partial(super().load, key))

    def lease(self, key: str, pause: Callable[[], None]) -> Lease:
        """Keep others from a stage, as long as the first process holds the lease; all wait until it does."""
        held: Any = super().lease(key, lambda: time.sleep(PAUSE)) if current_rank().first else _HeldElsewhere()
        from_first(lambda: None)
        return held


class _HeldElsewhere(AbstractContextManager["_HeldElsewhere"]):
    """The lease of another process of this run."""

    def check(self) -> None:
        """Nothing: the first process looks."""

    def __exit__(self, *error: object) -> None:
        """Nothing: the first process gives it back."""


class SharedControl(Control):
    """Lets the first process decide for all whether to go on."""

    def __init__(self, inner: Control, expected: Mapping[str, float]) -> None:
        super().__init__(expected=expected)
        self._inner = inner

    def stop_reason(self, seconds: float = 0.0) -> str | None:
        """Return the first process's reason to stop."""
        return from_first(lambda: self._inner.stop_reason(seconds))


# ----------------------------------------------------------------------------------------------------------------
# training
# ----------------------------------------------------------------------------------------------------------------


@contextmanager
def parallel(model: nn.Module) -> Iterator[nn.Module]:
    """Give what to call instead of `model` in training: gradients and BatchNorm statistics are then those of all."""
    if current_rank().count == 1:
        yield model
        return
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    device = next(model.parameters()).device
    try:
        for module in norms:
            module.forward = partial(_global_batch_norm, module)  # type: ignore[method-assign]
        ids = [device] if device.type == "cuda" else None
        yield DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)
    finally:
        for module in norms:
            del module.__dict__["forward"]


def _global_batch_norm(module: _BatchNorm, images: Tensor) -> Tensor:
    """BatchNorm with mean and variance over the batches of all processes (`nn.SyncBatchNorm` has none for CPUs)."""
    if not module.training:
        return type(module).forward(module, images)
    axes = [axis for axis in range(images.ndim) if axis != 1]
    values = images.float() if images.dtype in (torch.bfloat16, torch.float16) else images
    count = values.numel() // values.shape[1] * current_rank().count
    mean = all_reduce(values.sum(axes)) / count
    centred = values - mean.reshape(_along_channels(values))
    variance = all_reduce(centred.square().sum(axes)) / count
    _update_statistics(module, mean.detach(), variance.detach() * count / (count - 1))
    normal = centred * torch.rsqrt(variance + module.eps).reshape(_along_channels(values))
    if module.weight is not None:
        normal = normal * module.weight.reshape(_along_channels(values))
        normal = normal + module.bias.reshape(_along_channels(values))
    return normal.to(images.dtype)


def _along_channels(values: Tensor) -> list[int]:
    return [1, -1] + [1] * (values.ndim - 2)


@torch.no_grad()
def _update_statistics(module: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    if module.running_mean is None or module.running_var is None:
        return
    assert module.num_batches_tracked is not None
    module.num_batches_tracked += 1
    share = 1 / int(module.num_batches_tracked) if module.momentum is None else module.momentum
    module.running_mean.lerp_(mean.to(module.running_mean.dtype), share)
    module.running_var.lerp_(variance.to(module.running_var.dtype), share)
