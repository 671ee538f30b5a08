"""What a tracer notes on its way through a graph."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, fx

from oicsr.coupling import Side

PASSED = -1  # in the place of an axis of a weight: the channels that its layer passes on, along another axis


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
        kind: `"scores"`: sums over channels (queries and keys). `"values"`: passes those of a factor on. `"pair"`:
            passes those of both factors on, each on an axis of its own (keys by values). `"plain"`: holds none.
            `"weight"`: a layer whose weight is computed.
        labels: All channels of both factors; none of a layer.
        channels: Those that it sums over or passes on, or None where heads alone are left to go. Of a layer, those
            that it produces.
        heads: The heads, where they may go.
        read: Of a layer, the channels that it reads; of a product that passes two sets on, those that it sums over.
        passed: Beside `channels`, those that it passes on, where there are two sets. Of a layer, those that it runs
            over one by one, along another axis.
    """

    node: fx.Node
    kind: str
    labels: Tensor
    channels: Tensor | None
    heads: Tensor | None
    read: Tensor | None = None
    passed: Tensor | None = None

    @property
    def sets(self) -> list[tuple[str, Tensor]]:
        """The sets of channels that are not heads, each with the kind of product that it takes part in."""
        kinds = (self.kind, "pair" if self.kind == "pair" else "values")
        return [(kind, own) for kind, own in zip(kinds, (self.channels, self.passed), strict=True) if own is not None]


@dataclass(frozen=True)
class Passed:
    """A call of a layer that runs over channels one by one, along another axis: it costs as much as there are left.

    Attributes:
        node: The call.
        weight: Name of the layer's weight.
        channels: The channels that it runs over.
    """

    node: fx.Node
    weight: str
    channels: Tensor


@dataclass(frozen=True)
class Norm:
    """A mean over channels: of squares, mostly.

    Attributes:
        module: Where it is taken.
        weight: Name of the parameter that the result is multiplied with.
        channels: The channel of each entry of the weight, or of each value that the mean is taken of.
        eps: Which attribute of the module is added to the mean; empty where none is.
        dim: The axis of the weight along which the channels lie.
        exact: Whether nothing else changes: the mean of a LayerNorm does.
        power: The power of the mean that the values are multiplied with: -0.5 under an RMSNorm.
        eps_power: The power of the mean that `eps` is added to: 0.5 where it is added to the root.
        slices: The entries that are multiplied, where these are not one for each channel.
    """

    module: str
    weight: str
    channels: Tensor
    eps: str = "eps"
    dim: int = 0
    exact: bool = True
    power: float = -0.5
    eps_power: float = 1.0
    slices: tuple[int, ...] | None = None


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


@dataclass(frozen=True)
class Cut:
    """A cut of a channel axis at places that numbers of the module give: into pieces that need not be equal.

    Attributes:
        node: The call.
        pieces: The labels of each piece, in one row.
        listed: Whether the sizes stand in a list of the module, so that it is known already how they follow.
    """

    node: fx.Node
    pieces: tuple[Tensor, ...]
    listed: bool = False


def said_of_constant(held: str) -> str:
    """Return why channels stay that are combined with a tensor in the model's code; `held`: the attribute that it is.

    Example: `"is combined with 'mask', which is no buffer of the model: register it as one, so that it can follow"`.
    """
    if held:
        return f"is combined with {held!r}, which is no buffer of the model: register it as one, so that it can follow"
    return "is combined with a tensor that is a constant of the model's code"
