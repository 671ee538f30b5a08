"""Numbers of groups that the code computes from a width: whether they are right for every number of channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from oicsr.coupling import Coupling
from oicsr.networks.copying import MODEL_ERRORS, copy_model, hooks_off, mode, shared
from oicsr.networks.inputs import Inputs
from oicsr.networks.modes import Mode
from oicsr.networks.recurrences import OneStep
from oicsr.plan import PruningPlan
from oicsr.proving.shapes import meta_copy
from oicsr.rules.calls import operator_name
from oicsr.rules.doubts import Doubt
from oicsr.surgery import apply_plan

GROUP_NORM = "aten::group_norm"
GROUP_NORMS = (functional.group_norm, torch.group_norm)
MOST_WIDTHS = 64  # that are tried; of more, some

Sizes = list[int]  # channels of a group, for each call in their order


class _Groups(Mode):
    """Note how many channels there are to a group in each group normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Sizes = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in GROUP_NORMS:
            named = dict(zip(("input", "num_groups"), args, strict=False)) | dict(kwargs or {})
            channels, groups = named["input"].shape[1], int(named["num_groups"])
            self.found.append(channels // groups if channels % groups == 0 else 0)
        return func(*args, **(kwargs or {}))


def miscounted(
    model: nn.Module, inputs: Inputs, graph: fx.Graph, couplings: Sequence[Coupling], doubts: Sequence[Doubt]
) -> frozenset[str]:
    """Return the calls of group normalisation whose groups are not of one size at all widths, by their names.

    `F.group_norm(x, x.shape[1] // 8)` always makes groups of eight. `min(32, x.shape[1] // 4)` may make groups of eight
    of 256 channels, and of 160 groups of five: a trial with few channels need not show such a thing.

    Args:
        model: The network; left as it is.
        inputs: The arguments of one forward call.
        graph: Its graph.
        couplings: What may go.
        doubts: The calls to be looked at; others have numbers of groups that follow by themselves.
    """
    names = [doubt.name for doubt in doubts if doubt.groups is not None]
    if not names:
        return frozenset()
    calls = [node.name for node in graph.nodes if operator_name(node) == GROUP_NORM]
    copy: Callable[[nn.Module], nn.Module] = meta_copy
    arguments = inputs.map(lambda tensor: tensor.to("meta"))
    whole = _sizes(copy(model), arguments)
    if whole is None:  # it looks at values
        copy, arguments = _shared, inputs
        whole = _sizes(copy(model), arguments)
    if whole is None or len(whole) != len(calls):
        return frozenset(names)
    wrong: set[str] = set()
    for left in _widths(max(coupling.num_channels for coupling in couplings)):
        trial = copy(model)
        kept = {c.name: range(min(left, c.num_channels)) for c in couplings}
        apply_plan(trial, PruningPlan.from_kept(couplings, kept))
        found = _sizes(trial, arguments)
        if found is None or len(found) != len(calls):
            return frozenset(names)
        wrong |= {name for name, before, after in zip(calls, whole, found, strict=True) if before != after}
    return frozenset(wrong.intersection(names))


def _shared(model: nn.Module) -> nn.Module:
    return copy_model(model, shared)


def _widths(most: int) -> Sequence[int]:
    """Return the numbers of channels to be tried: all where they are few, or small ones, round ones and some more."""
    every = range(1, most)
    if len(every) <= MOST_WIDTHS:
        return every
    some = {*every[: MOST_WIDTHS // 4], *every[-MOST_WIDTHS // 4 :], *every[:: -(-len(every) // (MOST_WIDTHS // 4))]}
    some |= {most * eighths // 8 for eighths in range(1, 8)} | {2**power for power in range(most.bit_length())}
    return sorted(some & set(every))


def _sizes(network: nn.Module, inputs: Inputs) -> Sizes | None:
    """Return how many channels a group has in each call; None where the network does not run."""
    groups = _Groups()
    with mode(network, training=False), hooks_off(network), torch.no_grad(), groups, OneStep():
        try:
            inputs.call(network)
        except MODEL_ERRORS:
            return None
    return groups.found
