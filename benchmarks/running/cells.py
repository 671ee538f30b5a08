"""The runs of an experiment, and their order."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.config import Cell, Experiment, check_shares
from benchmarks.methods.registry import find_method


def cells_of(
    experiment: Experiment,
    profile_name: str,
    *,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    macs_kept: Sequence[float] | None = None,
) -> list[Cell]:
    """Return the runs of an experiment, seed by seed, so that a sweep that is cut short has complete comparisons.

    Raises:
        ValueError: A method is unknown, or a target is not in (0, 1].
    """
    profile = experiment.profile(profile_name)
    for method in methods or profile.methods:
        find_method(method)
    check_shares(macs_kept or ())
    return [
        Cell(experiment, profile_name, method, seed, share)
        for seed in (seeds or profile.seeds)
        for method in (methods or profile.methods)
        for share in ((1.0,) if find_method(method).unpruned else macs_kept or profile.macs_kept)
    ]


def default_profile(experiment: Experiment, device: torch.device) -> str:
    """Return `paper` on a GPU if the experiment has it, otherwise the experiment's first profile."""
    return "paper" if device.type == "cuda" and "paper" in experiment.profiles else next(iter(experiment.profiles))


def by_priority(cells: Sequence[Cell]) -> list[Cell]:
    """Return runs in the order in which `run --pending` takes them: experiments by priority, seed by seed in each."""
    return sorted(cells, key=lambda cell: cell.experiment.priority)
