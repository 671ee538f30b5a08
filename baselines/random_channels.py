"""Random channels: what any method must beat."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from baselines.method import Method, Scoring, no_regularizer
from oicsr import Coupling


def random_scores(model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> list[Tensor]:
    """Return uniform random scores from the run's own generator."""
    return [torch.rand(coupling.num_channels, generator=scoring.generator) for coupling in couplings]


RANDOM = Method(
    name="random",
    title="Random channels",
    regularizer="none",
    make_regularizer=no_regularizer,
    importance=random_scores,
    formula="no penalty; importance drawn at random",
    source="control",
)
