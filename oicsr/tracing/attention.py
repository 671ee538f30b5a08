"""What of an attention can go, and what its code needs for it: channels of each head, or heads.

Queries, keys and values are rows of one or several projections, and the projection after them reads the values'
channels. The rules say which of these go together (`oicsr.rules.products`). Whether the code lets them go is found
here, for all attentions of one class and shape at once, in this order:

| mode     | what goes                                                                                   |
|----------|---------------------------------------------------------------------------------------------|
| `"free"` | channels of the queries and keys, and channels of the values, in different numbers          |
| `"tied"` | a channel of the queries and keys with one of the values: the code has one width for both   |
| `"head"` | heads                                                                                       |
| `"both"` | a head of the queries and keys with one of the values, where layers mix heads between them  |
| `"part"` | channels of the queries and keys alone, or of the values alone: the others' width is fixed  |
| `"none"` | nothing: the code holds a width as a number                                                 |
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, fx, nn

from oicsr.changes import whole_numbers
from oicsr.coupling import Coupling, Rescaled
from oicsr.names import first_names
from oicsr.networks.inputs import Inputs
from oicsr.opened.code import freed
from oicsr.proving.proof import prove
from oicsr.proving.repair import Number, Repair, ShapeBench, find_repair, is_sum
from oicsr.rules import Product, Tracer
from oicsr.rules.calls import argument, module_path, operator_name, source_of
from oicsr.rules.collect import ChannelIndex
from oicsr.rules.names import SUMMED_PRODUCTS
from oicsr.rules.products import ATTENTIONS
from oicsr.tracing.numbers import follow_counts, follow_norms, note_parts, owner_of
from oicsr.tracing.queries import feeds_only, rescaled_rows

Granularity = Literal["channel", "head"]
NEXT = {"free": "tied", "tied": "head", "head": "both", "both": "none", "part": "none"}
NOT_ZERO = "channels of zeros add something to what comes out (the feature map of a linear attention makes them so)"
ALSO_UNSCALED = "its scale is computed from the width, but the queries also enter a product that is not scaled"
CUTTING = ("view", "reshape", "unflatten", "split", "chunk", "expand", "repeat", "select", "slice", "narrow", "index")


def settle_products(tracer: Tracer, attentions: Attentions) -> None:
    """Tie channels (or heads) of queries and keys to those of values where a module's mode says so, or fix them.

    Args:
        tracer: After it ran over the graphs.
        attentions: What is known of the attentions.
    """
    refusals, parts = attentions.refusals, attentions.parts
    for cut in tracer.cuts:
        reason = attentions.uncut.get(module_path(cut.node))
        for piece in cut.pieces if reason else ():
            tracer.sets.fix(piece, tracer.notable(reason or ""))
    for path, products in _by_module(tracer.products).items():
        mode = tracer.modes.get(path)
        if mode == "none":
            for product in products:
                tracer.sets.fix(product.labels, tracer.notable(refusals[path]))
        elif mode == "part":
            for product in products:
                for kind, own in product.sets:
                    if kind not in (parts[path], "pair"):
                        tracer.sets.fix(own, tracer.notable(refusals[path]))
        elif mode in ("tied", "both"):
            both = [[p.channels, p.passed] if mode == "tied" else [p.heads] for p in products]
            vectors = [vector for found in both for vector in found if vector is not None]
            for vector in vectors[1:]:
                _join_alike(tracer, vectors[0], vector)


def _join_alike(tracer: Tracer, first: Tensor, second: Tensor) -> None:
    """Tie channels of two widths, where these are one number, or are so without slices that stay (ones put behind)."""
    if first.shape != second.shape:
        first, second = (vector[~tracer.sets.stays(vector)] for vector in (first, second))
    if first.shape == second.shape:
        tracer.sets.join(first, second)


def _by_module(products: Iterable[Product]) -> dict[str, list[Product]]:
    found: dict[str, list[Product]] = defaultdict(list)
    for product in products:
        if len(product.labels):
            found[module_path(product.node)].append(product)
    return found


@dataclass(frozen=True)
class Site:
    """An attention: the products of one module, and the couplings whose channels take part in them or are cut there.

    A module that only cuts its channels into unequal pieces is one without products.

    `parts` is how many sets of channels go by themselves: those of queries and keys, and those of values. `head_sets`
    is the same of heads: those of queries and keys are others than those of values where a layer mixes heads.
    """

    path: str
    products: tuple[Product, ...]
    couplings: tuple[Coupling, ...]
    mode: str
    parts: int
    head_sets: int

    def key(self, modules: Mapping[str, nn.Module]) -> tuple[object, ...]:
        """Return what the attentions that are tried together have in common, their own widths included.

        Feature maps tell whether channels go in a linear one: attentions of one class may have several.
        """
        module, sizes = modules[self.path], tuple((c.num_channels, c.kind) for c in self.couplings)
        widths = [
            (name, value)
            for name, value in whole_numbers(module)
            if any(value >= count and value % count == 0 for count, _ in sizes)
        ]
        return type(module), self.mode, sizes, tuple(sorted(widths)), self._operators()

    def _operators(self) -> tuple[str, ...]:
        """Return the operators that are called within a linear attention; none of any other."""
        linear = next((product.node.graph for product in self.products if product.passed is not None), None)
        calls = (node for node in linear.nodes if node.op == "call_function") if linear is not None else ()
        inside = f"{self.path}." if self.path else ""
        return tuple(operator_name(node) for node in calls if f"{module_path(node)}.".startswith(inside))


class Attentions:
    """The attentions of a network: which modes were tried, and what is known of their couplings.

    Attributes:
        modes: Module to mode.
        refusals: Module to the reason why nothing of its attention goes, or nothing of a part of it.
        parts: Module to the kind of the products (`"scores"`, `"values"`) whose channels can go though others cannot.
        uncut: Module to the reason why the pieces of what it cuts stay.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, granularity: Granularity) -> None:
        self.modes: dict[str, str] = {}
        self.refusals: dict[str, str] = {}
        self.parts: dict[str, str] = {}
        self.uncut: dict[str, str] = {}
        self._model = model
        self._first_names = first_names(model.named_modules(remove_duplicate=False))
        self._inputs = inputs
        self._granularity = granularity
        self._bench: ShapeBench | None = None
        self._known: dict[tuple[object, ...], Repair] = {}
        self._known_rows: dict[fx.Node, tuple[Rescaled, ...]] = {}

    def complete(
        self, tracer: Tracer, index: ChannelIndex, couplings: Sequence[Coupling], graph: fx.Graph
    ) -> list[Coupling] | None:
        """Return the couplings with what attention needs; None where other modes are to be traced, now in `modes`."""
        found = follow_counts(tracer, index, {c.name: c for c in note_products(tracer, index, couplings)})
        sites = self._sites(tracer, index, found)
        again = False
        groups: dict[tuple[object, ...], list[Site]] = defaultdict(list)
        for site in sites:
            if site.mode in ("free", "tied") and _may_have_heads(index, site):
                self.modes[site.path] = "head"
                again = True
            elif site.couplings:
                groups[site.key(tracer.modules or {})].append(site)
        _, wrong = follow_norms(tracer, index, found)  # what it finds is made once the numbers are known
        self.modes |= dict.fromkeys(wrong, "none")
        again |= bool(wrong)
        paths = _paths(tracer, index, graph) if groups else {}
        for key, group in groups.items():
            completed = self._try(tracer, index, key, group, paths)
            if completed is None:
                again = True
            else:
                found |= completed
        found, _ = follow_norms(tracer, index, found)
        found = note_parts(tracer, index, found, graph)
        return None if again else [found[coupling.name] for coupling in couplings]

    def _sites(self, tracer: Tracer, index: ChannelIndex, couplings: Mapping[str, Coupling]) -> list[Site]:
        start = "free" if self._granularity == "channel" else "head"
        products, pieces = _by_module(tracer.products), defaultdict[str, list[Tensor]](list)
        for cut in tracer.cuts:
            pieces[module_path(cut.node)] += () if cut.listed else cut.pieces
        found = []
        for path in dict.fromkeys([*products, *pieces]):
            mode = self.modes.get(path, start)
            own = products[path] if mode != "none" else []
            labels = [*(product.labels for product in own), *(pieces[path] if path not in self.uncut else [])]
            if labels:
                names = _owners(index, labels)
                within = tuple(couplings[name] for name in names if name in couplings)
                parts = _distinct(index, [vector for p in own for _, vector in p.sets])
                heads = _distinct(index, [p.heads for p in own])
                found.append(Site(path, tuple(own), within, mode, parts, heads))
        return found

    def _try(
        self,
        tracer: Tracer,
        index: ChannelIndex,
        key: tuple[object, ...],
        group: Sequence[Site],
        paths: Mapping[str, Sequence[str]],
    ) -> dict[str, Coupling] | None:
        """Return the couplings of attentions of one class and shape, or None where they are to be traced otherwise."""
        found: dict[str, Coupling] = {}
        taken: set[Number] = set()
        failure, fit = "", list[int]()
        for position in range(len(group[0].couplings)):
            repair = self._repair(tracer, key, group, position, paths)
            failure = failure or repair.failure
            fit += [] if repair.failure else [position]
            widths = {number for number in repair.numbers if not is_sum(number[2], group[0].couplings[position])}
            if taken & widths:
                failure = failure or "queries and values have one width in the code"
            taken |= widths
            for site in group:
                completed = self._completed(tracer, site, position, repair, paths)
                if completed is None:
                    failure = failure or "its scale is computed from the width, and the queries cannot be rescaled"
                    continue
                found[completed.name] = completed
        if failure:
            fit = [position for position in fit if _kind(index, group[0], group[0].couplings[position])]
            if group[0].mode == "free" and len(fit) == 1 and group[0].parts > 1:
                self.parts |= {s.path: kind for s in group if (kind := _kind(index, s, s.couplings[fit[0]]))}
            self._give_way(group, failure)
            return None
        return found

    def _give_way(self, group: Sequence[Site], failure: str) -> None:
        """Go on to the next mode."""
        for site in group:
            module = self._model.get_submodule(site.path)
            if not site.products:
                self.uncut[site.path] = _refusal(module, site.path, failure, "what is cut into pieces")
                continue
            following = NEXT[site.mode]
            if following == "tied" and site.parts < 2:
                following = "head"
            if following == "both" and site.head_sets < 2:
                following = "none"
            if following == "none" and site.mode in ("head", "both") and site.path in self.parts:
                following = "part"
            self.modes[site.path] = following
            if following in ("part", "none"):
                kinds = {product.kind for product in site.products}
                attends = "pair" in kinds or {"scores", "values"} <= kinds
                whole = "the attention" if attends else "a product of activations"
                what = f"a part of {whole}" if following == "part" else whole
                self.refusals[site.path] = _refusal(module, site.path, failure, what)

    def _repair(
        self,
        tracer: Tracer,
        key: tuple[object, ...],
        group: Sequence[Site],
        position: int,
        paths: Mapping[str, Sequence[str]],
    ) -> Repair:
        known = (*key, tuple(site.path for site in group), position)
        if known not in self._known:
            if self._bench is None:
                self._bench = ShapeBench(self._model, self._inputs)
            if self._bench.whole.failure:
                return Repair(f"it cannot be tried: {self._bench.whole.failure}")
            sites = [(site.couplings[position], self._places(site, position, paths)) for site in group]

            def proven(trial: Sequence[Coupling], power: float, *, tried: bool = False) -> bool:
                """Ask the numeric proof; what cannot be tried passes, unless it must have been `tried`."""
                full = [self._rescaled(tracer, site, c, power) for site, c in zip(group, trial, strict=True)]
                whole = [coupling for coupling in full if coupling is not None]
                if len(whole) < len(full):
                    return False
                proof = prove(self._model, self._inputs, whole)
                return not proof.refuted and (bool(proof.removed) or not tried)

            repair = find_repair(self._bench, sites, proven)
            doubt = "" if repair.failure else _doubt(group, repair.power)
            trial = [self._bench.with_numbers(c, paths, repair.numbers) for c, paths in sites] if doubt else []
            self._known[known] = Repair(doubt) if trial and not proven(trial, repair.power, tried=True) else repair
        return self._known[known]

    def _places(self, site: Site, position: int, paths: Mapping[str, Sequence[str]]) -> list[str]:
        """Return the modules whose numbers may follow a coupling: those on its way, and those within the attention."""
        module = self._model.get_submodule(site.path)
        own = [n for n, m in module.named_modules() if n and not type(m).__module__.startswith("torch.nn.")]
        within = [self._first_names[f"{site.path}.{name}"] for name in own] if site.path else []
        return [*paths[site.couplings[position].name], *within, site.path]

    def _completed(
        self, tracer: Tracer, site: Site, position: int, repair: Repair, paths: Mapping[str, Sequence[str]]
    ) -> Coupling | None:
        coupling = site.couplings[position]
        if self._bench is None or repair.failure:
            return coupling
        completed = self._bench.with_numbers(coupling, self._places(site, position, paths), repair.numbers)
        return self._rescaled(tracer, site, completed, repair.power)

    def _rescaled(self, tracer: Tracer, site: Site, coupling: Coupling, power: float) -> Coupling | None:
        """Let the queries, or else the keys, make up for a scale that changes with the width; None where none can."""
        if power == 0.0:
            return coupling
        rescaled: tuple[Rescaled, ...] = ()
        for product in site.products if not math.isnan(power) else ():
            if product.kind != "scores":
                continue
            rows = self._makes_up(tracer, site, product, -power)
            if rows is None:
                return None
            rescaled += rows
        return replace(coupling, rescaled=tuple(dict.fromkeys(rescaled))) if rescaled else None

    def _makes_up(self, tracer: Tracer, site: Site, product: Product, power: float) -> tuple[Rescaled, ...] | None:
        """Return the rows that make up for a factor of the scores; None where they would change something else too.

        These are the rows of the queries, or else of the keys, unless values are made of them too; those first that go
        nowhere else (queries may be added to what comes out). Where queries and keys are the same rows, each takes half
        of the power.
        """
        factors = sorted(_factors(product.node)[:2], key=lambda node: not feeds_only(node, product.node))
        queries, keys = (self._rows(tracer, node) for node in factors)
        mixed = [node for p in site.products if p.kind in ("values", "pair") for node in _values(p.node)]
        values = _slices(*(self._rows(tracer, node) for node in mixed))
        alike = _slices(queries) == _slices(keys)
        for rows, other in ((queries, keys), (keys, queries)):
            own = _slices(rows)
            if own and own.isdisjoint(values) and (alike or own.isdisjoint(_slices(other))):
                return tuple(replace(entry, power=power / 2 if alike else power) for entry in rows)
        return None

    def _rows(self, tracer: Tracer, node: fx.Node) -> tuple[Rescaled, ...]:
        if node not in self._known_rows:
            self._known_rows[node] = rescaled_rows(tracer.parameters, node, 1.0) or ()
        return self._known_rows[node]


def _slices(*entries: Iterable[Rescaled]) -> set[tuple[str, int]]:
    """Return the slices of parameters that are multiplied."""
    return {(entry.parameter, place) for rows in entries for entry in rows for place in entry.slices}


def _values(node: fx.Node) -> list[fx.Node]:
    """Return what may be the values in a product that mixes them, or in a call that makes a whole attention."""
    return [argument(node, 2)] if operator_name(node) in ATTENTIONS else _factors(node)


def _factors(node: fx.Node) -> list[fx.Node]:
    """Return the two factors of the first product that a call makes."""
    if operator_name(node) == "aten::einsum":
        return list(argument(node, 1))
    if operator_name(node) in SUMMED_PRODUCTS:
        return [argument(node, 1), argument(node, 2)]
    return [source_of(node), argument(node, 1)]


def _doubt(group: Sequence[Site], power: float) -> str:
    """Return why a repair whose shapes fit may not do for attentions; empty where nothing speaks against it."""
    products = [product for site in group for product in site.products]
    if any(product.passed is not None for product in products):
        return NOT_ZERO
    scores = max(sum(product.kind == "scores" for product in site.products) for site in group)
    return ALSO_UNSCALED if power and scores > 1 else ""


def _kind(index: ChannelIndex, site: Site, coupling: Coupling) -> str:
    """Return the kind of the products that hold a coupling's channels; empty where they are of both kinds."""
    sets = [pair for product in site.products for pair in product.sets]
    kinds = {kind for kind, own in sets if kind != "pair" and coupling.name in index.names_of(own)}
    return kinds.pop() if len(kinds) == 1 else ""


def _distinct(index: ChannelIndex, vectors: Iterable[Tensor | None]) -> int:
    """Return how many different sets of channels there are."""
    return len({tuple(index.roots[vector].tolist()) for vector in vectors if vector is not None})


def _may_have_heads(index: ChannelIndex, site: Site) -> bool:
    """Return whether heads may go though channels cannot, or some of them in linear or cross-covariance attention.

    These are rotated, or normalised.
    """
    if not site.couplings:
        return any(product.kind != "plain" for product in site.products)
    stays = [not index.names_of(own) for p in site.products if p.passed is not None for _, own in p.sets]
    others = [p for p in site.products if p.passed is None and p.kind == "scores"]  # of an attention beside it
    return any(stays) and not any(index.names_of(own) for p in others for _, own in p.sets)


def _owners(index: ChannelIndex, labels: Sequence[Tensor]) -> list[str]:
    """Return the names of the couplings that some channels belong to, in the couplings' order."""
    owners = index.owner[index.roots[torch.cat(list(labels)).unique()]]
    return [name for number, name in index.names.items() if bool((owners == number).any())]


def note_products(tracer: Tracer, index: ChannelIndex, couplings: Sequence[Coupling]) -> list[Coupling]:
    """Return the couplings with their kinds, and with the products of activations whose MACs go with their channels."""
    products: dict[str, list[int]] = defaultdict(list)
    heads: set[str] = set()
    for number, product in enumerate(tracer.products):
        vector = product.channels if product.channels is not None else product.heads
        counted = vector is None or product.kind == "weight" or product.passed is not None  # by its parts
        owner = None if vector is None or counted else owner_of(index, vector)
        if owner is not None:
            products[owner].append(number)
            if product.channels is None:
                heads.add(owner)
    return [
        replace(c, kind="head" if c.name in heads else "channel", products=tuple(products[c.name])) for c in couplings
    ]


def _paths(tracer: Tracer, index: ChannelIndex, graph: fx.Graph) -> dict[str, list[str]]:
    """Return for each coupling the modules in which its channels are reshaped, cut or repeated by numbers."""
    calls = [node for node in graph.nodes if node.op == "call_function"]
    cuts = [node for node in calls if operator_name(node).removeprefix("aten::").startswith(CUTTING)]
    return index.paths(tracer, ((n, [module_path(node)]) for node in cuts for n in (node, *node.all_input_nodes)))


def _refusal(module: nn.Module, path: str, failure: str, what: str) -> str:
    name = type(module).__name__
    if isinstance(module, nn.MultiheadAttention):
        return f"the inner width of {path!r} ({name}) is that of its input: oicsr.open_attention(model) sets it free"
    said = f"{what} in {path or '(root)'!r} ({name}) stays: {failure}"
    if failure == NOT_ZERO:
        return said
    if freed(module) is not None:
        return f"{said}: oicsr.open_attention(model) sets its widths free"
    return (
        f"{said}; its code holds a width as a number, or "
        "reshapes back to the input's width: write -1 in its place, or keep the width in an attribute of the module"
    )
