"""Couplings from what a tracer found: channel sets are numbered, and parameter axes become their members."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NewType

import torch
from torch import Tensor, fx

from oicsr.coupling import Coupling, Member
from oicsr.labels import ChannelSets
from oicsr.rules import Slot, Tracer, Value
from oicsr.rules.ids import varying

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
            first, second = node.all_input_nodes[:2] if len(node.all_input_nodes) > 1 else (node, node)
            common = ancestors[first] & ancestors[second]
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
        return {Root(self._tracer.sets.find(label)) for label in ids.flatten().tolist()}


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
            for root in produced[1:]:
                together.join_pair(produced[0], root)
        owner, number = [-1] * len(roots), [-1] * len(roots)
        couplings: dict[int, CouplingId] = {}
        names: dict[CouplingId, str] = {}
        sizes: dict[CouplingId, int] = defaultdict(int)
        for parameter, produced in layers:
            for root in dict.fromkeys(produced):
                if owner[root] >= 0:
                    continue
                coupling = couplings.setdefault(together.find(root), CouplingId(len(couplings)))
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
    reasons = {Root(root): reason for root in set(roots.tolist()) if (reason := tracer.sets.reason_fixed(root))}
    for root in streams:
        reasons.setdefault(root, STREAM)
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
    found = []
    for (coupling, name), size in zip(index.names.items(), index.sizes(), strict=True):
        if size < 2:
            unpruned[name] = SINGLE
        else:
            found.append(Coupling(name, size, tuple(members[coupling])))
    return found, unpruned


def _all_slots(tracer: Tracer) -> list[Slot]:
    """Return the slots of layers and those of parameters and buffers that are added or multiplied elementwise."""
    slots = list(tracer.slots.values())
    for name, ids in tracer.elementwise.items():
        roots = torch.tensor([tracer.sets.find(label) for label in ids.flatten().tolist()]).reshape(ids.shape)
        axes = [axis for axis in varying(roots) if bool((roots != roots.narrow(axis, 0, 1)).any())]
        if len(axes) == 1:
            vector = roots.movedim(axes[0], 0).reshape(roots.shape[axes[0]], -1)[:, 0]
            slots.append(Slot(name, axes[0], vector, "norm", counts=False))
        elif axes:
            tracer.sets.fix(ids, f"is read by {name!r} along several axes at once")
    return slots


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


def _explain(tracer: Tracer, roots: Tensor, reasons: Mapping[Root, str]) -> dict[str, str]:
    """Return for each layer some of whose output channels stay, why."""
    unpruned: dict[str, str] = {}
    for parameter, dim in tracer.producers:
        for root in sorted(set(roots_of(tracer.slots[parameter, dim], roots))):
            if root in reasons:
                unpruned.setdefault(layer_name(parameter), reasons[root])
    return unpruned
