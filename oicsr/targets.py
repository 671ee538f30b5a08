"""Targets of selection: MACs, parameters or any cost, as functions of the channels that stay."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor, nn

from oicsr.arguments import check_cost, check_fit, check_number
from oicsr.complexity import Work, count_macs, count_work, find_tensor
from oicsr.coupling import Call, Coupling
from oicsr.networks.inputs import ExampleInputs
from oicsr.networks.wrapping import unwrap
from oicsr.plan import PruningPlan
from oicsr.surgery import remove_channels


class Channels:
    """The channels of all couplings as positions in one vector."""

    def __init__(self, couplings: Sequence[Coupling]) -> None:
        self.couplings = tuple(couplings)
        self.starts: list[int] = list(accumulate((c.num_channels for c in couplings), initial=0))

    @property
    def total(self) -> int:
        """The number of channels of all couplings."""
        return self.starts[-1]

    def all_stay(self) -> Tensor:
        """Return that every channel stays, bool `(channels of all couplings,)`."""
        return torch.ones(self.total, dtype=torch.bool, device="cpu")

    def layer_of(self, position: int) -> int:
        """Return the number of the coupling that a channel belongs to."""
        return bisect.bisect_right(self.starts, position) - 1

    def split(self, stays: Tensor) -> dict[str, tuple[int, ...]]:
        """Return the channel ids that stay, by coupling name."""
        parts = stays.split([c.num_channels for c in self.couplings])
        return {c.name: tuple(p.nonzero().flatten().tolist()) for c, p in zip(self.couplings, parts, strict=True)}

    def owners(self) -> dict[tuple[str, int], Tensor]:
        """Return for each pruned axis the position of each slice's channel; `total` where a slice never goes."""
        owners: dict[tuple[str, int], Tensor] = {}
        for start, coupling in zip(self.starts, self.couplings, strict=False):
            for member in coupling.members:
                owner = owners.setdefault(member.axis, torch.full_like(member.channels, self.total))
                owner[member.channels >= 0] = start + member.channels[member.channels >= 0]
        return owners

    def parts(self) -> dict[Call, list[Tensor]]:
        """Return the owners of the slices of each computed weight, and of what other layers run over, axis by axis."""
        owners: dict[tuple[Call, int], Tensor] = {}
        for start, coupling in zip(self.starts, self.couplings, strict=False):
            for part in coupling.parts:
                owner = owners.setdefault((part.product, part.dim), torch.full_like(part.channels, self.total))
                owner[part.channels >= 0] = start + part.channels[part.channels >= 0]
        axes: dict[Call, list[Tensor]] = {}
        for (call, _), owner in owners.items():
            axes.setdefault(call, []).append(owner)
        return axes


class WeightCost:
    """A cost that each element of a weight adds to, so many times: predicted exactly, without surgery.

    How often is a fixed number, but for layers that run over channels one by one, and for products of activations.
    """

    def __init__(
        self,
        channels: Channels,
        model: nn.Module,
        times: Mapping[str, int],
        rest: int = 0,
        products: Sequence[int] = (),
        calls: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        owners, parts = channels.owners(), channels.parts()
        self._products = _products_of(channels, products)
        self._weights: list[tuple[int, int, list[Tensor]]] = []  # whole cost, elements of the axes, owners of slices
        computed = {number: parts[number] for number in range(len(products)) if number in parts}
        for number, axes in computed.items():
            self._add(products[number], axes)
        self._rest = rest + sum(products) - sum(macs for macs, _, _ in self._products)
        self._rest -= sum(products[number] for number in computed)
        for name, count in times.items():
            weight = find_tensor(model, name)
            axes = [owners[name, dim] for dim in range(weight.ndim) if (name, dim) in owners]
            elsewhere = count
            for call, uses in enumerate((calls or {}).get(name, ())):
                if (name, call) in parts:
                    self._add(uses * weight.numel(), [*axes, *parts[name, call]])
                    elsewhere -= uses
            self._add(elsewhere * weight.numel(), axes)

    def _add(self, cost: int, axes: list[Tensor]) -> None:
        self._weights.append((cost, math.prod(len(axis) for axis in axes), axes))

    def __call__(self, stays: Tensor) -> int:
        """Return the cost when `stays`, bool `(channels of all couplings,)`, says which channels remain."""
        padded = torch.cat([stays, stays.new_ones(1)]).long()
        products = sum(macs * int(stays[start:end].sum()) // (end - start) for macs, start, end in self._products)
        return (
            self._rest
            + products
            + sum(cost * math.prod(int(padded[a].sum()) for a in axes) // size for cost, size, axes in self._weights)
        )

    @staticmethod
    def of_macs(channels: Channels, model: nn.Module, work: Work) -> WeightCost:
        """Return the cost in MACs."""
        return WeightCost(channels, model, work.positions, work.others, work.products, work.calls)


def _products_of(channels: Channels, products: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return MACs of products of activations, and the range of the channels that they go down with."""
    return [
        (products[number], start, start + coupling.num_channels)
        for start, coupling in zip(channels.starts, channels.couplings, strict=False)
        for number in coupling.products
        if number < len(products)
    ]


class MacsModel:
    """MACs of a network as a function of the channels that stay.

    Each weight costs its positions times the slices that stay on its pruned axes, and a product of activations or a
    layer that runs over channels one by one as much as channels stay. So the prediction is exact, but where the code
    makes products that the tracer does not see: `select_channels` looks for these, and measures there.
    """

    def __init__(
        self,
        couplings: Sequence[Coupling],
        model: nn.Module,
        example_inputs: ExampleInputs,
    ) -> None:
        model = unwrap(model)
        check_fit(model, couplings)
        self._cost = WeightCost.of_macs(Channels(couplings), model, count_work(model, example_inputs))

    def macs(self, stays: Tensor) -> int:
        """Return the MACs when `stays`, bool `(channels of all couplings,)`, says which channels remain."""
        return self._cost(stays)


class MeasuredCost:
    """A cost that is measured on the pruned network; every measurement is kept."""

    def __init__(self, channels: Channels, model: nn.Module, cost: Callable[[nn.Module], float]) -> None:
        self._channels, self._model, self._cost = channels, model, cost
        self._known: dict[bytes, float] = {}

    def __call__(self, stays: Tensor) -> float:
        """Prune a copy of the model and return its cost.

        Raises:
            TypeError: The cost is not a number.
            ValueError: The cost is negative or not finite.
        """
        key = stays.numpy().tobytes()
        if key not in self._known:
            plan = PruningPlan.from_kept(self._channels.couplings, self._channels.split(stays))
            self._known[key] = measured(self._cost, remove_channels(self._model, plan))
        return self._known[key]

    @staticmethod
    def of_macs(channels: Channels, model: nn.Module, example_inputs: ExampleInputs) -> MeasuredCost:
        """Return the cost in MACs, counted on the pruned network."""
        return MeasuredCost(channels, model, partial(count_macs, example_inputs=example_inputs))


class Cost(Protocol):
    """A function from the channels that stay to a number."""

    def __call__(self, stays: Tensor) -> float:
        """Return the cost when `stays`, bool `(channels of all couplings,)`, says which channels remain."""
        ...


@dataclass(frozen=True)
class Target:
    """What selection aims at.

    Attributes:
        cost: The cost of what stays.
        wanted: The cost that should remain.
        dense: The cost of the model as it is.
        share: The share that was asked for.
        argument: The name of the argument that asked for it.
        unit: How messages call the cost.
        measured: Whether each evaluation prunes and measures a network.
    """

    cost: Cost
    wanted: float
    dense: float
    share: float
    argument: str
    unit: str
    measured: bool = False

    def is_near(self, value: float, tolerance: float) -> bool:
        """Return whether a cost is within a share of the target."""
        return abs(value - self.wanted) <= tolerance * self.wanted


def asked_share(
    macs_kept: float | None,
    params_kept: float | None,
    cost: Callable[[nn.Module], float] | None,
    cost_kept: float | None,
) -> tuple[str, float]:
    """Return the argument that names the target, and the share; half of the MACs where none does.

    Raises:
        TypeError: A share is not a number, or `cost` is not a function.
        ValueError: More than one share is given, a share is not in (0, 1], or only one of `cost` and `cost_kept` is.
    """
    shares = {"macs_kept": macs_kept, "params_kept": params_kept, "cost_kept": cost_kept}
    given = {name: share for name, share in shares.items() if share is not None} or {"macs_kept": 0.5}
    if len(given) > 1:
        raise ValueError(f"there can be one target, not several: {', '.join(f'{k}={v!r}' for k, v in given.items())}")
    if (cost is None) != (cost_kept is None):
        raise ValueError("cost and cost_kept belong together: a function of the model, and the share that remains")
    ((argument, share),) = given.items()
    check_cost(cost)
    if not 0 < check_number(argument, share) <= 1:
        raise ValueError(f"{argument} is {share!r}; it is the share that remains and must be in (0, 1]")
    return argument, share


def measured(cost: Callable[[nn.Module], float], model: nn.Module) -> float:
    """Return what a cost of the caller's says of a model.

    Raises:
        TypeError: That is not a number.
        ValueError: It is negative or not finite.
    """
    value = float(check_number("what cost(model) returns", cost(model)))
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"cost(model) returned {value!r}; it must be finite and not negative")
    return value


def _reference(argument: str) -> str:
    return "dense_macs" if argument == "macs_kept" else "dense_cost"


def make_target(
    channels: Channels,
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    macs_kept: float | None,
    params_kept: float | None,
    cost: Callable[[nn.Module], float] | None,
    cost_kept: float | None,
    reference: float | None,
    measure: bool = False,
) -> Target:
    """Return the target that the arguments of `select_channels` ask for; half of the MACs where they name none.

    With `measure`, MACs are counted on pruned networks, not predicted.

    Raises:
        TypeError: As `asked_share`, or `reference` is not a number.
        ValueError: As `asked_share`, or `reference` is not positive and finite, or the model costs nothing.
    """
    argument, share = asked_share(macs_kept, params_kept, cost, cost_kept)
    if reference is not None and not 0 < check_number(_reference(argument), reference) < math.inf:
        raise ValueError(f"{_reference(argument)} is {reference!r}; it must be positive and finite")
    function: Cost
    if argument == "macs_kept" and measure:
        function, unit = MeasuredCost.of_macs(channels, model, example_inputs), "MACs"
    elif argument == "macs_kept":
        function, unit = WeightCost.of_macs(channels, model, count_work(model, example_inputs)), "MACs"
    elif argument == "params_kept":
        function, unit = WeightCost(channels, model, {name: 1 for name, _ in model.named_parameters()}), "parameters"
    else:
        assert cost is not None
        function, unit = MeasuredCost(channels, model, cost), "units of cost"
    dense = function(channels.all_stay())
    if argument == "macs_kept" and not dense:
        raise ValueError(
            f"no MACs are counted in {type(model).__name__}: it calls no convolution, linear layer or product that "
            "count_macs knows; aim at params_kept, or at a cost of your own"
        )
    if not dense and reference is None:
        raise ValueError(f"{argument} is {share!r}, a share of nothing: the model as it is has 0 {unit}")
    wanted = share * (dense if reference is None else reference)
    return Target(function, wanted, dense, share, argument, unit, measured=measure or cost is not None)
