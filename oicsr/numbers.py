"""Numbers on modules that the rules found to stand for widths: sizes of cuts, groups and epsilons of normalisations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from oicsr.collect import ChannelIndex, CouplingId
from oicsr.coupling import Attribute, Coupling, Part, Rescaled
from oicsr.rules import Tracer


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
            attributes.append(Attribute(norm.module, norm.eps, eps, -1))
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


def note_parts(tracer: Tracer, index: ChannelIndex, couplings: Mapping[str, Coupling]) -> dict[str, Coupling]:
    """Return the couplings with what their channels own of weights that are computed, or of products of two sets."""
    found = dict(couplings)
    for number, product in enumerate(tracer.products):
        counts = product.kind == "weight" or product.passed is not None
        for dim, labels in enumerate((product.channels, product.read, product.passed) if counts else ()):
            for name, ids in index.parts(labels) if labels is not None else ():
                if name in found:
                    found[name] = replace(found[name], parts=(*found[name].parts, Part(number, dim, ids)))
    return found


def owner_of(index: ChannelIndex, vector: Tensor) -> str | None:
    """Return the coupling that all of some channels belong to."""
    owners = index.owner[index.roots[vector]]
    first = int(owners[0])
    return index.names[CouplingId(first)] if first >= 0 and bool((owners == first).all()) else None
