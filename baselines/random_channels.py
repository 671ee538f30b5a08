"""Random channels: what any method must beat."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from baselines.method import ImportanceSpec, Scoring
from oicsr import Coupling


def random_scores(model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> list[Tensor]:
    """Return uniform random scores from the run's own generator."""
    return [torch.rand(coupling.num_channels, generator=scoring.generator) for coupling in couplings]


RANDOM = ImportanceSpec(
    name="random",
    title="random",
    score=random_scores,
    formula="drawn uniformly from [0, 1)",
    source="control",
    normalisation="none",
    sides=(),
)
