"""Widths that are numbers on modules (`num_heads`, `head_dim`): which of them must change where channels go.

Channels are removed from a copy without storage, and the numbers that its modules read are changed, as few as
possible, until the shapes fit. The numeric proof has the last word.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import combinations, product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from oicsr.changes import is_settings, whole_numbers
from oicsr.coupling import Attribute, Coupling
from oicsr.networks.copying import MODEL_ERRORS, copy_model, first_line, hooks_off, line_of, mode, shared
from oicsr.networks.inputs import Inputs, tensors_in
from oicsr.networks.modes import FLEX_ATTENTION, Mode
from oicsr.networks.recurrences import OneStep
from oicsr.plan import PruningPlan
from oicsr.proving.reads import reads_noted
from oicsr.proving.shapes import meta_copy
from oicsr.surgery import apply_plan

MOST_CHANGED = 4  # numbers on the modules of one class that are changed together
MOST_CANDIDATES = 8
MOST_SUMS = 4
ALL_UP_TO = 2  # numbers: every pair is tried, and what makes a difference is tried with one more
TIMES = {"mul", "mul_", "multiply", "__mul__", "__rmul__", "__imul__"}
ADDED = {"addmm", "baddbmm", "addbmm"}
MADE = {"tensor", "as_tensor", "scalar_tensor", "full"}  # of numbers
CONVERTED = {"to", "type_as", "float", "double"}  # to the type of another tensor
OVER = {"div", "div_", "divide", "true_divide", "__truediv__", "__itruediv__"}

SET_BY_SURGERY = (nn.Linear, nn.Embedding, _ConvNd, _NormBase)  # their numbers follow the shapes of their weights

Number = tuple[str, str, int]  # name of a class and of an attribute, and its value
Sites = Sequence[tuple[Coupling, Sequence[str]]]  # a coupling of each attention, and the modules that may hold numbers


@dataclass(frozen=True)
class Run:
    """What came of a forward pass.

    Attributes:
        failure: What went wrong, with the line of code; empty where nothing did.
        shapes: The shapes of the outputs.
        factors: The numbers that activations were multiplied with, in their order.
        calls: How many functions of PyTorch ran: of several that fail, the one that got furthest says what is wrong.
    """

    failure: str = ""
    shapes: tuple[tuple[int, ...], ...] = ()
    factors: tuple[float, ...] = ()
    calls: int = 0


@dataclass(frozen=True)
class Repair:
    """How the code follows a coupling.

    Attributes:
        failure: Why it does not; empty where it does.
        numbers: The attributes that change with the number of channels.
        power: By which power of the share that stays the code's own factors change.
    """

    failure: str = ""
    numbers: tuple[Number, ...] = ()
    power: float = 0.0


class ShapeBench:
    """A network of which copies are cut and run for their shapes: in evaluation mode, and in training mode if asked."""

    def __init__(self, model: nn.Module, inputs: Inputs, *, training: bool = False) -> None:
        self._model = model
        self._modes = (False, True) if training else (False,)
        self._inputs = inputs.map(lambda tensor: tensor.to("meta"))
        self._copy: Callable[[nn.Module], nn.Module] = meta_copy
        self.modules = dict(model.named_modules())
        self._read: set[tuple[str, str]] = set()
        self._runs: dict[tuple[object, ...], Run] = {}
        self.whole = self._dense()
        if self.whole.failure:  # it looks at values: with numbers, then
            self._inputs, self._copy = inputs, lambda network: copy_model(network, shared)
            self.whole = self._dense()

    @property
    def read(self) -> Set[tuple[str, str]]:
        """The attributes that the forward pass reads, by module and name."""
        return self._read

    @property
    def runs(self) -> int:
        """How many different copies were run."""
        return len(self._runs)

    def _dense(self) -> Run:
        self._read.clear()
        twin = self._copy(self._model)
        with reads_noted(twin, self._read):
            return self._run(twin)

    def numbers(self, paths: Iterable[str], coupling: Coupling, *, read: bool, sums: bool) -> set[Number]:
        """Return the whole numbers on some modules that are multiples of a number of channels.

        Args:
            paths: The modules.
            coupling: Whose channels they are.
            read: Only those that the forward reads; otherwise those that it does not.
            sums: Larger ones instead that are no multiples: they may be sums of several widths.
        """
        return {
            (type(self.modules[path]).__name__, name, value)
            for path in paths
            if not isinstance(self.modules[path], SET_BY_SURGERY)
            for name, value in whole_numbers(self.modules[path])
            if value and is_sum(value, coupling) == sums and (value > coupling.num_channels or not sums)
            if self._counts(path, name, read=read)
        }

    def _counts(self, path: str, name: str, *, read: bool) -> bool:
        """Return whether a number is read, or is not (`read`); of those in settings, only what is read counts."""
        holder, *entry = name.split(".")
        if entry and is_settings(vars(self.modules[path])[holder]):
            return read and (path, f"{holder}.{entry[0]}") in self._read
        places = {(path, holder), (path, f"_{holder}")} if entry else {(path, holder)}  # layers of einops read `_sizes`
        return read != places.isdisjoint(self._read)

    def attributes(self, paths: Iterable[str], numbers: Iterable[Number]) -> tuple[Attribute, ...]:
        """Return the attributes of some modules that `numbers` names."""
        wanted = set(numbers)
        return tuple(
            Attribute(path, name, value)
            for path in dict.fromkeys(paths)
            for name, value in whole_numbers(self.modules[path])
            if (type(self.modules[path]).__name__, name, value) in wanted
        )

    def with_numbers(self, coupling: Coupling, paths: Iterable[str], numbers: Iterable[Number]) -> Coupling:
        """Return a coupling with the attributes that `numbers` names beside those that it has.

        Where one is no multiple of the channels, it is a sum that they are part of.
        """
        own = {(attribute.module, attribute.name) for attribute in coupling.attributes}
        more = [a for a in self.attributes(paths, numbers) if (a.module, a.name) not in own]
        parts = tuple(range(coupling.num_channels))
        more = [replace(a, channels=parts) if is_sum(a.value, coupling) else a for a in more]
        return replace(coupling, attributes=(*coupling.attributes, *more))

    def without_one(self, sites: Sites, numbers: Sequence[Number]) -> Run:
        """Run a copy without one channel of each coupling, the attributes changed along; the same is run once."""
        couplings = [self.with_numbers(c, paths, numbers) for c, paths in sites]
        key = identity(couplings)
        if key not in self._runs:
            self._runs[key] = self._without_one(couplings)
        return self._runs[key]

    def _without_one(self, couplings: Sequence[Coupling]) -> Run:
        kept = {c.name: range(c.num_channels - 1) for c in couplings}
        twin = self._copy(self._model)
        try:
            apply_plan(twin, PruningPlan.from_kept(couplings, kept))
        except MODEL_ERRORS as error:  # a parametrization may fail without channels
            return Run(first_line(error))
        return self._run(twin)

    def _run(self, twin: nn.Module) -> Run:
        factors = _Factors(shapes_only=self._copy is meta_copy)
        shapes: list[tuple[int, ...]] = []
        for training in self._modes:
            with mode(twin, training=training), hooks_off(twin), torch.no_grad(), factors, OneStep():
                try:
                    outputs = self._inputs.call(twin)
                except MODEL_ERRORS as error:
                    return Run(f"{line_of(error) or 'a line of the code'} ({first_line(error)})", calls=factors.calls)
            shapes += [tuple(tensor.shape) for tensor in tensors_in(outputs)]
        return Run("", tuple(shapes), tuple(factors.found), factors.calls)


def is_sum(number: float, coupling: Coupling) -> bool:
    """Return whether a number that follows a coupling is a sum that its channels are part of, and no multiple."""
    return bool(number % coupling.num_channels)


def identity(couplings: Sequence[Coupling]) -> tuple[object, ...]:
    """Return what tells couplings from others of the network: names, kinds, slices and numbers."""
    return tuple(
        (c.name, c.kind, tuple((*m.axis, *m.channels.tolist()) for m in c.members), frozenset(c.attributes), c.rescaled)
        for c in couplings
    )


def find_repair(
    bench: ShapeBench, sites: Sites, prove: Callable[[Sequence[Coupling], float], bool], *, unread: bool = True
) -> Repair:
    """Find the attributes that must change for a coupling of each of several attentions of one class.

    Args:
        bench: The network.
        sites: The couplings, and for each the modules whose attributes may stand for its width.
        prove: Whether couplings with their attributes pass the numeric proof, where the code's own factors change by
            some power of the share that stays; asked where shapes alone do not tell.
        unread: Whether numbers that the code does not read change too, where their names say that they are the width of
            an attention or its number of heads.

    Returns:
        The first repair that shapes alone or the proof confirm; otherwise the last one, or what stands in the way.
    """
    for repair, sure in fitting_repairs(bench, sites, unread=unread):
        if sure or prove([bench.with_numbers(c, paths, repair.numbers) for c, paths in sites], repair.power):
            break
    return repair


def fitting_repairs(bench: ShapeBench, sites: Sites, *, unread: bool = True) -> Iterator[tuple[Repair, bool]]:
    """Yield repairs with which the shapes fit, few numbers first, and whether shapes alone tell that they are right.

    Where none fits, one is yielded that says what stands in the way.
    """
    candidates = _common(bench, sites, read=True)[:MOST_CANDIDATES]
    furthest, fits = Run(), False
    runs: dict[tuple[Number, ...], Run] = {}
    for count in range(min(len(candidates), MOST_CHANGED) + 1):
        fitting: list[tuple[tuple[Number, ...], Run]] = []
        for numbers in combinations(candidates, count):
            if count > ALL_UP_TO and not any(_matters(some, runs) for some in combinations(numbers, count - 1)):
                continue
            run = runs[numbers] = bench.without_one(sites, numbers)
            if not run.failure and run.shapes == bench.whole.shapes:
                fitting.append((numbers, run))
            elif run.calls >= furthest.calls:
                furthest = run
        for numbers, run in fitting:
            completed, run = _completed(bench, sites, numbers, run, candidates) if unread else (numbers, run)
            powers = _powers(bench.whole, run, sites)
            for repair in [Repair("", completed, power) for power in powers]:
                fits = True
                yield repair, len(fitting) == len(powers) == 1 and not _is_doubtful(repair, sites, candidates)
    if not fits:
        for repair in _with_a_sum(bench, sites, candidates):
            fits = True
            yield repair, False
    if not fits:
        yield Repair(furthest.failure or "the shape of an output changes"), True


def _with_a_sum(bench: ShapeBench, sites: Sites, candidates: Sequence[Number]) -> Iterator[Repair]:
    """Yield repairs with which the shapes fit: a number that is a sum of several widths (`a + b`), with one more."""
    heads = any(coupling.kind == "head" for coupling, _ in sites)
    sums = [] if heads else _common(bench, sites, read=True, sums=True)[:MOST_SUMS]
    for others, own in product([(), *((number,) for number in candidates)], sums):
        numbers = (*others, own)
        run = bench.without_one(sites, numbers)
        if not run.failure and run.shapes == bench.whole.shapes:
            yield from (Repair("", numbers, power) for power in _powers(bench.whole, run, sites))


def _matters(numbers: tuple[Number, ...], runs: Mapping[tuple[Number, ...], Run]) -> bool:
    """Return whether a run with some numbers changed ended otherwise than any with one of them less."""
    fewer = [runs.get(some) for some in combinations(numbers, len(numbers) - 1)]
    return numbers in runs and runs[numbers] not in fewer


def _is_doubtful(repair: Repair, sites: Sites, candidates: Sequence[Number]) -> bool:
    """Return whether a repair whose shapes fit may yet cut the channels elsewhere.

    Pieces may have become fewer instead of thinner, or the other way round, unless a number says by its name which it
    is; and a scale follows the width of a head, not how many there are.
    """
    heads = {coupling.kind for coupling, _ in sites} == {"head"}
    odd = repair.power != 0.0 if heads else math.isnan(repair.power)
    named = any(_says_width(name, heads=heads) for _, name, _ in repair.numbers)
    return odd or (bool(candidates) and not named)


def _common(bench: ShapeBench, sites: Sites, *, read: bool, sums: bool = False) -> list[Number]:
    """Return the numbers that may stand for the width at every site."""
    found = [bench.numbers(paths, coupling, read=read, sums=sums) for coupling, paths in sites]
    return sorted(set.intersection(*found), key=lambda number: ("." in number[1], number))


def _completed(
    bench: ShapeBench, sites: Sites, numbers: tuple[Number, ...], run: Run, candidates: Sequence[Number]
) -> tuple[tuple[Number, ...], Run]:
    """Add the attributes that say the width by their names, though the shapes fit without: who reads them is right.

    Returns:
        All attributes, and the run with them: where the width of a head is left to the code, as in
        `unflatten(-1, (num_heads, -1))`, its scale depends on the number of heads.
    """
    heads = {coupling.kind for coupling, _ in sites} == {"head"}
    every = [*candidates, *_common(bench, sites, read=False)]
    named = [number for number in every if number not in numbers and _says_width(number[1], heads=heads)]
    longer = bench.without_one(sites, (*numbers, *named)) if len(named) > 1 else Run("not tried")
    if not longer.failure and longer.shapes == bench.whole.shapes:  # heads of queries and of keys, in one
        return (*numbers, *named), longer
    for number in named:
        longer = bench.without_one(sites, (*numbers, number))
        if not longer.failure and longer.shapes == bench.whole.shapes:
            numbers, run = (*numbers, number), longer
    return numbers, run


def _says_width(name: str, *, heads: bool) -> bool:
    name = name.rpartition(".")[2]
    per_head = name in {"head_dim", "dim_head", "d_head", "head_size", "head_width", "attention_head_size"}
    number = "heads" in name or name in {"n_head", "num_head"}
    both = name in {"attn_dim", "inner_dim", "all_head_size", "inner_size"}
    return both or (number if heads else per_head)


def _powers(whole: Run, run: Run, sites: Sites) -> list[float]:
    """Return by which powers of the share that stays the factors in the code may change, to a quarter; 0 where none do.

    First all factors of an attention together, then each by itself: one that runs several times has several of each.
    """
    if len(whole.factors) != len(run.factors):
        return [math.nan]
    changes = [math.log(b / a) for a, b in zip(whole.factors, run.factors, strict=True) if a != b and a * b > 0]
    shares = sum(math.log((c.num_channels - 1) / c.num_channels) for c, _ in sites)
    times = max(1, len(changes) // len(sites))
    power = sum(changes) / shares if changes else 0.0
    fitting = [p for n in dict.fromkeys((1, times)) if abs(4 * (p := power / n) - round(4 * p)) < 1e-3]
    return [round(4 * p) / 4 for p in fitting] or [math.nan]


def changed_powers(whole: Run, run: Run, coupling: Coupling) -> tuple[float, ...]:
    """Return by which powers of the share that stays a value may be another one, because factors are, to a quarter.

    That of each factor that changes, where all change by one power; that of all factors together. Empty where none
    does; not a number where they change in another way.
    """
    if run.failure or len(whole.factors) != len(run.factors):
        return (math.nan,)
    share = math.log((coupling.num_channels - 1) / coupling.num_channels)
    pairs = zip(whole.factors, run.factors, strict=True)
    changes = [round(math.log(b / a) / share, 3) for a, b in pairs if a != b and a * b > 0]
    if any(abs(power * 4 - round(power * 4)) >= 1e-2 for power in changes):
        return (math.nan,)
    found = (*changes[:1], sum(changes)) if len(set(changes)) == 1 else (sum(changes),)
    return tuple(dict.fromkeys(power for power in found if power))


# ----------------------------------------------------------------------------------------------------------------
# watching a forward pass
# ----------------------------------------------------------------------------------------------------------------


@dataclass
class _Factors(Mode):
    """Note the numbers that activations are multiplied with, the scale of attention among them.

    Attributes:
        found: The numbers, in their order.
        calls: How many functions ran.
        filled: Tensors that the code made of one number each, and of such tensors alone; and the number.
        shapes_only: Whether what depends on inputs and parameters has no numbers, so that others come from the code.
    """

    found: list[float] = field(default_factory=list)
    calls: int = 0
    filled: dict[int, tuple[Tensor, float]] = field(default_factory=dict)
    shapes_only: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.calls += 1
        named = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if func is functional.scaled_dot_product_attention:
            scale = named.get("scale", args[6] if len(args) > 6 else None)
            query = args[0] if args else named["query"]
            self.found.append(query.shape[-1] ** -0.5 if scale is None else float(scale))
        elif func is FLEX_ATTENTION:
            self.found.append(float(args[5]))
        elif name in TIMES | OVER:
            numbers = [number for value in args[:2] if (number := self._number(value))]
            if len(numbers) == 1:
                self.found.append(numbers[0] if name in TIMES else 1 / numbers[0])
        elif name.removesuffix("_") in ADDED and named.get("alpha", 1) != 1:
            self.found.append(float(named["alpha"]))
        result = func(*args, **named)
        if isinstance(result, Tensor) and not result.is_meta:
            self._note(result, name, args)
        return result

    def _note(self, result: Tensor, name: str, args: Sequence[Any]) -> None:
        """Keep the number that a call makes of numbers, or of tensors of one."""
        sources = [value for value in args[: 1 if name in CONVERTED else None] if isinstance(value, Tensor)]
        made = name in MADE if not sources else all(id(source) in self.filled for source in sources)
        if made and result.numel() == 1 and not result.is_complex():
            self.filled[id(result)] = result, float(result)
        else:
            self.filled.pop(id(result), None)  # it was written over

    def _number(self, value: object) -> float | None:
        """Return the number that a factor is, be it one or a tensor of one."""
        if isinstance(value, Tensor):
            if self.shapes_only and not (value.ndim or value.is_meta or value.is_complex()):
                return float(value)
            return self.filled[id(value)][1] if id(value) in self.filled else None
        return float(value) if isinstance(value, int | float) else None
