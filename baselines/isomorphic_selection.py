"""Isomorphic selection: channels are ranked among layers of the same structure only.

Fang et al., "Isomorphic Pruning for Vision Models", ECCV 2024: scores of different kinds of structure do not compare,
so that couplings are divided into classes with the same graph (the same kinds of layers, met on the
same sides in the same order), and the same share of every class goes: its least important channels, whichever layer
they are in. With one class this is the global order, with a class per layer the uniform selection.

The shared greedy selection does the rest: it is given the share of its class that would be gone once a channel were
removed, so that target, cap, rounding and errors are those of all methods.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from baselines.method import SelectionSpec
from baselines.uniform_selection import share_gone
from oicsr import Coupling, PruningPlan, select_channels, unwrap

Structure = tuple[tuple[str, str, int], ...]


def select_by_structure(
    scores: Sequence[Tensor],
    couplings: Sequence[Coupling],
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor],
    *,
    original_widths: Mapping[str, int] | None = None,
    **options: Any,
) -> PruningPlan:
    """Remove the same share of every class of couplings, least important first, until the MACs reach a target.

    Arguments, result and errors are those of `oicsr.select_channels`.
    """
    widths = original_widths or {}
    shares: dict[int, Tensor] = {}
    for positions in classes(model, couplings).values():
        width = sum(widths.get(couplings[i].name, couplings[i].num_channels) for i in positions)
        merged = torch.cat([scores[i].detach().double().cpu() for i in positions])
        parts = share_gone(merged, width).split([len(scores[i]) for i in positions])
        shares.update(zip(positions, parts, strict=True))
    return select_channels(
        [shares[i] for i in range(len(couplings))],
        couplings,
        model,
        example_inputs,
        original_widths=original_widths,
        **options,
    )


def classes(model: nn.Module, couplings: Sequence[Coupling]) -> dict[Structure, list[int]]:
    """Return the positions of the couplings of each structure."""
    found: dict[Structure, list[int]] = defaultdict(list)
    for position, coupling in enumerate(couplings):
        found[structure(model, coupling)].append(position)
    return dict(found)


def structure(model: nn.Module, coupling: Coupling) -> Structure:
    """Return the kinds of layers that the channels of a coupling pass, each with the side and the axis."""
    model = unwrap(model)
    members = [m for m in coupling.members if m.counts]
    kinds = [type(model.get_submodule(m.parameter.rpartition(".")[0])).__name__ for m in members]
    return tuple((kind, member.side, member.dim) for kind, member in zip(kinds, members, strict=True))


ISOMORPHIC = SelectionSpec(
    name="isomorphic",
    title="isomorphic",
    select=select_by_structure,
    formula="the same share of channels from every class of layers with the same structure, least important first",
    source="Fang et al. 2024 (Isomorphic Pruning), with the target in MACs",
    compared="VainF/Isomorphic-Pruning: pbench/isomorphic_pruner.py, prune.py",
    differs="the share is given; layers without weights take part in the comparison of structures; scores are those of "
    "`group-taylor`",
)
