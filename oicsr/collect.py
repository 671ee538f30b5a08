"""Couplings from what a tracer found: channel sets are numbered, and parameter axes become their members."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import NewType

import torch
from torch import Tensor, fx

from oicsr.coupling import Coupling, Member
from oicsr.labels import ChannelSets
from oicsr.rules import Slot, Tracer, Value
from oicsr.rules.ids import on_axis, squeeze_constant_axes, varying

SINGLE = "has a single channel"
STREAM = "is part of a residual stream (scope 'all' prunes it)"

Root = NewType("Root", int)  # the label that stands for a channel set: slices that can only be removed together
CouplingId = NewType("CouplingId", int)  # position of a coupling in the order in which their first layers run


class Streams:
    """Residual streams: the channels that additions of two activations join, and those that such a sum forks from."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._summed: list[Tensor] = []
        self._forks: list[tuple[Tensor, Tensor]] = []  # (ids of the fork, ids of the sum)
        self._read = 0

    def read(self, graph: fx.Graph) -> None:
        """Take note of the additions of a graph that the tracer has just run through."""
        ancestors = self._ancestors(graph)
        nodes = list(graph.nodes)
        for node, joined, ids in self._tracer.added[self._read :]:
            if joined:
                self._summed.append(ids)
            first, *others = node.all_input_nodes
            common = ancestors[first] & reduce(or_, (ancestors[other] for other in others), 0)
            if common:
                fork = self._tracer.values[nodes[common.bit_length() - 1]]
                if isinstance(fork, Value) and fork.ids is not None:
                    self._forks.append((fork.ids, ids))
        self._read = len(self._tracer.added)

    def _ancestors(self, graph: fx.Graph) -> dict[fx.Node, int]:
        """Return for each node the set of activations that it depends on (itself included), as bits by position."""
        found: dict[fx.Node, int] = {}
        for position, node in enumerate(graph.nodes):
            bits = 0
            for source in node.all_input_nodes:
                bits |= found[source]
            if node in self._tracer.values and self._tracer.depends_on_input(node):
                bits |= 1 << position
            found[node] = bits
        return found

    def roots(self) -> set[Root]:
        """Return the channel sets that belong to residual streams."""
        streams = {root for ids in self._summed for root in self._roots_of(ids)}
        for fork, total in self._forks:
            fork_roots = self._roots_of(fork)
            # a sum over one and the same axis (x + depthwise(x)) starts no stream
            if fork_roots.isdisjoint(self._roots_of(total)):
                streams |= fork_roots
        return streams

    def _roots_of(self, ids: Tensor) -> set[Root]:
        return {Root(root) for root in self._tracer.sets.find(ids).unique().tolist()}


@dataclass(frozen=True)
class ChannelIndex:
    """Which channel of which coupling every channel set is.

    Example: two layers, of two and three filters, are concatenated; the labels are 0 and 1, and 2, 3 and 4. Label 3 has
    a reason to stay, and labels 1 and 4 are tied. Then `roots` is 0 1 2 3 1, and as the tie makes one coupling of both
    layers, `owner` is 0 0 0 -1 -1 by root and `number` 0 1 2 -1 -1 (4 is the root of no set).

    Attributes:
        roots: The root of every label, int64 `(labels,)`.
        owner: The coupling of every root, int64 `(labels,)`; -1 where the set stays.
        number: Its channel id in that coupling, int64 `(labels,)`; -1 where the set stays.
        names: The couplings' names.
    """

    roots: Tensor
    owner: Tensor
    number: Tensor
    names: Mapping[CouplingId, str]

    @staticmethod
    def build(tracer: Tracer, roots: Tensor, reasons: Mapping[Root, str]) -> ChannelIndex:
        """Number the sets that may go (those without a reason to stay), coupling by coupling, layer by layer.

        All sets that one layer produces are of one coupling; it is named after the first layer that produces them.
        """
        layers = [
            (parameter, [root for root in roots_of(tracer.slots[parameter, dim], roots) if root not in reasons])
            for parameter, dim in tracer.producers
        ]
        together = ChannelSets()
        together.new(len(roots))
        for _, produced in layers:
            members = torch.tensor(produced, dtype=torch.int64)
            together.join(members[1:], members[:1].expand(max(0, len(members) - 1)))
        coupled = together.roots().tolist()
        owner, number = [-1] * len(roots), [-1] * len(roots)
        couplings: dict[int, CouplingId] = {}
        names: dict[CouplingId, str] = {}
        sizes: dict[CouplingId, int] = defaultdict(int)
        for parameter, produced in layers:
            for root in dict.fromkeys(produced):
                if owner[root] >= 0:
                    continue
                coupling = couplings.setdefault(coupled[root], CouplingId(len(couplings)))
                names.setdefault(coupling, layer_name(parameter))
                owner[root], number[root] = coupling, sizes[coupling]
                sizes[coupling] += 1
        return ChannelIndex(roots, torch.tensor(owner), torch.tensor(number), names)

    def sizes(self) -> list[int]:
        """Return how many channels each coupling has."""
        return torch.bincount(self.owner[self.owner >= 0], minlength=len(self.names)).tolist() if self.names else []

    def of(self, slot: Slot) -> tuple[Tensor, Tensor]:
        """Return coupling and channel of each slice of an axis, both int64 `(size of the axis,)`."""
        roots = self.roots[slot.ids]
        return self.owner[roots], self.number[roots]


def roots_of(slot: Slot, roots: Tensor) -> list[Root]:
    """Return the channel set of each slice of an axis."""
    return [Root(root) for root in roots[slot.ids].tolist()]


def collect(tracer: Tracer, streams: set[Root]) -> tuple[list[Coupling], dict[str, str]]:
    """Build the couplings from the channel sets, and say which layers' channels stay.

    Args:
        tracer: After it ran over the model's graphs.
        streams: Channel sets that stay because they belong to residual streams.
    """
    slots = _all_slots(tracer)
    roots = tracer.sets.roots()
    reasons = {Root(root): reason for root, reason in tracer.sets.reasons().items()}
    for root in tracer.sets.find(torch.tensor(sorted(streams), dtype=torch.int64)).tolist():
        reasons.setdefault(Root(root), STREAM)
    index = ChannelIndex.build(tracer, roots, reasons)
    last = _last_channels(slots, index)
    if last:
        reasons |= last
        index = ChannelIndex.build(tracer, roots, reasons)
    members: dict[CouplingId, list[Member]] = defaultdict(list)
    for slot in slots:
        owner, number = index.of(slot)
        for coupling in owner.unique().tolist():
            if coupling >= 0:
                channels = torch.where(owner == coupling, number, -1)
                members[coupling].append(Member(slot.parameter, slot.dim, channels, slot.side, slot.counts))
    unpruned = _explain(tracer, roots, reasons)
    tracer.unruled.extend(_notable(tracer, roots, reasons))
    found = []
    for (coupling, name), size in zip(index.names.items(), index.sizes(), strict=True):
        if size < 2:
            unpruned[name] = SINGLE
            if any(len(slot.ids) > 1 for slot in slots if slot.side == "out" and layer_name(slot.parameter) == name):
                tracer.unruled.append(
                    f"the channels of {name!r} can only go all at once, as the model's code ties them"
                )
        else:
            found.append(Coupling(name, size, tuple(members[coupling])))
    return found, unpruned


def _all_slots(tracer: Tracer) -> list[Slot]:
    """Return the slots of layers and those of parameters and buffers that are added or multiplied elementwise."""
    for name, ids in tracer.elementwise.items():
        _join_roles(tracer, name, ids)
    slots = list(tracer.slots.values())
    for name, ids in tracer.elementwise.items():
        if any(slot.parameter == name for slot in tracer.slots.values()):
            continue
        roots = squeeze_constant_axes(tracer.sets.find(ids))
        axes = varying(roots)
        if len(axes) == 1:
            slots.append(Slot(name, axes[0], roots.flatten(), "norm", counts=False))
        elif axes:
            tracer.sets.fix(ids, tracer.notable(f"is combined with {name!r} along several axes at once"))
    return slots


def _join_roles(tracer: Tracer, name: str, ids: Tensor) -> None:
    """Tie the labels of a parameter that is read elementwise to the channels that it has as the weight of a layer."""
    slots = [slot for slot in tracer.slots.values() if slot.parameter == name]
    if len(slots) == 1:
        along = on_axis(slots[0].ids, slots[0].dim, ids.ndim)
        tracer.sets.join(along.expand_as(ids), ids)
    elif slots:  # each element belongs to a row and to a column
        reason = tracer.notable(f"{name!r} is the weight of a layer, and is read elementwise too")
        for labels in (ids, *(slot.ids for slot in slots)):
            tracer.sets.fix(labels, reason)


def _last_channels(slots: Sequence[Slot], index: ChannelIndex) -> dict[Root, str]:
    """Return one channel set for each axis that could lose all its slices, and why it stays.

    A coupling keeps one channel at least, but not every axis need have slices of that one: a normalisation group over
    a concatenation can hold a whole layer.
    """
    sizes = index.sizes()
    last: dict[Root, str] = {}
    for slot in slots:
        owner, number = index.of(slot)
        if bool((owner < 0).any()):
            continue  # a slice of it stays anyway
        complete = any(len(number[owner == c].unique()) == sizes[c] for c in owner.unique().tolist())
        axis = roots_of(slot, index.roots)
        if not complete and last.keys().isdisjoint(axis):
            last[axis[0]] = f"is what {slot.parameter!r} needs to keep a channel"
    return last


def layer_name(parameter: str) -> str:
    """Return the name of the layer that a parameter belongs to."""
    return parameter.rpartition(".")[0] or parameter


def _notable(tracer: Tracer, roots: Tensor, reasons: Mapping[Root, str]) -> list[str]:
    """Return the reasons to warn of that keep channels of some layer."""
    produced = (root for key in tracer.producers for root in roots_of(tracer.slots[key], roots))
    found = dict.fromkeys(reasons[root] for root in produced if root in reasons)
    return [reason for reason in found if tracer.is_notable(reason)]


def _explain(tracer: Tracer, roots: Tensor, reasons: Mapping[Root, str]) -> dict[str, str]:
    """Return for each layer some of whose output channels stay, why."""
    unpruned: dict[str, str] = {}
    for parameter, dim in tracer.producers:
        for root in sorted(set(roots_of(tracer.slots[parameter, dim], roots))):
            if root in reasons:
                unpruned.setdefault(layer_name(parameter), reasons[root])
    return unpruned
