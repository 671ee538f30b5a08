"""Channel energy: the one primitive that every penalty, importance and selection here is made of."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from oicsr import fused
from oicsr.coupling import SIDES, Coupling, Side
from oicsr.eager import eager
from oicsr.fused import Table, Term

MAX_TABLES = 8  # kept per layout: one per device, type and memory order that the model was seen with
_numbers = itertools.count()
_layouts: WeakValueDictionary[int, Layout] = WeakValueDictionary()
_compiled: dict[int, Layout] = {}  # those that a compiled graph refers to by number; kept alive for its backward


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the energy of every slice goes: worked out once for a list of couplings, used at every step.

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

    def __post_init__(self) -> None:
        _layouts[self.number] = self
        for position, name in enumerate(self.parameters):
            *path, leaf = name.split(".")
            node = self._tree
            for part in path:
                node = node.setdefault(part, {})
            node[leaf] = position

    def __deepcopy__(self, memo: object) -> Layout:
        return self  # nothing in it changes

    def __reduce__(self) -> tuple[Any, ...]:
        return Layout, (self.parameters, self.terms, self.sizes)

    @staticmethod
    def of(couplings: Sequence[Coupling], sides: Sequence[Side]) -> Layout:
        """Work out the layout of `couplings` for some of the sides of each channel.

        Raises:
            ValueError: A side is unknown, or a slice belongs to two channels.
        """
        check_sides(sides)
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

        So a model on another device, of another type, copied or loaded since fits; one wrapped for distributed
        training is looked into.

        Raises:
            ValueError: The model has no parameter of such a name.
        """
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        if not torch.compiler.is_compiling():
            found: dict[int, Tensor] = {}
            if _gather(model, self._tree, found):
                return [found[position] for position in range(len(self.parameters))]
        try:
            return [model.get_parameter(name) for name in self.parameters]
        except AttributeError as error:
            raise ValueError(f"the couplings are not those of this {type(model).__name__}: {error}") from error

    def table(self, weights: Sequence[Tensor]) -> Table:
        """Return how these weights are worked on; made once for their shapes, types, memory orders and device."""
        key = (weights[0].device, *((w.shape, w.stride(), w.dtype) for w in weights))
        table = self._tables.get(key)
        if table is None:
            if len(self._tables) >= MAX_TABLES:
                self._tables.clear()
            table = self._tables[key] = fused.make_table(weights, self.terms, self.channels)
        return table


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


def check_sides(sides: Sequence[str]) -> None:
    """Raise ValueError unless `sides` is a non-empty selection of the three sides."""
    if isinstance(sides, str) or not sides or any(side not in SIDES for side in sides):
        raise ValueError(f"sides is {sides!r}; it must be a non-empty tuple of {', '.join(map(repr, SIDES))}")


def channel_energy(
    model: nn.Module, couplings: Sequence[Coupling], sides: Sequence[Side] = ("out", "in")
) -> list[Tensor]:
    r"""Return the energy of every channel: the summed square of the weights that belong to it.

    .. math:: E_i = \lVert W^l_{i,:} \rVert_2^2 + \lVert W^{l+1}_{:,i} \rVert_2^2

    for a plain pair of layers and both sides (Eq. 8 of Li et al. 2019, as reconstructed in PAPER.md). A depthwise or
    grouped filter counts on the out-side of the channel that it belongs to; one of few wide groups on both sides.

    Args:
        model: The network.
        couplings: Its couplings.
        sides: Which weights count: `"out"` (rows of the producing layers), `"in"` (columns of the reading layers),
            `"norm"` (scales of normalisation layers).

    Returns:
        One tensor `(num_channels,)` per coupling, differentiable with respect to the weights, with a backward of its
        own. Float32, also where weights are of half precision; float64 where a weight is. Where no weight counts, the
        energy is zero.

    Raises:
        ValueError: A side is unknown, or the couplings are not the model's.
    """
    layout = Layout.of(couplings, sides)
    return list(energy_vector(model, layout).split(layout.sizes))


def energy_vector(model: nn.Module, layout: Layout) -> Tensor:
    """Return the energies of all channels of all couplings as one vector, `(channels,)`, differentiable.

    Inside `torch.compile` this is one opaque operator, `oicsr::energy`, forward and backward.
    """
    weights = layout.weights(model)
    if not weights:
        return torch.zeros(layout.channels)
    if torch.compiler.is_compiling():
        exact = torch.float64 if any(w.dtype is torch.float64 for w in weights) else torch.float32
        return _energy_operator(weights, layout.number, layout.channels, exact)  # type: ignore[no-any-return]
    if not torch.is_grad_enabled():  # autograd's own bookkeeping takes longer than the energies of a small network
        plain = [weight.detach() for weight in weights]
        return fused.energies(plain, layout.table(plain))
    return _Energy.apply(layout, *weights)  # type: ignore[no-any-return]


@torch.no_grad()
@eager
def add_energy_gradient(model: nn.Module, layout: Layout, energy_grad: Tensor) -> None:
    r"""Add the gradient of a penalty on energies to `.grad` of the weights, without autograd.

    .. math:: \nabla_w \mathrel{+}= 2 w \Big( \frac{\partial P}{\partial E_{out(w)}}
        + \frac{\partial P}{\partial E_{in(w)}} \Big)

    A weight without `.grad` is given one; a frozen weight is passed over. Nothing is copied to the host.

    Args:
        model: The network.
        layout: The layout that the energies were taken with.
        energy_grad: The derivative of the penalty by each energy, `(channels,)`.

    Raises:
        ValueError: `energy_grad` has another shape, or the layout is not the model's.
    """
    if energy_grad.shape != (layout.channels,):
        raise ValueError(f"energy_grad has shape {tuple(energy_grad.shape)}; the layout needs ({layout.channels},)")
    parameters = layout.weights(model)
    if not parameters:
        return
    table = layout.table(parameters)
    factors = 2 * energy_grad
    weights = [parameter.detach() for parameter in parameters]  # every operation on a plain tensor is quicker
    targets = [p.grad if p.requires_grad else None for p in parameters]
    fused.add_products_(targets, weights, table, factors)
    missing = [p.requires_grad and p.grad is None for p in parameters]
    if any(missing):
        for parameter, gradient in zip(parameters, fused.products(weights, missing, table, factors), strict=True):
            if gradient is not None:
                parameter.grad = gradient


class _Energy(torch.autograd.Function):
    """Energies of all channels; the gradient of a weight is `2 w (g_out + g_in)`, one scale per slice and side."""

    @staticmethod
    def forward(layout: Layout, *weights: Tensor) -> Tensor:
        """Return the energy of every channel, `(channels,)`."""
        return fused.energies(weights, layout.table(weights))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the weights for the backward pass."""
        ctx.layout = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Map the gradient of the energies, `(channels,)`, to one of each weight's shape."""
        weights = ctx.saved_tensors
        table = ctx.layout.table(weights)
        return (None, *fused.products(weights, ctx.needs_input_grad[1:], table, 2 * grad))


# ----------------------------------------------------------------------------------------------------------------
# the same as an operator that torch.compile does not look into
# ----------------------------------------------------------------------------------------------------------------


def _numbered(number: int) -> Layout:
    """Return a layout by its number."""
    if number not in _compiled:
        _compiled[number] = _layouts[number]
    return _compiled[number]


@torch.library.custom_op("oicsr::energy", mutates_args=())
def _energy_operator(weights: Sequence[Tensor], layout: int, channels: int, dtype: torch.dtype) -> Tensor:
    return fused.energies(weights, _numbered(layout).table(weights)).clone()


@_energy_operator.register_fake
def _(weights: Sequence[Tensor], layout: int, channels: int, dtype: torch.dtype) -> Tensor:
    return weights[0].new_empty(channels, dtype=dtype)


@torch.library.custom_op("oicsr::energy_products", mutates_args=())
def _products_operator(weights: Sequence[Tensor], layout: int, factors: Tensor) -> list[Tensor]:
    found = fused.products(weights, [True] * len(weights), _numbered(layout).table(weights), factors)
    return [product for product in found if product is not None]


@_products_operator.register_fake
def _(weights: Sequence[Tensor], layout: int, factors: Tensor) -> list[Tensor]:
    return [torch.empty_like(weight) for weight in weights]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.layout = inputs[1]
    ctx.save_for_backward(*inputs[0])


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return _products_operator(ctx.saved_tensors, ctx.layout, 2 * grad), None, None, None


_energy_operator.register_autograd(_differentiate, setup_context=_keep)
