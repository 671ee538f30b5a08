"""Couplings that failed the numeric proof, mended: a width that is a number in the code may have a number to follow.

A size that is kept on a module (`x.view(-1, self.width, 4, 4)`, `nn.Unflatten`) changes with the channels. A factor
that the code computes from the width (`x / math.sqrt(self.in_features)`) is made up for in the weights that read the
channels, or in those that produce them. Every remedy has to pass the proof, by itself and together with all others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import fx, nn

from oicsr.collect import ChannelIndex
from oicsr.coupling import Coupling, Rescaled
from oicsr.inputs import Inputs
from oicsr.proof import Proof, joined, prove
from oicsr.repair import Bench, changed_power, find_repair
from oicsr.rules import Tracer
from oicsr.rules.calls import module_path

MOST = 8  # couplings that are looked at; a network with more of them has another fault
MOST_READERS = 4  # that are tried one by one


@dataclass(frozen=True)
class Traced:
    """What a trace leaves behind: its tracer, the numbers of the channels, the graph and the network without hooks."""

    tracer: Tracer
    index: ChannelIndex
    graph: fx.Graph
    twin: nn.Module


def mend(
    model: nn.Module, inputs: Inputs, traced: Traced, couplings: Sequence[Coupling], proof: Proof
) -> tuple[list[Coupling], Proof]:
    """Return the couplings, those that could be mended with what they need, and what is refuted still."""
    if not 0 < len(proof.refuted) <= MOST:
        return list(couplings), proof
    bench = Bench(traced.twin, inputs)
    if bench.whole.failure:
        return list(couplings), proof
    places = ((node, [module_path(reader) for reader in (node, *node.users)]) for node in traced.graph.nodes)
    paths = traced.index.paths(traced.tracer, places)  # through which channels go, and the network itself
    mended: dict[str, Coupling] = {}
    for coupling in couplings:
        if coupling.name in proof.refuted:
            found = next(_remedies(model, inputs, bench, coupling, paths[coupling.name]), None)
            mended |= {} if found is None else {coupling.name: found}
    if not mended:
        return list(couplings), proof
    refuted = {name: reason for name, reason in proof.refuted.items() if name not in mended}
    together = [mended.get(coupling.name, coupling) for coupling in couplings]
    again = prove(model, inputs, [coupling for coupling in together if coupling.name not in refuted])
    return together, joined(replace(proof, refuted=refuted), again)


def _remedies(
    model: nn.Module, inputs: Inputs, bench: Bench, coupling: Coupling, paths: Sequence[str]
) -> Iterator[Coupling]:
    """Yield a coupling with what makes the proof succeed."""

    def proven(trial: Sequence[Coupling], power: float = 0.0) -> bool:
        """Ask the numeric proof."""
        return not prove(model, inputs, trial).refuted

    repair = find_repair(bench, [(coupling, paths)], proven)
    if repair.failure:
        return
    numbered = bench.with_numbers(coupling, paths, repair.numbers)
    power = changed_power(bench.whole, bench.without_one([(coupling, paths)], repair.numbers), coupling)
    if power == 0.0 and repair.numbers:
        trials = [numbered]
    elif power == 0.0 or math.isnan(power):
        trials = []
    else:
        trials = [replace(numbered, rescaled=rescaled) for rescaled in _rescalings(bench, coupling, -power)]
    yield from (trial for trial in trials if proven([trial]))


def _rescalings(bench: Bench, coupling: Coupling, power: float) -> Iterator[tuple[Rescaled, ...]]:
    """Yield what may make up for a factor: the layers that read the channels, their biases too, or their producers."""
    names = {member.parameter for member in coupling.members}
    tensors = dict(bench.modules[""].named_parameters())
    readers = [m for m in coupling.members if m.side == "in" and m.parameter in tensors]
    whole = {m.parameter: Rescaled(m.parameter, m.dim, tuple(range(len(m.channels))), power) for m in readers}
    biases = {
        name: Rescaled(name, 0, tuple(range(len(tensors[name]))), power)
        for reader in whole
        if (name := reader.removesuffix("weight") + "bias") in tensors and name not in names
    }
    rows = tuple(
        Rescaled(m.parameter, m.dim, tuple(range(len(m.channels))), power)
        for m in coupling.members
        if m.side == "out" and m.parameter in tensors
    )
    yield tuple(whole.values())
    if biases:
        yield (*whole.values(), *biases.values())
    yield rows
    if 1 < len(whole) <= MOST_READERS:
        yield from ((entry,) for entry in whole.values())
