"""Couplings: all layers that share one channel axis, and what each channel owns in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from oicsr.networks.state import indices_on_cpu

Side = Literal["out", "in", "norm"]
SIDES: tuple[Side, ...] = ("out", "in", "norm")
Axis = tuple[str, int]  # a parameter's qualified name and one of its dimensions
Kind = Literal["channel", "head"]
Call = int | tuple[str, int]  # a product by its number, or a weight's name and which of its calls it is, from 0 on


@dataclass(frozen=True, eq=False)
class Member:
    """One axis of one parameter or buffer, and the channel of a coupling that each of its slices belongs to.

    Attributes:
        parameter: Qualified name of the parameter or buffer.
        dim: The axis.
        channels: int64, `(size of the axis,)`: the channel id of each slice; -1 where a slice belongs to another
            coupling (concatenation) or to none. A channel may own many slices (flattening).
        side: `"out"` for the rows of the layer that produces the channel (depthwise and grouped filters included),
            `"in"` for the columns of a layer that reads it, `"norm"` for what a normalisation layer keeps of it.
        counts: Whether the squared values are part of the energy of that side. Biases, shifts and running statistics
            follow their channel through surgery, but carry no energy.
    """

    parameter: str
    dim: int
    channels: Tensor
    side: Side
    counts: bool = True

    def __repr__(self) -> str:
        return f"Member({self.parameter!r}, dim={self.dim}, side={self.side!r}, {len(self.channels):,} slices)"

    @property
    def axis(self) -> Axis:
        """The parameter axis that this member describes."""
        return self.parameter, self.dim


@dataclass(frozen=True)
class Attribute:
    """A number on a module that stands for a width, and follows the number of channels.

    Attributes:
        module: Qualified name of the module; empty for the network itself.
        name: The attribute, such as `num_heads`; with an entry behind it, such as `sizes.1` or `config.heads`, one of a
            list, of a dictionary or of an object that holds settings.
        value: What it is with all channels.
        power: With a share s of the channels left, it is `value * s ** power`: 1 for a width, -1 for the epsilon of a
            mean of squares, -0.5 for one of its root.
        channels: Where it counts some slices only (a piece of a cut): the channel of each of them. It goes down by one
            for each that goes, and `power` has no say.
    """

    module: str
    name: str
    value: float
    power: float = 1
    channels: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Rescaled:
    """Slices of a parameter that are multiplied where channels go, because the code divides by the width.

    Attributes:
        parameter: Qualified name.
        dim: The axis.
        slices: Positions along the axis.
        power: With a share s of the channels left, they are multiplied by `s ** power`: 0.5 for queries, where the
            scale of attention is computed from the width; -0.5 for the weight of an RMSNorm.
    """

    parameter: str
    dim: int
    slices: tuple[int, ...]
    power: float


@dataclass(frozen=True, eq=False)
class Part:
    """Channels that a product of activations or a call of a layer costs as much as, beside the widths of parameters.

    Attributes:
        product: The number of the product, or of the layer whose weight is computed, among those of the network (see
            `oicsr.complexity.Work`). Of a layer whose weight is a parameter, its name and the number of the call.
        dim: Of a layer whose weight is computed, 0 for the axis that starts channels, 1 for the one that reads them. Of
            a product of activations, a number for each of its sets of channels. 2 and more for channels that a layer
            runs over one by one, along another axis.
        channels: int64: the channel id of each slice; -1 where a slice belongs to another coupling or to none.
    """

    product: Call
    dim: int
    channels: Tensor


@dataclass(frozen=True, eq=False)
class Coupling:
    """All layers that share one channel axis.

    Consecutive couplings of a chain overlap: the weight of a layer is on the out-side of the coupling that it
    produces and on the in-side of the one that it reads.

    Attributes:
        name: Qualified name of the first layer that produces the channels.
        num_channels: How many channels there are; ids run from 0 to `num_channels - 1`.
        members: Every parameter axis that the channels own slices of.
        kind: `"channel"`, or `"head"` where each of the channels is a head of attention with all that it holds.
        attributes: Numbers on modules that change with the number of channels.
        rescaled: Slices that are multiplied where channels go.
        products: Which products of activations (of attention) the channels take part in, by the order of their calls:
            each costs as many MACs as there are channels left.
        parts: What the channels own of weights that are computed, and the calls of layers that run over them.
    """

    name: str
    num_channels: int
    members: tuple[Member, ...]
    kind: Kind = "channel"
    attributes: tuple[Attribute, ...] = ()
    rescaled: tuple[Rescaled, ...] = ()
    products: tuple[int, ...] = ()
    parts: tuple[Part, ...] = ()

    def __repr__(self) -> str:
        return f"Coupling({self.name!r}, {self.num_channels:,} {self.kind}s, {len(self.members)} members)"


@indices_on_cpu()
def kept_slices(couplings: Sequence[Coupling], kept: Mapping[str, Sequence[int]]) -> dict[Axis, Tensor]:
    """Return which slices of each parameter axis stay, as bool `(size of the axis,)`.

    Args:
        couplings: The couplings of the model.
        kept: Coupling name to the channel ids that stay; a coupling that is not named keeps every channel.
    """
    slices: dict[Axis, Tensor] = {}
    for coupling in couplings:
        stays = channel_mask(coupling, kept)
        for member in coupling.members:
            slice_stays = (member.channels < 0) | stays[member.channels]
            slices[member.axis] = slices[member.axis] & slice_stays if member.axis in slices else slice_stays
    return slices


@indices_on_cpu()
def kept_parts(couplings: Sequence[Coupling], kept: Mapping[str, Sequence[int]]) -> dict[tuple[Call, int], Tensor]:
    """Return which slices of each axis of a computed weight stay, by the number of its product and the axis."""
    slices: dict[tuple[Call, int], Tensor] = {}
    for coupling in couplings:
        stays = channel_mask(coupling, kept)
        for part in coupling.parts:
            key, own = (part.product, part.dim), (part.channels < 0) | stays[part.channels]
            slices[key] = slices[key] & own if key in slices else own
    return slices


@indices_on_cpu()
def channel_mask(coupling: Coupling, kept: Mapping[str, Sequence[int]]) -> Tensor:
    """Return which channels of a coupling stay, as bool `(num_channels,)`."""
    if coupling.name not in kept:
        return torch.ones(coupling.num_channels, dtype=torch.bool)
    mask = torch.zeros(coupling.num_channels, dtype=torch.bool)
    mask[torch.tensor([int(channel) for channel in kept[coupling.name]], dtype=torch.int64)] = True
    return mask
