"""Couplings that failed the numeric proof, mended: a width that is a number in the code may have a number to follow.

A size that is kept on a module (`x.view(-1, self.width, 4, 4)`, `nn.Unflatten`, `torch.zeros(1, len(x), self.width)`)
changes with the channels. A factor that the code computes from the width (`x / math.sqrt(self.in_features)`) is made up
for in the weights that read the channels, or in those that produce them. Couplings whose width is one and the same
number (an encoder's and a decoder's) are tied. Every remedy has to pass the proof, by itself and with all others.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, islice

from torch import fx, nn

from oicsr.coupling import Coupling, Member, Rescaled
from oicsr.networks.copying import copy_model, shared
from oicsr.networks.inputs import Inputs
from oicsr.networks.wrapping import stand_alone
from oicsr.proving.proof import Proof, joined, prove
from oicsr.proving.repair import ShapeBench, changed_powers, find_repair, fitting_repairs, identity
from oicsr.proving.trials import TRAINING_FAILS
from oicsr.rules import Tracer, Value
from oicsr.rules.calls import enclosing, module_path
from oicsr.rules.collect import ChannelIndex
from oicsr.ties import tie_couplings

MOST = 8  # couplings that are looked at first; where none of them can be mended, the network has another fault
MOST_READERS = 4  # that are tried one by one
MOST_ALIKE = 8  # modules of one class
MOST_TIES = 12  # sets of couplings of one width that are tried
MOST_SEARCHED = 200  # runs of cut copies and proofs in vain, beyond the modules that a coupling goes through


@dataclass(frozen=True)
class Traced:
    """What a trace leaves behind: its tracer, the numbers of the channels and the graph."""

    tracer: Tracer
    index: ChannelIndex
    graph: fx.Graph


@dataclass
class _Tries:
    """What remedies are tried on, those that were made, which of them passed the numeric proof, and what that took."""

    model: nn.Module
    inputs: Inputs
    bench: ShapeBench
    made: dict[tuple[object, ...], list[Coupling]] = field(default_factory=dict)
    passed: dict[tuple[object, ...], bool] = field(default_factory=dict)
    searched: int = 0

    def pass_proof(self, trial: Sequence[Coupling]) -> bool:
        """Return whether couplings pass; several places often hold the same numbers, which are tried once."""
        key = identity(trial)
        if key not in self.passed:
            self.passed[key] = not prove(self.model, self.inputs, trial).refuted
        return self.passed[key]

    def try_together(self, trials: Sequence[Coupling]) -> None:
        """Note which of several couplings pass together, in one proof; the others may pass by themselves."""
        new = [trial for trial in trials if identity([trial]) not in self.passed]
        if len(new) > 1:
            refuted = prove(self.model, self.inputs, new).refuted
            self.passed.update({identity([trial]): True for trial in new if trial.name not in refuted})

    def fitting(self, coupling: Coupling, paths: Sequence[str]) -> list[Coupling]:
        """Return a coupling with the first numbers that may mend it, if the code's factors stay with them."""
        repair, _ = next(fitting_repairs(self.bench, [(coupling, paths)], unread=False))
        stays = bool(repair.numbers) and repair.power == 0.0
        return [self.bench.with_numbers(coupling, paths, repair.numbers)] if stays else []

    def remedies(
        self, coupling: Coupling, paths: Sequence[str], *, tied: bool = False, further: bool = False
    ) -> list[Coupling]:
        """Return a coupling with what may mend it; one that was `tied` of several may need nothing else.

        The answer is kept. With `further`, the search counts against a budget; once it is spent, nothing new is tried.
        """
        key = (*identity([coupling]), tuple(paths), tied)
        if key not in self.made:
            if further and self.searched > MOST_SEARCHED:
                return []
            before = self.bench.runs + len(self.passed)
            self.made[key] = _remedies(self, coupling, paths, tied=tied)
            self.searched += self.bench.runs + len(self.passed) - before if further else 0
        return self.made[key]


def mend(
    model: nn.Module, inputs: Inputs, traced: Traced, couplings: Sequence[Coupling], proof: Proof
) -> tuple[list[Coupling], Proof]:
    """Return the couplings, those that could be mended with what they need, and what is refuted still."""
    if not proof.refuted:
        return list(couplings), proof
    bench = _bench(model, inputs, proof)
    if bench.whole.failure:
        return list(couplings), proof
    tracer, nodes = traced.tracer, traced.graph.nodes
    places = ((node, [module_path(n) for n in (node, *node.users, *_made(tracer, node))]) for node in nodes)
    paths = traced.index.paths(tracer, places)  # through which channels go
    failing = [coupling for coupling in couplings if coupling.name in proof.refuted]
    mended: dict[str, Coupling] = {}
    tries = _Tries(model, inputs, bench)
    for some in (failing[:MOST], failing[MOST:]):
        tries.try_together([trial for c in some for trial in tries.fitting(c, paths[c.name])])
        tries.try_together([trial for c in some for trial in tries.remedies(c, paths[c.name])[:1]])
        found = {coupling.name: _mended(tries, coupling, paths[coupling.name]) for coupling in some}
        mended |= {name: coupling for name, coupling in found.items() if coupling is not None}
        if not mended:
            break
    tries.searched = 0
    tied = _tied(tries, [coupling for coupling in failing if coupling.name not in mended], paths)
    mended |= {names[0]: coupling for names, coupling in tied.items()}
    if not mended:
        return list(couplings), proof
    gone = {name for names in tied for name in names[1:]}
    refuted = {name: reason for name, reason in proof.refuted.items() if name not in mended and name not in gone}
    together = [mended.get(coupling.name, coupling) for coupling in couplings if coupling.name not in gone]
    again = prove(model, inputs, [coupling for coupling in together if coupling.name not in refuted])
    return together, joined(replace(proof, refuted=refuted), again)


def _bench(model: nn.Module, inputs: Inputs, proof: Proof) -> ShapeBench:
    """Return a bench that runs training mode as well where something fails there, if the whole network does not."""
    twin = stand_alone(copy_model(model, shared))
    if any(TRAINING_FAILS in reason for reason in proof.refuted.values()):
        bench = ShapeBench(twin, inputs, training=True)
        if not bench.whole.failure:
            return bench
    return ShapeBench(twin, inputs)


def _made(tracer: Tracer, node: fx.Node) -> Iterator[fx.Node]:
    """Yield the calls that make numbers of some size (first states) for a value, in modules of any place."""
    for source in node.all_input_nodes:
        value = tracer.values.get(source)
        if isinstance(value, Value) and value.ids is None and value.reason in tracer.uniform:
            yield source
            yield from _made(tracer, source)


def _enclosing(paths: Iterable[str]) -> list[str]:
    """Return some modules and those that they are part of, down to the network itself."""
    return list(dict.fromkeys([*paths, *(outer for path in paths for outer in enclosing(path))]))


def _mended(tries: _Tries, coupling: Coupling, paths: Sequence[str], *, tied: bool = False) -> Coupling | None:
    """Return a coupling with what it needs: numbers of the modules that its channels pass, or of enclosing ones."""
    before = tries.searched
    for places in dict.fromkeys((tuple(paths), tuple(_enclosing(paths)), *_with_one_alike(tries.bench, paths))):
        for trial in tries.remedies(coupling, places, tied=tied, further=True):  # `mend` has made those of `paths`
            if tries.pass_proof([trial]):
                tries.searched = before  # no search in vain
                return trial
    return None


def _with_one_alike(bench: ShapeBench, paths: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield some modules with one only of several of one class: those of one width that follow one another differ."""
    by_class: dict[type[nn.Module], list[str]] = defaultdict(list)
    for path in paths:
        by_class[type(bench.modules[path])].append(path)
    for alike in by_class.values():
        for path in alike[:MOST_ALIKE] if len(alike) > 1 else ():
            yield tuple(other for other in paths if other == path or other not in alike)


def _tied(
    tries: _Tries, couplings: Sequence[Coupling], paths: Mapping[str, Sequence[str]]
) -> dict[tuple[str, ...], Coupling]:
    """Return couplings made of several, by the names of these: their width is one number, which can follow all of them.

    Of each width, as many are tied as can be; of more than a few, all or none.
    """
    by_width: dict[tuple[int, str], list[Coupling]] = defaultdict(list)
    for coupling in couplings:
        by_width[coupling.num_channels, coupling.kind].append(coupling)
    found: dict[tuple[str, ...], Coupling] = {}
    for group in by_width.values():
        sets = (some for count in range(len(group), 1, -1) for some in combinations(group, count))
        for some in islice(sets, MOST_TIES if len(group) <= MOST else 1):
            names = tuple(coupling.name for coupling in some)
            if any(set(names) & set(earlier) for earlier in found):
                continue
            tied = tie_couplings(some, [names])[0]
            mended = _mended(tries, tied, [path for name in names for path in paths[name]], tied=True)
            found |= {} if mended is None else {names: mended}
    return found


def _remedies(tries: _Tries, coupling: Coupling, paths: Sequence[str], *, tied: bool) -> list[Coupling]:
    bench = tries.bench
    repair = find_repair(bench, [(coupling, paths)], lambda trial, _: tries.pass_proof(trial), unread=False)
    if repair.failure:
        return []
    numbered = bench.with_numbers(coupling, paths, repair.numbers)
    powers = changed_powers(bench.whole, bench.without_one([(coupling, paths)], repair.numbers), coupling)
    trials = [numbered] if (repair.numbers or tied) and not powers else []
    trials += [  # beside what makes up for a mean already
        replace(numbered, rescaled=(*numbered.rescaled, *rescaled))
        for power in powers
        if not math.isnan(power)
        for rescaled in _rescalings(bench, coupling, -power)
    ]
    return trials


def _rescalings(bench: ShapeBench, coupling: Coupling, power: float) -> Iterator[tuple[Rescaled, ...]]:
    """Yield what may make up for a factor.

    The layers that read the channels, their biases too; their producers, each with half of the power where products
    of what they give are scaled (correlations of features); or the columns of the channels alone.
    """
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
    yield tuple(replace(entry, power=power / 2) for entry in rows)
    if any(bool((m.channels < 0).any()) for m in readers):
        yield tuple(replace(whole[m.parameter], slices=_own(m)) for m in readers)
    if 1 < len(whole) <= MOST_READERS:
        yield from ((entry,) for entry in whole.values())


def _own(member: Member) -> tuple[int, ...]:
    """Return the positions of the slices that belong to channels of the coupling."""
    return tuple((member.channels >= 0).nonzero().flatten().tolist())
