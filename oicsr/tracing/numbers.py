"""Numbers on modules that the rules found to stand for widths: sizes of cuts, groups and epsilons of normalisations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, fx

from oicsr.coupling import Attribute, Call, Coupling, Part, Rescaled
from oicsr.rules import Tracer
from oicsr.rules.calls import operator_name
from oicsr.rules.collect import ChannelIndex, CouplingId
from oicsr.rules.names import CONVOLUTIONS, PRODUCTS, SUMMED_PRODUCTS

# what a weight's calls are
LAYERS = CONVOLUTIONS | PRODUCTS | {"aten::linear", "aten::bilinear", "torchvision::deform_conv2d", *SUMMED_PRODUCTS}


def follow_norms(
    tracer: Tracer, index: ChannelIndex, couplings: Mapping[str, Coupling]
) -> tuple[dict[str, Coupling], list[str]]:
    """Return the couplings with what RMSNorms over their channels need, and the modules whose channels must stay.

    The mean of squares follows the width only where all channels that it runs over are of one coupling, each as often.
    Other means are followed on trust: the proof speaks against them where they do not.
    """
    found, wrong = dict(couplings), []
    for norm in tracer.norms:
        owner = owner_of(index, norm.channels)
        if owner is None or owner not in found:
            if norm.slices is None and bool((index.owner[index.roots[norm.channels]] >= 0).any()):
                wrong.append(norm.module)
            continue
        coupling = found[owner]
        counts = index.number[index.roots[norm.channels]].bincount(minlength=coupling.num_channels)
        if bool((counts != counts[0]).any()):
            wrong += [norm.module] if norm.slices is None else []
            continue
        entries = tuple(range(len(norm.channels))) if norm.slices is None else norm.slices
        rescaled = Rescaled(norm.weight, norm.dim, entries, norm.power)
        attributes = [*coupling.attributes]
        if norm.eps:
            eps = float(vars((tracer.modules or {})[norm.module])[norm.eps])
            attributes.append(Attribute(norm.module, norm.eps, eps, -norm.eps_power))
        found[owner] = replace(
            coupling,
            attributes=tuple(dict.fromkeys(attributes)),
            rescaled=tuple(dict.fromkeys([*coupling.rescaled, rescaled])),
        )
    return found, wrong


def follow_counts(tracer: Tracer, index: ChannelIndex, couplings: Mapping[str, Coupling]) -> dict[str, Coupling]:
    """Return the couplings with the numbers on modules that count slices of their channels."""
    found = dict(couplings)
    for count in tracer.counts:
        for name, ids in index.parts(count.labels):
            if name in found:
                channels = tuple(ids[ids >= 0].tolist())
                number = Attribute(count.module, count.name, len(count.labels), channels=channels)
                attributes = tuple(dict.fromkeys([*found[name].attributes, number]))
                found[name] = replace(found[name], attributes=attributes)
    return found


def note_parts(
    tracer: Tracer, index: ChannelIndex, couplings: Mapping[str, Coupling], graph: fx.Graph
) -> dict[str, Coupling]:
    """Return the couplings with what products and layers cost beside the widths of parameters.

    That is what their channels own of weights that are computed, or of products of two sets, and the calls of layers
    that run over them one by one.
    """
    found = dict(couplings)
    entries: list[tuple[Call, int, Tensor | None]] = []
    for number, product in enumerate(tracer.products):
        counts = product.kind == "weight" or product.passed is not None
        sets = (product.channels, product.read, product.passed) if counts else ()
        entries += [(number, dim, labels) for dim, labels in enumerate(sets)]
    calls = _calls_of_weights(tracer, graph)
    passed = [(calls.get((p.node, p.weight)), p.channels) for p in tracer.passed]
    entries += [(work, 2 + place, own) for place, (work, own) in enumerate(passed) if work is not None]
    for work, dim, labels in entries:
        for name, ids in index.parts(labels) if labels is not None else ():
            if name in found:
                found[name] = replace(found[name], parts=(*found[name].parts, Part(work, dim, ids)))
    return found


def _calls_of_weights(tracer: Tracer, graph: fx.Graph) -> dict[tuple[fx.Node, str], Call]:
    """Return the number of each call of a layer in a graph among those with the same weight, in their order."""
    counts: dict[str, int] = defaultdict(int)
    calls: dict[tuple[fx.Node, str], Call] = {}
    for node in graph.nodes if tracer.passed else ():
        if node.op == "call_function" and operator_name(node) in LAYERS and tracer.depends_on_input(node):
            names = {tracer.parameters[source] for source in node.all_input_nodes if source in tracer.parameters}
            for name in names:
                calls[node, name] = name, counts[name]
                counts[name] += 1
    return calls


def owner_of(index: ChannelIndex, vector: Tensor) -> str | None:
    """Return the coupling that all of some channels belong to."""
    owners = index.owner[index.roots[vector]]
    first = int(owners[0])
    return index.names[CouplingId(first)] if first >= 0 and bool((owners == first).all()) else None
