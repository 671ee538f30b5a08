"""Where a record comes from: commit, versions, device, command."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.machine.paths import BENCHMARKS
from benchmarks.machine.processes import current_rank

PACKAGES = ("torch", "torchvision", "timm", "numpy", "safetensors", "torch-pruning")


@cache
def git_state() -> dict[str, Any]:
    """Return the commit and whether files that it holds were changed (generated results aside, not tuned strengths).

    Of a copy without its history (on a cluster, say) the commit is what `OICSR_COMMIT` says, unchecked.
    """
    root = BENCHMARKS
    try:
        commit = _git(root, "rev-parse", "HEAD")
        status = ("status", "--porcelain", "--untracked-files=no", "--")
        changed = _git(root, *status, ":/", ":(top,exclude)results") or _git(root, *status, ":(top)results/tuning")
    except (OSError, subprocess.CalledProcessError):
        return {"commit": os.environ.get("OICSR_COMMIT") or None, "dirty": None}
    return {"commit": commit, "dirty": bool(changed)}


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that can move a number."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def device_name(device: torch.device) -> str:
    """Return the device's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def instruction_sets(device: torch.device) -> dict[str, str]:
    """Return which kernels of PyTorch and oneDNN were chosen: processors of one name may differ in them.

    Empty for a GPU. `cpu_capability` is what PyTorch's own kernels use; `onednn_max_isa` is the limit that was set for
    oneDNN, which takes the best one of the processor otherwise.
    """
    if device.type != "cpu":
        return {}
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "default"
    return {"cpu_capability": torch.backends.cpu.get_cpu_capability(), "onednn_max_isa": limit, "cpu_flags": _flags()}


@cache
def _flags() -> str:
    """Return the vector extensions of the processor that kernels are chosen by, as Linux names them."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    wanted = ("avx", "fma", "amx", "sve", "asimd", "bf16", "i8mm")
    return " ".join(sorted(flag for flag in flags if flag.startswith(wanted)))


def this_command() -> str:
    """Return the running command as it would be typed; of an absolute path only its last part.

    Records are published, and where somebody keeps results and checkpoints is private.
    """
    return shlex.join(["python", "-m", "benchmarks", *(_without_place(argument) for argument in sys.argv[1:])])


def _without_place(argument: str) -> str:
    option, equals, value = argument.rpartition("=")
    return f"{option}{equals}{Path(value).name or value}" if Path(value).is_absolute() else argument


def provenance(device: torch.device, data_checksum: str | None) -> dict[str, Any]:
    """Return the provenance of a record."""
    return {
        **git_state(),
        "versions": versions(),
        "device": device_name(device),
        "device_type": device.type,
        **instruction_sets(device),
        "threads": torch.get_num_threads(),
        "processes": current_rank().count,
        "deterministic": device.type == "cpu" or torch.are_deterministic_algorithms_enabled(),
        "data_sha256": data_checksum,
        "command": this_command(),
    }


def weights_sha256(model: nn.Module) -> str:
    """Return the SHA-256 over all names and values of a model's state."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()
