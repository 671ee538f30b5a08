"""Absorption: what a removed channel adds to the layers that read it, where that is a constant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from oicsr.arguments import check_call, check_plan, check_plan_fits
from oicsr.complexity import CONVOLUTIONS, TRANSPOSED
from oicsr.networks.copying import as_it_was
from oicsr.networks.inputs import ExampleInputs, Inputs, as_inputs
from oicsr.networks.state import indices_on_cpu, one_at_a_time
from oicsr.networks.warned import warn
from oicsr.networks.wrapping import unwrap
from oicsr.normalized import normalized_layers, row_name
from oicsr.plan import PruningPlan

# Normalisations, and at which position they take their scale.
_SCALES: dict[Callable[..., Any], int] = {
    functional.batch_norm: 3,
    torch.batch_norm: 1,
    functional.instance_norm: 3,
    torch.instance_norm: 1,
    functional.group_norm: 2,
    functional.layer_norm: 2,
    functional.rms_norm: 2,
}


class AbsorptionWarning(UserWarning):
    """The constants of some removed channels could not be absorbed, or not exactly."""


@dataclass(frozen=True)
class Absorption:
    """Where the constants of removed channels go.

    Attributes:
        shifts: Name of a bias or running mean to what is added to it, `(rows,)`, before channels are removed.
        approximate: Layer name to why its outputs change although all constants are absorbed.
        left: Layer name to why some constants that it reads are not absorbed.
    """

    shifts: Mapping[str, Tensor] = field(repr=False)
    approximate: Mapping[str, str]
    left: Mapping[str, str]

    def __str__(self) -> str:
        parts = [f"constants absorbed by {len(self.shifts)} biases or running means"]
        parts += [f"{name!r}: {reason}" for name, reason in [*self.approximate.items(), *self.left.items()]]
        return "; ".join(parts)


@torch.no_grad()
@one_at_a_time()
def plan_absorption(model: nn.Module, plan: PruningPlan, example_inputs: ExampleInputs) -> Absorption:
    r"""Find what the channels that a plan removes add to the layers that read them, in evaluation mode.

    A channel whose normalisation has scale zero is constant: its shift, passed through the activation. Network
    Slimming drives scales there. Removing such a channel takes the constant :math:`a_c` away from every layer that
    reads it, unless its sum over the kernel goes into the layer's bias,

    .. math:: b_o \mathrel{+}= \sum_{c\ \text{removed}} a_c \sum_k W_{o,c,k},

    or is taken off the running mean of the BatchNorm that alone reads the layer. That is exact where the scale is zero
    and the layer does not pad with zeros. With zero padding it is exact away from the borders. Where the scale is not
    zero, the channel is replaced by its value at scale zero, which is closer to the original than removing it.

    The constants are observed, not derived: the model runs twice, on the example inputs and on a permutation of them
    with noise, with the scales of the removed channels set to zero, and the input of each layer is compared. So any
    activation, pooling or reshaping in between is covered, and whatever turns out not to be constant is reported.

    Args:
        model: The network that the plan was made for; left as it is.
        plan: Which channels stay.
        example_inputs: The arguments of one forward call (see `find_couplings`).

    Returns:
        The shifts, and where they are approximate or missing. `remove_channels(..., absorb=True)` applies them.
    """
    check_plan(model, plan)
    check_call(model, example_inputs)
    check_plan_fits(unwrap(model), plan)
    removed = {
        (entry.parameter, entry.dim): torch.tensor(sorted({*range(entry.size)}.difference(entry.kept)), device="cpu")
        for entry in plan.slices
    }
    model, inputs = unwrap(model), as_inputs(example_inputs)
    watch = _Watch(model, removed)
    with as_it_was(model), watch:
        inputs.call(model)
        inputs.map(_disturbed).call(model)
    absorbers = _absorbers(model, inputs, watch.readings)
    shifts: dict[str, Tensor] = {}
    approximate: dict[str, str] = {}
    left = _unwatched(model, removed, watch)
    for name, reading in watch.readings.items():
        layer, changing = row_name(name), int((~reading.is_constant()).sum())
        shift = reading.shift(model.get_parameter(name).detach())
        if changing:
            left[layer] = f"reads {changing} removed channels that are not constant"
        if not bool(shift.any()):
            continue
        if name not in absorbers:
            left[layer] = "has neither a bias nor a BatchNorm of its own that could absorb constants"
            continue
        target, sign = absorbers[name]
        shifts[target] = sign * shift
        if reading.padded:
            approximate[layer] = "pads with zeros, so the constants are still missing at the borders"
    return Absorption(shifts, approximate, left)


def absorb_constants(model: nn.Module, plan: PruningPlan, example_inputs: ExampleInputs | None) -> None:
    """Do in place what `plan_absorption` finds, and warn of what is left. The channels are removed afterwards."""
    if example_inputs is None:
        raise ValueError("absorb=True needs example_inputs: the constants are observed in a forward pass")
    absorption = plan_absorption(model, plan, example_inputs)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, shift in absorption.shifts.items():
        tensors[name].data.add_(shift)
    if absorption.approximate or absorption.left:
        warn(str(absorption), AbsorptionWarning)


def _pads(padding: str | int | Sequence[int]) -> bool:
    """Return whether a padding of a convolution adds anything."""
    if isinstance(padding, str):
        return padding == "same"
    return padding != 0 if isinstance(padding, int) else any(padding)


@indices_on_cpu()
def _disturbed(x: Tensor) -> Tensor:
    """Return the same values at other places; larger and with noise unless they are integers."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(x.numel(), generator=generator).to(x.device)
    moved = x.flatten()[order].reshape(x.shape)
    if not x.is_floating_point():
        return moved
    return 2 * moved + torch.randn(x.shape, generator=generator).to(x)


@dataclass
class _Reading:
    """What a layer was seen to read from the channels that are removed.

    Attributes:
        columns: The columns of its weight that are removed.
        groups: Groups of the convolution (1 for a linear layer); every group has these columns.
        low: The smallest value seen of each removed channel, `(groups, columns)`.
        high: The largest.
        tolerance: How far values may lie apart that count as the same.
        padded: Whether zeros were added around the input.
        biases: Names of the biases that it was called with; None stands for none, or for one that is computed.
    """

    columns: Tensor
    groups: int
    low: Tensor
    high: Tensor
    tolerance: float
    padded: bool
    biases: set[str | None]

    @staticmethod
    def of(values: Tensor, columns: Tensor, groups: int, padded: bool, bias: str | None) -> _Reading:
        """Read the input of one call, `(channels, positions)`."""
        values, precision = values.detach(), torch.finfo(values.dtype).eps
        # constants are the same values in half precision too: a tolerance of its rounding would let others pass
        tolerance = 100 * min(precision, torch.finfo(torch.float32).eps) * float(values.abs().max())
        grouped = values.double().unflatten(0, (groups, -1))[:, columns]
        return _Reading(columns, groups, grouped.amin(2), grouped.amax(2), tolerance, padded, {bias})

    def join(self, other: _Reading) -> _Reading:
        """Return what this call and another one of the same layer read."""
        low, high = torch.minimum(self.low, other.low), torch.maximum(self.high, other.high)
        padded, biases = self.padded or other.padded, self.biases | other.biases
        tolerance = max(self.tolerance, other.tolerance)
        return replace(self, low=low, high=high, tolerance=tolerance, padded=padded, biases=biases)

    def is_constant(self) -> Tensor:
        """Return which removed channels always had the same value, bool `(groups, columns)`."""
        return self.high - self.low <= self.tolerance

    def shift(self, weight: Tensor) -> Tensor:
        """Return what the constant channels add to each output channel, `(rows,)`."""
        constants = torch.where(self.is_constant(), (self.low + self.high) / 2, 0.0)
        rows = weight.detach().double()[:, self.columns].reshape(len(weight), len(self.columns), -1).sum(2)
        per_group = rows.unflatten(0, (self.groups, -1))  # (groups, rows / groups, columns)
        return torch.einsum("grc,gc->gr", per_group, constants).flatten()


class _Watch(TorchFunctionMode):
    """Run a network as if the scales of removed channels were zero, and note what its layers read from them."""

    def __init__(self, model: nn.Module, removed: Mapping[tuple[str, int], Tensor]) -> None:
        super().__init__()
        self.readings: dict[str, _Reading] = {}
        self.transposed: set[str] = set()
        self._removed = removed
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _SCALES:
            args, kwargs = self._without_scales(_SCALES[func], args, kwargs)
        elif func in CONVOLUTIONS or func is functional.linear:
            self._read(func is functional.linear, args, kwargs)
        elif func in TRANSPOSED:
            self.transposed.add(self._name(_argument(args, kwargs, 1, "weight")) or "")
        return func(*args, **kwargs)

    def _name(self, tensor: Tensor | None) -> str | None:
        return self._names.get(id(tensor))

    def _without_scales(self, position: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the arguments of a normalisation with the scales of removed channels set to zero."""
        scale = _argument(args, kwargs, position, "weight")
        gone = self._removed.get((self._name(scale) or "", 0))
        if gone is None:
            return args, kwargs
        scale = scale.detach().index_fill(0, gone.to(scale.device), 0)
        if len(args) > position:
            return (*args[:position], scale, *args[position + 1 :]), kwargs
        return args, {**kwargs, "weight": scale}

    def _read(self, linear: bool, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Note the input of a layer that reads removed channels."""
        source, weight = _argument(args, kwargs, 0, "input"), _argument(args, kwargs, 1, "weight")
        name = self._name(weight)
        columns = self._removed.get((name or "", 1))
        if name is None or columns is None:
            return
        axis = -1 if linear else 1 - weight.ndim
        padding = 0 if linear else _argument(args, kwargs, 4, "padding", 0)
        reading = _Reading.of(
            source.movedim(axis, 0).reshape(source.shape[axis], -1),
            columns.to(source.device),
            1 if linear else _argument(args, kwargs, 6, "groups", 1),
            _pads(padding),
            self._name(_argument(args, kwargs, 2, "bias")),
        )
        before = self.readings.get(name)
        self.readings[name] = reading if before is None else before.join(reading)


def _argument(args: Sequence[Any], kwargs: Mapping[str, Any], position: int, name: str, default: Any = None) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)


def _absorbers(model: nn.Module, inputs: Inputs, readings: Mapping[str, _Reading]) -> dict[str, tuple[str, int]]:
    """Return for each layer the bias that can take its constants, or the running mean, and the sign there."""
    absorbers: dict[str, tuple[str, int]] = {}
    users = Counter(bias for reading in readings.values() for bias in reading.biases)
    without = set()
    for name, reading in readings.items():
        (bias, *others) = reading.biases
        if bias is not None and not others and users[bias] == 1:
            absorbers[name] = bias, 1
        elif reading.biases == {None}:
            without.add(name)
    if without:
        layers, _ = normalized_layers(model, inputs)
        absorbers |= {layer.weight: (layer.mean, -1) for layer in layers if layer.weight in without}
    return absorbers


def _unwatched(model: nn.Module, removed: Mapping[tuple[str, int], Tensor], watch: _Watch) -> dict[str, str]:
    """Return the layers that lose columns but were not seen to read them."""
    left: dict[str, str] = {}
    for name, parameter in model.named_parameters():
        if name in watch.transposed and (name, 0) in removed:
            left[row_name(name)] = "is a transposed convolution, whose output need not be constant"
        seen = name in watch.transposed or name in watch.readings
        if (name, 1) in removed and not seen and len(parameter) > 1:  # (1, channels, ...) is an embedding
            left[row_name(name)] = "does not run as a convolution or linear layer in evaluation mode"
    return left
