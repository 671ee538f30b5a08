"""What users would otherwise run: the peers in every ratio."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchmarks.perf.measure import Candidate
from oicsr import Coupling


def naive_group_lasso(model: nn.Module, couplings: Sequence[Coupling], strength: float) -> Candidate:
    """Return the obvious Group Lasso with value and gradient: a loop over layers, squares and sums through autograd."""
    device = next(model.parameters()).device
    plan = [
        (
            coupling.num_channels,
            [
                (model.get_parameter(m.parameter), m.dim, (m.channels % (coupling.num_channels + 1)).to(device))
                for m in coupling.members
                if m.counts and m.side in ("out", "in")
            ],
        )
        for coupling in couplings
    ]

    def step() -> None:
        penalty = torch.zeros((), device=device)
        for channels, members in plan:
            energy = torch.zeros(channels + 1, device=device)
            for weight, dim, index in members:
                others = [axis for axis in range(weight.ndim) if axis != dim]
                energy = energy.index_add(0, index, weight.pow(2).sum(others))
            penalty = penalty + energy[:-1].sqrt().sum()
        (strength * penalty).backward()

    return step


def torch_pruning_regularize(model: nn.Module, example_inputs: Tensor, strength: float) -> Candidate:
    """Return `GroupNormPruner.regularize` of torch-pruning on a copy of a model (its own penalty, not Group Lasso).

    Raises:
        RuntimeError: torch-pruning is not installed, or fails on the model; says how.
    """
    try:
        import torch_pruning
    except ModuleNotFoundError as error:
        raise RuntimeError("torch-pruning is not installed") from error
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        parameter.grad = torch.zeros_like(parameter)
    try:
        pruner = torch_pruning.pruner.GroupNormPruner(
            twin,
            example_inputs,
            importance=torch_pruning.importance.GroupMagnitudeImportance(),
            reg=strength,
            global_pruning=True,
            pruning_ratio=0.5,
        )
        pruner.update_regularizer()
        pruner.regularize(twin)
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise RuntimeError(f"torch-pruning fails: {type(error).__name__}: {error}") from error
    return lambda: pruner.regularize(twin)
