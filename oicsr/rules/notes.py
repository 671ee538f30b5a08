"""What a tracer notes on its way through a graph."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, fx

from oicsr.coupling import Side


@dataclass(frozen=True)
class Slot:
    """An axis of a parameter or buffer whose slices belong to channels. `counts`: part of the energy of its side."""

    parameter: str
    dim: int
    ids: Tensor  # (size of the axis,)
    side: Side
    counts: bool


@dataclass(frozen=True)
class Product:
    """A product of two activations that channels take part in.

    Attributes:
        node: The call.
        kind: `"scores"`: sums over channels (queries and keys). `"values"`: passes those of a factor on. `"plain"`:
            holds none. `"weight"`: a layer whose weight is computed.
        labels: All channels of both factors; none of a layer.
        channels: Those that it sums over or passes on, or None where heads alone are left to go. Of a layer, those
            that it produces.
        heads: The heads, where they may go.
        read: Of a layer, the channels that it reads.
    """

    node: fx.Node
    kind: str
    labels: Tensor
    channels: Tensor | None
    heads: Tensor | None
    read: Tensor | None = None


@dataclass(frozen=True)
class Norm:
    """An RMSNorm over channels: the module's path, the name of its weight, and the channel of each of its entries."""

    module: str
    weight: str
    channels: Tensor


@dataclass(frozen=True)
class Count:
    """A number on a module that says how many slices there are: of a piece of an axis, or of groups of channels.

    Attributes:
        module: The module's path.
        name: The attribute, with a position behind it (`sizes.1`) where it is an entry of a list.
        labels: The label of each slice that it counts.
    """

    module: str
    name: str
    labels: Tensor
