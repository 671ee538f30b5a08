"""Couplings from what a tracer found: channel sets are numbered, and parameter axes become their members."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import NewType

import torch
from torch import Tensor, fx

from oicsr.coupling import Coupling, Member
from oicsr.names import layer_name
from oicsr.networks.state import indices_on_cpu
from oicsr.rules.calls import module_path
from oicsr.rules.ids import on_axis, squeeze_constant_axes, varying
from oicsr.rules.labels import ChannelSets
from oicsr.rules.notes import Slot
from oicsr.rules.registry import Value
from oicsr.rules.tracer import Tracer

ATTENDED = ("scores", "values", "pair")  # products that have heads, where an attention has any
HEADS = 'granularity="head" looks for whole heads that can go'
SINGLE = "has a single channel"
PLACES = ("operator ", "'")  # how a reason begins that says itself where it lies
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
        totals: dict[fx.Node, list[Tensor]] = defaultdict(list)
        for node, joined, ids in self._tracer.added[self._read :]:
            if joined:
                self._summed.append(ids)
            totals[node].append(ids.flatten())  # one entry for each axis of a pair
        for node, parts in totals.items():
            first, *others = node.all_input_nodes
            common = ancestors[first] & reduce(or_, (ancestors[other] for other in others), 0)
            if common:
                fork = self._tracer.values[nodes[common.bit_length() - 1]]
                if isinstance(fork, Value) and fork.ids is not None:
                    self._forks.append((fork.ids, torch.cat(parts)))
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


@dataclass
class Reasons:
    """Why channel sets stay: for each root the position of a text, -1 where the set may go."""

    which: Tensor  # int64 (labels,)
    texts: list[str]

    def add(self, roots: Tensor, text: str) -> None:
        """Let those of the sets that may go stay because of `text`."""
        self.which[roots[self.which[roots] < 0]] = len(self.texts)
        self.texts.append(text)

    def of(self, roots: Tensor) -> list[str]:
        """Return the reasons of some sets, each once, in the order of the sets."""
        return [self.texts[position] for position in dict.fromkeys(self.which[roots].tolist()) if position >= 0]


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

    def names_of(self, labels: Tensor) -> list[str]:
        """Return the couplings that some labels belong to, by name."""
        owners = self.owner[self.roots[labels]]
        return [self.names[CouplingId(owner)] for owner in owners[owners >= 0].unique().tolist()]

    def parts(self, labels: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield each of these couplings, by name, with the channel id of each label in it; -1 where it has none."""
        owners, numbers = self.owner[self.roots[labels]], self.number[self.roots[labels]]
        for owner in owners[owners >= 0].unique().tolist():
            yield self.names[CouplingId(owner)], torch.where(owners == owner, numbers, -1)

    def paths(self, tracer: Tracer, places: Iterable[tuple[fx.Node, Iterable[str]]]) -> dict[str, list[str]]:
        """Return for each coupling the paths that are given for the values that hold its channels, each once."""
        found: dict[str, dict[str, None]] = defaultdict(dict)
        for node, paths in places:
            value = tracer.values.get(node)
            for part in value if isinstance(value, list) else [value]:
                sides = () if part is None else (part.ids, *(part.pair or ()))
                for name in (name for ids in sides if ids is not None for name in self.names_of(ids.flatten())):
                    found[name].update(dict.fromkeys(paths))
        return defaultdict(list, {name: list(paths) for name, paths in found.items()})

    @staticmethod
    def build(tracer: Tracer, roots: Tensor, reasons: Reasons) -> ChannelIndex:
        """Number the sets that may go (those without a reason to stay), coupling by coupling, layer by layer.

        All sets that an axis of a layer produces are of one coupling; it is named after the first layer that produces
        them. A weight that is used as it is and transposed (a tied autoencoder) produces along both axes: the second
        coupling of a layer is named after the parameter and its axis, `decoder.weight[1]`. What one layer produces for
        different ends (see `_ends`) makes a coupling each; the second is named after its slices,
        `qkv[8:12]`.
        """
        ends = _ends(tracer, roots)
        layers = []
        together = ChannelSets()
        together.new(len(roots))
        for key in tracer.producers:
            every = roots[tracer.slots[key].ids]
            may_go = reasons.which[every] < 0
            found = dict.fromkeys(ends[every[may_go]].tolist())
            for end in found:
                places = (may_go & (ends[every] == end)).nonzero().flatten()
                produced = every[places]
                together.join(produced[1:], produced[:1].expand(len(produced) - 1))
                layers.append((key, produced, f"{places[0]}:{int(places[-1]) + 1}" if len(found) > 1 else ""))
        owner, number = torch.full((2, len(roots)), -1)
        couplings: dict[int, CouplingId] = {}
        names: dict[CouplingId, str] = {}
        sizes: dict[CouplingId, int] = defaultdict(int)
        wide = {layer_name(key[0]) for key in tracer.producers if len(tracer.slots[key].ids) > 1}
        for (parameter, dim), produced, places in layers:
            coupling = couplings.setdefault(int(together.find(produced[0])), CouplingId(len(couplings)))
            if coupling not in names:
                name = layer_name(parameter)
                if name in wide and len(tracer.slots[parameter, dim].ids) == 1:  # a kernel for masks beside a weight
                    name = parameter
                choices = (
                    name,
                    f"{name}[{places}]" if places else f"{parameter}[{dim}]",
                    f"{parameter}[{dim}][{places}]",
                )
                names[coupling] = next(choice for choice in choices if choice not in names.values())
            new = torch.tensor(list(dict.fromkeys(produced[owner[produced] < 0].tolist())), dtype=torch.int64)
            owner[new], number[new] = coupling, torch.arange(sizes[coupling], sizes[coupling] + len(new))
            sizes[coupling] += len(new)
        return ChannelIndex(roots, owner, number, names)

    def sizes(self) -> list[int]:
        """Return how many channels each coupling has."""
        return torch.bincount(self.owner[self.owner >= 0], minlength=len(self.names)).tolist() if self.names else []

    def owners(self, vectors: Sequence[Tensor]) -> tuple[str, ...]:
        """Return the names of the couplings that some channels belong to."""
        if not vectors:
            return ()
        owners = self.owner[self.roots[torch.cat(list(vectors))]].unique()
        return tuple(self.names[CouplingId(owner)] for owner in owners.tolist() if owner >= 0)

    def of(self, slot: Slot) -> tuple[Tensor, Tensor]:
        """Return coupling and channel of each slice of an axis, both int64 `(size of the axis,)`."""
        roots = self.roots[slot.ids]
        return self.owner[roots], self.number[roots]


@indices_on_cpu()
def collect(tracer: Tracer, streams: set[Root]) -> tuple[list[Coupling], dict[str, str], ChannelIndex]:
    """Build the couplings from the channel sets, and say which layers' channels stay, and whose every set is.

    Args:
        tracer: After it ran over the model's graphs.
        streams: Channel sets that stay because they belong to residual streams.
    """
    slots = _all_slots(tracer)
    roots = tracer.sets.roots()
    reasons = Reasons(*tracer.sets.reasons())
    reasons.add(roots[torch.tensor(sorted(streams), dtype=torch.int64)], STREAM)
    index = ChannelIndex.build(tracer, roots, reasons)
    last = _last_channels(slots, index)
    if last:
        for root, text in last.items():
            reasons.add(torch.tensor([root]), text)
        index = ChannelIndex.build(tracer, roots, reasons)
    members: dict[CouplingId, list[Member]] = defaultdict(list)
    for slot in slots:
        owner, number = index.of(slot)
        for coupling in _present(owner):
            channels = torch.where(owner == coupling, number, -1)
            members[coupling].append(Member(slot.parameter, slot.dim, channels, slot.side, slot.counts))
    unpruned = _explain(tracer, roots, reasons, streams)
    apart = [
        product for product in tracer.products if product.kind in ATTENDED and not tracer.takes_heads(product.node)
    ]
    attended = index.owners([product.labels for product in apart])
    found = []
    for (coupling, name), size in zip(index.names.items(), index.sizes(), strict=True):
        if size > 1:
            found.append(Coupling(name, size, tuple(members[coupling])))
            continue
        unpruned[name] = SINGLE
        if any(len(tracer.slots[key].ids) > 1 for key in tracer.producers if layer_name(key[0]) == name):
            instead = f"; {HEADS}" if name in attended else ""
            tracer.unruled.append(
                f"the channels of {name!r} could only go all at once: the model's code ties them{instead}"
            )
    return found, unpruned, index


def _ends(tracer: Tracer, roots: Tensor) -> Tensor:
    """Return for every label what its channels are for, as the root of such sets; -1 where nothing tells.

    The channels of queries and keys, those of values, and each piece of what a module cuts are widths of their own in
    the code, though one layer may produce them all. (Where a module without attention keeps the sizes of all pieces in
    a list, they are left together.) Of a piece that is cut again, the smaller ones are.
    """
    together, known = ChannelSets(), torch.zeros(len(roots), dtype=torch.bool)
    together.new(len(roots))
    products = [product for product in tracer.products if product.kind != "weight"]
    within = {module_path(product.node) for product in products if len(product.labels)}
    vectors = [vector for p in products for vector in ([p.channels, p.passed] if p.sets else [p.heads])]
    cuts = (cut for cut in tracer.cuts if not cut.listed or module_path(cut.node) in within)
    vectors += _innermost([roots[piece] for cut in cuts for piece in cut.pieces])
    for vector in vectors:
        if vector is not None:
            own = roots[vector]
            together.join(own[1:], own[:1].expand(len(own) - 1))
            known[own] = True
    return torch.where(known, together.roots(), -1)


def _innermost(pieces: Sequence[Tensor]) -> list[Tensor]:
    """Return the pieces that hold no other one and more."""
    sets = [frozenset(piece.tolist()) for piece in pieces]
    distinct = set(sets)
    return [piece for piece, own in zip(pieces, sets, strict=True) if not any(other < own for other in distinct)]


def _present(owner: Tensor) -> list[CouplingId]:
    """Return the couplings that slices of an axis belong to."""
    if bool((owner == owner[0]).all()):  # nearly always
        first = int(owner[0])
        return [CouplingId(first)] if first >= 0 else []
    return [CouplingId(coupling) for coupling in owner.unique().tolist() if coupling >= 0]


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
    """Tie the labels of a parameter that is read elementwise to the channels that it has as the weight of a layer.

    Where it is one for two axes, each element belongs to a row and to a column: those along which it is followed
    elementwise may go (the columns of a table that rows are picked from), the others stay.
    """
    slots = [slot for slot in tracer.slots.values() if slot.parameter == name]
    axes = varying(squeeze_constant_axes(tracer.sets.find(ids))) if len(slots) > 1 else []
    along = slots if len(slots) == 1 else [slot for slot in slots if axes == [slot.dim]]
    for slot in along:
        tracer.sets.join(on_axis(slot.ids, slot.dim, ids.ndim).expand_as(ids), ids)
    followed = {slot.dim for slot in along}
    others = [slot.ids for slot in slots if slot.dim not in followed]
    if others:
        reason = tracer.notable(f"{name!r} is the weight of a layer, and is read elementwise too")
        for labels in others if along else (ids, *others):
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
        if any(len(number[owner == coupling].unique()) == sizes[coupling] for coupling in _present(owner)):
            continue  # it has slices of all channels of a coupling
        axis = [Root(root) for root in index.roots[slot.ids].tolist()]
        if last.keys().isdisjoint(axis):
            last[axis[0]] = f"is what {slot.parameter!r} needs to keep a channel"
    return last


def _explain(tracer: Tracer, roots: Tensor, reasons: Reasons, streams: Set[Root]) -> dict[str, str]:
    """Return for each layer some of whose output channels stay, why; leave what the user is to be warned of.

    There is no warning of what keeps a residual stream that stays in this scope anyway (its LayerNorms, mostly).
    """
    unpruned: dict[str, str] = {}
    in_stream = torch.zeros(len(roots), dtype=torch.bool)
    in_stream[torch.tensor(sorted(streams), dtype=torch.int64)] = True
    for parameter, dim in tracer.producers:
        own = roots[tracer.slots[parameter, dim].ids]
        texts = reasons.of(own)
        if texts:
            unpruned.setdefault(layer_name(parameter), texts[0])
        others = (text for text in reasons.of(own[~in_stream[own]]) if tracer.is_notable(text))
        said = [text if text.startswith(PLACES) else f"{layer_name(parameter)!r} {text}" for text in others]
        tracer.unruled.extend(text for text in said if text not in tracer.unruled)
    return unpruned
