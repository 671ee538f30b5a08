"""An experiment so small that a run takes a second or two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.config import Cell, Experiment, Phase, Profile
from benchmarks.running.bench import Bench
from benchmarks.running.checkpoints import CheckpointStore

PROFILE = Profile(
    dense=Phase(epochs=1, learning_rate=0.05),
    regularized=Phase(epochs=1, learning_rate=0.02),
    finetune=Phase(epochs=1, learning_rate=0.01),
    methods=("oicsr-gl", "gl-out", "none"),
    macs_kept=(0.5,),
    seeds=(0,),
    batch_size=64,
    train_images=128,
    validation_images=100,
    test_images=100,
)


def small_experiment(**changes: Any) -> Experiment:
    profile = replace(PROFILE, **changes)
    return Experiment("small", "Small", "It works.", "digits-resnet", "digits", {"quick": profile})


def small_cell(method: str = "oicsr-gl", seed: int = 0, macs_kept: float = 0.5, **changes: Any) -> Cell:
    return Cell(small_experiment(**changes), "quick", method, seed, macs_kept)


def small_bench(folder: Path, **arguments: Any) -> Bench:
    store = CheckpointStore(folder / "checkpoints")
    return Bench(torch.device("cpu"), folder / "results", store, tuning=folder / "tuning", **arguments)
