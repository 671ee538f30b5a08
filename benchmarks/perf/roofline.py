"""The least time that a step can take: its operations and bytes, counted, over what the device reaches.

Every operation that PyTorch runs in a step is seen as it passes. Its arithmetic is counted by PyTorch's own formulas
(convolutions, but for their backward pass, and matrix products; two operations per multiply-accumulate), its bytes as
each input read once and each output written once, views and bare allocations aside. The bound of a step is the sum over
its operations of the larger of arithmetic over peak and bytes over bandwidth: what a device could not undercut as long
as operations are run one by one, unfused and without anything left in a cache from one to the next.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.config import Precision
from benchmarks.perf.measure import timed

ALLOCATIONS = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")


@dataclass(frozen=True)
class Peaks:
    """What a device reaches: operations per second in a large matrix product, bytes per second in a large copy."""

    arithmetic: float
    bandwidth: float


@dataclass
class Counted:
    """What a step does.

    Attributes:
        work: Per operation: arithmetic operations and bytes.
    """

    work: list[tuple[int, int]] = field(default_factory=list)

    @property
    def arithmetic(self) -> int:
        """Arithmetic operations in all."""
        return sum(operations for operations, _ in self.work)

    @property
    def bytes(self) -> int:
        """Bytes in all."""
        return sum(moved for _, moved in self.work)

    def seconds(self, peaks: Peaks) -> float:
        """Return the bound."""
        return sum(max(operations / peaks.arithmetic, moved / peaks.bandwidth) for operations, moved in self.work)


def convolution_backward(
    out_gradient: Tensor, inputs: Tensor, weight: Tensor, *rest: Any, out_val: tuple[Tensor | None, ...]
) -> int:
    """Return the operations of a convolution's backward pass: each gradient costs what the forward pass costs.

    PyTorch's formula for the gradient of the weight knows no groups: of a depthwise convolution it counts every pair of
    channels.
    """
    transposed = rest[4]  # after bias sizes, stride, padding and dilation
    positions = math.prod((inputs if transposed else out_gradient).shape[2:])
    forward = 2 * inputs.shape[0] * positions * weight.numel()
    return forward * sum(gradient is not None for gradient in out_val[:2])


FORMULAS: dict[Any, Callable[..., int]] = {torch.ops.aten.convolution_backward: convolution_backward}


class _Counter(TorchDispatchMode):
    def __init__(self, counted: Counted) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._counted = counted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and func.overloadpacket.__name__ not in ALLOCATIONS:
            formula = FORMULAS.get(func.overloadpacket) or flop_registry.get(func.overloadpacket)
            operations = formula(*args, **(kwargs or {}), out_val=out) if formula else 0
            tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
            self._counted.work.append((int(operations), sum(t.numel() * t.element_size() for t in tensors)))
        return out


def count(step: Callable[[], object]) -> Counted:
    """Return what one call of a step does."""
    counted = Counted()
    with _Counter(counted):
        step()
    return counted


def peaks(device: torch.device, precision: Precision, seconds: float = 0.5) -> Peaks:
    """Measure what the device reaches, the best of many tries each."""
    return Peaks(matmul_peak(device, precision, seconds), copy_peak(device, seconds))


def matmul_peak(device: torch.device, precision: Precision, seconds: float = 0.5) -> float:
    """Return the operations per second of a large matrix product."""
    size = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a = torch.randn(size, size, device=device, dtype=dtype)
    return 2 * size**3 / _best(lambda: torch.mm(a, a), device, seconds)


def copy_peak(device: torch.device, seconds: float = 0.5) -> float:
    """Return the bytes per second, read and written, of a copy that no cache holds."""
    source = torch.zeros(1 << (30 if device.type == "cuda" else 26), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / _best(lambda: target.copy_(source), device, seconds)


def _best(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    call()
    stop, best = time.perf_counter() + seconds, math.inf
    while best == math.inf or time.perf_counter() < stop:
        best = min(best, timed(call, device))
    return best
