"""One run on several processes (`torchrun`): what the processes share, and who writes.

Every process holds the full network and takes an equal share of each global batch. PyTorch's DistributedDataParallel
averages the gradients, the penalty is added on each process to identical weights, and BatchNorm uses the statistics of
the global batch. So the result is that of one process with the same global batch, to rounding; dropout is the
exception: each process draws masks of its own for its share. Process 0 alone reads and writes checkpoints, records and
W&B; what it reads and the scores of channels are sent to the others, so that all of them prune the same channels and
stay in step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from benchmarks.machine.processes import current_rank


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


@contextmanager
def own_numbers() -> Iterator[None]:
    """Let each process draw random numbers of its own in a step (dropout masks), the same ones after a resume.

    Before and after it, the generator is in the same state on all processes: that which a checkpoint holds.
    """
    rank = current_rank()
    if rank.count == 1:
        yield
        return
    seed = int(torch.randint(2**62, ()))
    common = torch.get_rng_state()
    torch.manual_seed(seed + rank.index)  # the device's generator, too
    try:
        yield
    finally:
        torch.set_rng_state(common)


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
    output: Tensor = normal.to(images.dtype)
    return output


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
