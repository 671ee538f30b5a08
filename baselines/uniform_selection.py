"""Uniform selection: the same share of channels from every layer, however they compare with other layers.

The baseline for the paper's global greedy selection. It is the same selection, applied to the share of its layer that
would be removed along with a channel: target, cap, rounding and errors are the same by construction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from baselines.method import SelectionSpec
from oicsr import Coupling, PruningPlan, select_channels


def select_uniformly(
    scores: Sequence[Tensor],
    couplings: Sequence[Coupling],
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor],
    *,
    original_widths: Mapping[str, int] | None = None,
    **options: Any,
) -> PruningPlan:
    """Remove the same share of every layer's channels, least important first, until the MACs reach a target.

    Shares differ by less than one channel of a layer (one block of `round_to`), plus what the last step towards the
    target needs. Arguments, result and errors are those of `oicsr.select_channels`.
    """
    widths = original_widths or {}
    return select_channels(
        [share_gone(s, widths.get(c.name, len(s))) for s, c in zip(scores, couplings, strict=True)],
        couplings,
        model,
        example_inputs,
        original_widths=original_widths,
        **options,
    )


def share_gone(scores: Tensor, original_width: int) -> Tensor:
    """Return the share of the original width that is gone once each channel and all below it are removed."""
    values = scores.detach().double().cpu()
    rank = torch.empty_like(values)
    rank[values.argsort(stable=True)] = torch.arange(1, len(values) + 1, dtype=values.dtype)
    share = (original_width - len(values) + rank) / original_width
    return torch.where(values.isnan(), torch.nan, share)


UNIFORM = SelectionSpec(
    name="uniform",
    title="uniform",
    select=select_uniformly,
    formula="the same share of channels from every layer, least important first",
    source="control",
)
