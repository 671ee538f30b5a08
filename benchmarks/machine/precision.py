"""Which precision a machine trains in: bfloat16 where it is multiplied in hardware."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Literal

import torch

PROCESSOR_FLAGS = {"avx512_bf16", "amx_bf16", "bf16", "svebf16"}  # of x86 (Intel, AMD), and of Arm as Linux names them


def resolve_precision(precision: str, device_type: str) -> Literal["float32", "bfloat16"]:
    """Return the precision that a training on this machine has: `precision`, or the machine's own for `"auto"`.

    Args:
        precision: `"float32"`, `"bfloat16"` or `"auto"`.
        device_type: `"cpu"` or `"cuda"`.

    Raises:
        ValueError: `precision` is not one of these.
    """
    if precision == "auto":
        return "bfloat16" if has_bfloat16(device_type) else "float32"
    if precision == "float32":
        return "float32"
    if precision == "bfloat16":
        return "bfloat16"
    raise ValueError(f"precision is {precision!r}; it must be 'float32', 'bfloat16' or 'auto'")


def has_bfloat16(device_type: str) -> bool:
    """Return whether bfloat16 is multiplied in hardware: not emulated, and not disabled in oneDNN."""
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # oneDNN: a limit such as AVX512_CORE takes bfloat16 away, AVX512_CORE_BF16 and all above leave it
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "ALL"
    allowed = limit.upper() in ("ALL", "DEFAULT") or any(name in limit.upper() for name in ("BF16", "AMX", "FP16"))
    return allowed and bool(_processor_flags() & PROCESSOR_FLAGS)


@cache
def _processor_flags() -> frozenset[str]:
    """Return the instruction sets of the processor, as PyTorch and Linux name them."""
    found = {name for name, there in torch.cpu.get_capabilities().items() if there is True}
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []:
        if line.startswith(("flags", "Features")):
            return frozenset(found | set(line.partition(":")[2].split()))
    return frozenset(found)
