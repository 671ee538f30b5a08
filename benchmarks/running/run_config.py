"""What trackers show as the configuration of a run: flat, so that they can filter, sort and group by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.config import Cell
from benchmarks.machine.provenance import device_name, git_state, versions
from benchmarks.methods.registry import find_method
from benchmarks.records.record import Record
from benchmarks.records.rows import PHASES
from benchmarks.records.strengths import choose_strength


def run_config(cell: Cell, tuning: Path) -> dict[str, Any]:
    """Return the configuration of a run that starts."""
    method = find_method(cell.method)
    strength = choose_strength(tuning, cell, method)
    return {
        **_names(cell.experiment.name, cell.profile_name, cell.method, cell.seed, cell.macs_kept),
        "model": cell.experiment.model,
        "dataset": cell.experiment.dataset,
        "strength": strength.value,
        "strength_source": strength.source,
        **_flat(dict(cell.profile.shared)),
        "commit": git_state()["commit"],
        "torch": versions().get("torch"),
        "cpu": device_name(torch.device("cpu")),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def record_config(record: Record) -> dict[str, Any]:
    """Return the configuration of a record, under the same names."""
    origin = record.provenance
    return {
        **_names(record.experiment, record.profile, record.method, record.seed, record.macs_kept),
        "strength": record.strength,
        "strength_source": record.strength_source,
        **_flat(record.config),
        "commit": origin.get("commit"),
        "torch": origin.get("versions", {}).get("torch"),
        "device": origin.get("device"),
        "cpu_capability": origin.get("cpu_capability"),
        "protocol": record.protocol,
    }


def _names(experiment: str, profile: str, method: str, seed: int, macs_kept: float) -> dict[str, Any]:
    return {"experiment": experiment, "profile": profile, "method": method, "seed": seed, "macs_kept": macs_kept}


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """Return phases as `dense_epochs`, `dense_learning_rate` and so on; all else as it is."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if name in PHASES:
            flat |= {f"{name}_{key}": list(v) if isinstance(v, tuple) else v for key, v in dict(value).items()}
        else:
            flat[name] = value
    return flat
