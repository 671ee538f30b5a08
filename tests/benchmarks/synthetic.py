"""Records that no run has made: plausible numbers from a formula, for tests of what is made from records."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.config import Cell, Experiment, Phase, Profile
from benchmarks.methods.registry import find_method
from benchmarks.records.record import STATES_OF, Record, write_record
from benchmarks.records.rows import CURVE_POINTS, ChannelRow, EpochRow
from benchmarks.running.outcome import resolved_config

DENSE_MACS, DENSE_PARAMS = 125_485_696, 855_770
LAYERS = 27
NEWEST = max(STATES_OF)  # version of the protocol
RECALIBRATION = 0.6  # of what fine-tuning gains, it gains as much
METHODS = ("oicsr-gl", "gl-out", "gl-separate", "l1-weights", "none", "random")
# accuracy lost at surgery at half of the MACs, and how concentrated the energy is
CHARACTER: dict[str, tuple[float, float]] = {
    "oicsr-gl": (0.04, 0.8),
    "gl-separate": (0.055, 0.76),
    "gl-out": (0.12, 0.66),
    "l1-weights": (0.25, 0.4),
    "none": (0.5, 0.25),
    "random": (0.75, 0.25),
}


def experiment(name: str = "cifar10-resnet56", **changes: Any) -> Experiment:
    values = {
        "dense": Phase(20, 0.1),
        "regularized": Phase(10, 0.03),
        "finetune": Phase(10, 0.01),
        "methods": METHODS,
        "macs_kept": (0.7, 0.5, 0.3),
        "seeds": (0, 1, 2),
    }
    profile = Profile(**{**values, **changes})
    profiles = {"quick": profile, "cpu": profile, "paper": profile}
    return Experiment(name, "CIFAR-10, ResNet-56", "A claim.", "resnet56", "cifar10", profiles)


def _accuracies(cell: Cell, noise: np.random.Generator, effect: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """Return how concentrated the energy is, and top-1 of each state."""
    dense_noise = np.random.default_rng([cell.seed, 1])
    lost, gini = CHARACTER.get(cell.method, (0.3 + 0.3 * noise.random(), 0.5))
    dense = 0.935 + 0.0015 * dense_noise.standard_normal()
    hard = (1 - cell.macs_kept) / 0.5
    pruned = dense - lost * hard**2 + 0.01 * noise.standard_normal() + effect.get(cell.method, 0.0)
    finetuned = dense - 0.012 * hard**2 - 0.02 * lost + 0.0015 * noise.standard_normal()
    return gini, {
        "dense": dense,
        "regularized": dense - 0.004 + 0.001 * noise.standard_normal(),
        "pruned": min(max(pruned, 0.1), 0.95),
        "recalibrated": min(max(pruned + RECALIBRATION * (finetuned - pruned), 0.1), 0.95),
        "finetuned": finetuned,
    }


def _compute(epochs: Mapping[str, int], macs: int) -> dict[str, int]:
    images = 45_000 * 3
    per_image = {"dense": DENSE_MACS, "regularized": DENSE_MACS, "finetune": macs}
    compute = {phase: count * images * per_image[phase] for phase, count in epochs.items()}
    return {**compute, "total": sum(compute.values())}


def record_of(
    cell: Cell, effect: Mapping[str, float] | None = None, tuned: bool = True, protocol: int = NEWEST
) -> Record:
    """Return a record; `effect` adds to the accuracy of a method before fine-tuning."""
    method = find_method(cell.method)
    noise = np.random.default_rng([cell.seed, *cell.method.encode(), int(1000 * cell.macs_kept)])
    gini, top1 = _accuracies(cell, noise, effect or {})
    strength = 0.0 if not method.has_strength else 2e-3
    macs = round(cell.macs_kept * DENSE_MACS)
    epochs = {"dense": cell.profile.dense.epochs, "regularized": 10 * cell.profile.steps, "finetune": 10}
    return Record(
        run_id=cell.run_id,
        experiment=cell.experiment.name,
        profile=cell.profile_name,
        method=cell.method,
        title=method.title,
        regularizer=method.regularizer.name,
        importance=method.importance.name,
        selection=method.selection.name,
        strength=strength,
        strength_source=("tuned on validation" if tuned else "middle of the grid, not tuned")
        if strength
        else "none needed",
        seed=cell.seed,
        macs_kept=cell.macs_kept,
        status="complete",
        config=json.loads(json.dumps(resolved_config(cell, method, "cpu"))),
        states={name: _state(name, top1[name], macs) for name in STATES_OF[protocol]},
        widths=_widths(cell, noise),
        structure={"dense": _structure(0.25), "regularized": _structure(gini + 0.005 * noise.standard_normal())},
        removals=_removals(cell, top1, macs),
        epochs=epochs,
        compute=_compute(epochs, macs),
        timing={"dense_seconds": 1.0, "finished_unix": 0},
        provenance={"device_type": "cuda", "device": "a device", "commit": "0" * 40, "dirty": False, "versions": {}},
        protocol=protocol,
    )


def _state(name: str, top1: float, macs: int) -> dict[str, Any]:
    small = name in ("pruned", "recalibrated", "finetuned")
    macs = macs if small else DENSE_MACS
    return {
        "top1": round(top1, 4),
        "loss": round(-math.log(max(top1, 0.05)), 4),
        "val_top1": round(top1 - 0.002, 4),
        "macs": macs,
        "macs_with_norm_pool": round(1.0085 * macs),
        "params": round(DENSE_PARAMS * macs / DENSE_MACS),
    }


def _structure(gini: float) -> dict[str, Any]:
    exponent = (1 + gini) / (1 - gini)  # the area under 1 - (1 - x)^k is k / (k + 1)
    shares = np.linspace(0, 1, CURVE_POINTS)
    return {
        "channels": LAYERS * 32,
        "near_zero": round(max(0.0, gini - 0.5), 6),
        "concentration": round(gini, 6),
        "cumulative": [round(float(value), 5) for value in 1 - (1 - shares) ** exponent],
    }


def _widths(cell: Cell, noise: np.random.Generator) -> dict[str, list[int]]:
    found = {}
    for layer in range(LAYERS):
        width = 16 * 2 ** (layer // 9)
        kept = cell.macs_kept * (0.75 + 0.5 * (layer % 9) / 8) + 0.05 * noise.standard_normal()
        found[f"layer{layer // 9 + 1}.{layer % 9}.conv1"] = [width, int(min(width, max(2, kept * width)))]
    return found


def _removals(cell: Cell, top1: Mapping[str, float], macs: int) -> list[dict[str, Any]]:
    found = []
    for step in range(cell.profile.steps):
        done = (step + 1) / cell.profile.steps
        found.append(
            {
                "step": step,
                "val_top1_before": round(top1["regularized"] - 0.01 * step, 4),
                "val_top1_after": round(top1["regularized"] * (1 - done) + top1["pruned"] * done - 0.002, 4),
                "macs": round(DENSE_MACS + done * (macs - DENSE_MACS)),
            }
        )
    return found


def _before_finetuning(record: Record) -> dict[str, Any]:
    return record.states.get("recalibrated") or record.states["pruned"]


def history_of(record: Record) -> list[EpochRow]:
    """Return epochs that lead from state to state."""
    rows = []
    ends = {"dense": ("dense", 0.3), "regularized": ("regularized", 0.85), "finetune": ("finetuned", None)}
    for phase, count in record.epochs.items():
        state, start = ends[phase]
        begin = _before_finetuning(record)["val_top1"] if start is None else start
        end = record.states[state]["val_top1"]
        for epoch in range(1, count + 1):
            top1 = end + (begin - end) * math.exp(-1.2 * epoch)
            rows.append(EpochRow(phase, 0, epoch, 0.01, 0.2, 0.1, top1, 0.3, round(top1, 4), 1.0))
    return rows


def channels_of(record: Record) -> list[ChannelRow]:
    """Return energies of every channel: joined for out-in penalties, independent for the others."""
    generator = np.random.default_rng([*record.method.encode()])
    joint = {"oicsr-gl": 0.9, "gl-separate": 0.4}.get(record.method, 0.1)
    spread = 1 + 3 * record.structure["regularized"]["concentration"]
    rows = []
    for name, (before, after) in record.widths.items():
        shared = generator.standard_normal(before)
        out = np.exp(spread * (joint * shared + (1 - joint) * generator.standard_normal(before)))
        inward = np.exp(spread * (joint * shared + (1 - joint) * generator.standard_normal(before)))
        kept = set(np.argsort(-(out + inward))[:after].tolist())
        rows += [ChannelRow(name, i, float(out[i]), float(inward[i]), i in kept) for i in range(before)]
    return rows


def records_of(
    study: Experiment,
    profile: str = "cpu",
    effect: Mapping[str, float] | None = None,
    tuned: bool = True,
    protocol: int = NEWEST,
) -> list[Record]:
    values = study.profile(profile)
    return [
        record_of(Cell(study, profile, method, seed, target), effect, tuned, protocol)
        for method in values.methods
        for target in values.macs_kept
        for seed in values.seeds
    ]


def write_records(results: Path, records: Sequence[Record]) -> None:
    """Write records with their histories, and channels for seed 0."""
    for record in records:
        write_record(results, record, history_of(record), channels_of(record) if record.seed == 0 else ())


def write_tuning(results: Path, study: Experiment, profile: str = "cpu") -> None:
    """Write a tuning record: five strengths for every method that has one."""
    methods = [name for name in study.profile(profile).methods if find_method(name).has_strength]
    strengths = [5e-4, 1e-3, 2e-3, 4e-3, 8e-3]
    scores = {
        method: {
            f"{target:g}": {
                f"{s:g}": [round(0.9 - CHARACTER.get(method, (0.3, 0))[0] - 0.03 * (math.log2(s / 2e-3)) ** 2, 4)]
                for s in strengths
            }
            for target in study.profile(profile).macs_kept
        }
        for method in methods
    }
    record = {
        "schema": "oicsr-tuning-1",
        "experiment": study.name,
        "profile": profile,
        "criterion": "validation top-1 of the pruned network",
        "seeds": [1000],
        "config": asdict(study.profile(profile).dense),
        "scores": scores,
        "chosen": {method: dict.fromkeys(targets, 2e-3) for method, targets in scores.items()},
        "provenance": {},
    }
    folder = results / "tuning"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{study.name}-{profile}.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
