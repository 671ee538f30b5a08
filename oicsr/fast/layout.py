"""Where the energy of every slice goes: worked out once for a list of couplings, used at every step."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from oicsr.arguments import check_couplings, check_whole, check_width
from oicsr.coupling import SIDES, Coupling, Side
from oicsr.fast.table import Table, make_table
from oicsr.names import named_tensors, whose
from oicsr.networks.state import trainable
from oicsr.networks.wrapping import unwrap
from oicsr.reference import Term

MAX_TABLES = 8  # kept per layout: one per device, type and memory order that the model was seen with
_numbers = itertools.count()
_layouts: WeakValueDictionary[int, Layout] = WeakValueDictionary()
_compiled: dict[int, Layout] = {}  # those that a compiled graph refers to by number; kept alive for its backward


@dataclass(frozen=True, eq=False)
class Layout:
    """Which parameters carry energy, and which channel each of their slices belongs to.

    Attributes:
        parameters: Qualified names of the parameters that carry energy.
        terms: One per parameter axis.
        sizes: Channels per coupling; the energies of all couplings are one vector of `sum(sizes)`.
        number: Identifies the layout within this process.
    """

    parameters: tuple[str, ...]
    terms: tuple[Term, ...]
    sizes: tuple[int, ...]
    number: int = field(default_factory=lambda: next(_numbers), init=False, repr=False)
    _tree: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    _tables: dict[object, Table] = field(default_factory=dict, init=False, repr=False)
    _widths: list[list[tuple[int, int]]] = field(default_factory=list, init=False, repr=False)
    _fitting: list[list[torch.Size]] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        _layouts[self.number] = self
        for position, name in enumerate(self.parameters):
            *path, leaf = name.split(".")
            node = self._tree
            for part in path:
                node = node.setdefault(part, {})
            node[leaf] = position
            self._widths.append([(t.dim, len(t.channels)) for t in self.terms if t.weight == position])

    def __deepcopy__(self, memo: object) -> Layout:
        return self  # nothing in it changes

    def __reduce__(self) -> tuple[Any, ...]:
        return Layout, (self.parameters, self.terms, self.sizes)

    @staticmethod
    @trainable()
    def of(couplings: Sequence[Coupling], sides: Sequence[Side]) -> Layout:
        """Work out the layout of `couplings` for some of the sides of each channel.

        Raises:
            ValueError: A side is unknown, or a slice belongs to two channels.
        """
        sides = check_sides(sides)
        check_couplings(couplings)
        total = sum(coupling.num_channels for coupling in couplings)
        targets: dict[tuple[str, int], Tensor] = {}
        start = 0
        for coupling in couplings:
            for member in coupling.members:
                if member.counts and member.side in sides:
                    target = targets.setdefault(member.axis, torch.full_like(member.channels, total))
                    own = member.channels >= 0
                    if bool((target[own] != total).any()):
                        raise ValueError(f"axis {member.dim} of {member.parameter!r} is given to two channels at once")
                    target[own] = start + member.channels[own]
            start += coupling.num_channels
        names = tuple(dict.fromkeys(name for name, _ in targets))
        terms = tuple(Term(names.index(name), dim, target) for (name, dim), target in targets.items())
        return Layout(names, terms, tuple(coupling.num_channels for coupling in couplings))

    @property
    def channels(self) -> int:
        """The number of channels of all couplings."""
        return sum(self.sizes)

    def weights(self, model: nn.Module) -> list[Tensor]:
        """Return the parameters, looked up in `model` by name at every call.

        So a model on another device, of another type, copied or loaded since fits; one that is wrapped
        (see `unwrap`) is looked into.

        Raises:
            TypeError: `model` is not a module.
            ValueError: The model has no parameter of such a name, or it has another width: the couplings are those of
                another network, such as the one before its channels were removed.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is a {type(model).__name__}; it must be a torch.nn.Module")
        weights = self._find(unwrap(model))
        if torch.compiler.is_compiling():
            self._check(weights)
            return weights
        check_whole(zip(self.parameters, weights, strict=True))
        shapes = [weight.shape for weight in weights]
        if shapes not in self._fitting:  # the comparison with the last ones seen takes 2 us for 55 weights
            self._check(weights)
            self._fitting[:] = [shapes]
        return weights

    def _find(self, model: nn.Module) -> list[Tensor]:
        """Look the parameters up, without checking them."""
        if not torch.compiler.is_compiling():
            found: dict[int, Tensor] = {}
            if _gather(model, self._tree, found):
                return [found[position] for position in range(len(self.parameters))]
        try:
            return [model.get_parameter(name) for name in self.parameters]
        except AttributeError as error:
            known = named_tensors(model)
            lacking = next((name for name in self.parameters if name not in known), None)
            said = str(error) if lacking is None else f"it has no {lacking!r}{whose(model, lacking)}"
            raise ValueError(f"the couplings are not those of this {type(model).__name__}: {said}") from error

    def _check(self, weights: Sequence[Tensor]) -> None:
        """Raise ValueError where a parameter is not as wide as the couplings say."""
        for name, weight, widths in zip(self.parameters, weights, self._widths, strict=True):
            for dim, width in widths:
                check_width(name, dim, width, weight)

    def table(self, weights: Sequence[Tensor]) -> Table:
        """Return how these weights are worked on; made once for their shapes, types, memory orders and devices.

        Raises:
            ValueError: The weights are not as wide as the couplings say, or are on several devices.
        """
        key = tuple([(w.device, w.shape, w.stride(), w.dtype) for w in weights])
        table = self._tables.get(key)
        if table is None:
            self._check(weights)
            if len(self._tables) >= MAX_TABLES:
                self._tables.clear()
            with trainable():  # it is kept for calls outside inference mode
                table = self._tables[key] = make_table(weights, self.terms, self.channels)
        return table


def numbered(number: int) -> Layout:
    """Return a layout by its number, and keep it for as long as the process runs: a compiled graph refers to it."""
    if number not in _compiled:
        _compiled[number] = _layouts[number]
    return _compiled[number]


def _gather(module: nn.Module, tree: Mapping[str, Any], found: dict[int, Tensor]) -> bool:
    """Collect parameters along a tree of names; return False where one is not where its name says.

    A walk over the modules' own dictionaries: `get_parameter` for each name takes longer than the energies of a small
    network.
    """
    modules, parameters = module._modules, module._parameters
    for name, node in tree.items():
        if isinstance(node, int):
            parameter = parameters.get(name)
            if parameter is None:
                return False
            found[node] = parameter
        else:
            child = modules.get(name)
            if child is None or not _gather(child, node, found):
                return False
    return True


def check_sides(sides: Any) -> tuple[Side, ...]:
    """Return the sides as a tuple.

    Raises:
        TypeError: They are no sequence; a number is taken for a strength in the wrong place.
        ValueError: They are not a non-empty selection of the three sides.
    """
    wanted = f"it must be a non-empty tuple of {', '.join(map(repr, SIDES))}"
    if not isinstance(sides, Iterable) or isinstance(sides, Tensor):
        hint = f"; the strength is an argument of its own, strength={sides!r}" if isinstance(sides, Real) else ""
        raise TypeError(f"sides is {sides!r}, a {type(sides).__name__}; {wanted}{hint}")
    chosen = sides if isinstance(sides, str) else tuple(sides)
    if isinstance(chosen, str) or not chosen or any(side not in SIDES for side in chosen):
        raise ValueError(f"sides is {chosen!r}; {wanted}")
    return chosen
