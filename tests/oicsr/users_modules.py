"""More networks of the kinds that users bring: modules with more than layers in them, and modules of two names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tests.oicsr.users_networks import CASES as CASES
from tests.oicsr.users_networks import IMAGES, WORDS, built, conv, tail

TOKENS = torch.randn(2, 5, 6)


class _Frozen(dict[str, Any]):
    """A configuration that refuses changes, as that of diffusers does."""

    def clear(self) -> None:
        """Refuse."""
        raise TypeError("frozen")

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Refuse."""
        raise TypeError("frozen")


@built("layers.0.0 layers.1.0", IMAGES)
def a_configuration_that_refuses_changes() -> nn.Module:
    class Configured(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = _Frozen(width=12, depth=2)
            self.layers = nn.Sequential(conv(3, self.config["width"]), conv(12, 8), tail(8))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x)

    return Configured()


class _Heads(nn.Module):
    """Splits channels into heads, whose number it holds."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """Return `(batch, heads, tokens, width)` of `(batch, tokens, channels)`."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class _Attention(nn.Module):
    """Attention over the pixels of images with as many channels as its heads have together, and a skip around it.

    Args:
        width: The number of channels.
        heads: The number of heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inner_dim = width  # nothing reads it
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.split = _Heads(heads)
        self.split_values = self.split  # under a second name

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        q, k = self.split(self.q(tokens)), self.split(self.k(tokens))
        mixed = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ self.split_values(self.v(tokens))
        return x + self.o(mixed.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(x.shape)


class _Checked(nn.Module):
    """A convolution that checks the number of its channels first, as layers of diffusers do."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.conv = nn.Conv2d(channels, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.channels
        return self.conv(x)


@built("0.0 1.q", IMAGES[..., :6, :6])
def an_attention_as_wide_as_its_images() -> nn.Module:
    return nn.Sequential(conv(3, 16), _Attention(16, 2), _Checked(16))


class _Cached(nn.Module):
    """A table of positions, which the first call registers as a buffer."""

    offsets: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offsets", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.offsets is None or self.offsets.shape != x.shape[-1:]:
            self.register_buffer("offsets", torch.arange(x.shape[-1], device=x.device).cos(), persistent=False)
        return x + self.offsets


@built("0.0 2.0", IMAGES)
def a_buffer_that_the_first_call_registers() -> nn.Module:
    return nn.Sequential(conv(3, 12), _Cached(), conv(12, 8), tail(8))


class _Rearranged(nn.Module):
    """Splits channels into heads, by a dictionary of sizes and what is made of it at first, as layers of einops do."""

    def __init__(self, **sizes: int) -> None:
        super().__init__()
        self.sizes = sizes
        self._sizes = tuple(sizes.items())

    def forward(self, x: Tensor) -> Tensor:
        """Return `(batch, heads, tokens, width)` of `(batch, tokens, channels)`."""
        return x.unflatten(-1, (dict(self._sizes)["h"], -1)).transpose(1, 2)


class _Configured(nn.Module):
    """Attention whose widths are in a dictionary, which other modules may share."""

    def __init__(self, width: int, sizes: dict[str, int]) -> None:
        super().__init__()
        self.sizes = sizes
        inner = sizes["heads"] * sizes["head_dim"]
        self.q, self.k, self.v = (nn.Linear(width, inner) for _ in range(3))
        self.o = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.sizes["heads"], self.sizes["head_dim"])).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        mixed = (q @ k.transpose(-1, -2) * self.sizes["head_dim"] ** -0.5).softmax(-1) @ v
        return self.o(mixed.transpose(1, 2).flatten(2))


class _Split(nn.Module):
    """Attention whose heads another module makes."""

    def __init__(self, width: int, heads: nn.Module) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, 16) for _ in range(3))
        self.o = nn.Linear(16, width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.heads(layer(x)) for layer in (self.q, self.k, self.v))
        mixed = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
        return x + self.o(mixed.transpose(1, 2).flatten(2))


@built("0 2 3.q 3.v", TOKENS)
def heads_in_a_dictionary() -> nn.Module:
    heads = _Rearranged(h=4)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 10), _Split(10, heads), nn.Linear(10, 3))


@built("0 2.q 2.o 4.q 4.o", TOKENS)
def widths_in_a_shared_dictionary() -> nn.Module:
    sizes = {"heads": 2, "head_dim": 8}
    parts = nn.Linear(6, 12), nn.ReLU(), _Configured(12, sizes), nn.Identity(), _Configured(12, sizes), nn.Linear(12, 3)
    return nn.Sequential(*parts)


@built("0 1.q 1.v 2.q 2.v", TOKENS)
def two_attentions_with_one_module_for_their_heads() -> nn.Module:
    heads = _Rearranged(h=4)
    return nn.Sequential(nn.Linear(6, 12), _Split(12, heads), _Split(12, heads), nn.Linear(12, 3))


@dataclass(frozen=True)
class _Settings:
    """Settings of a network, as most are written down."""

    width: int = 16
    heads: int = 4
    layers: int = 2

    @property
    def head_width(self) -> int:
        return self.width // self.heads


class _Set(nn.Module):
    """Attention that reads its widths from settings, which all layers share.

    Args:
        width: The number of channels that are read and given.
        settings: The settings.
    """

    def __init__(self, width: int, settings: Any) -> None:
        super().__init__()
        self.settings = settings
        self.q, self.k, self.v = (nn.Linear(width, settings.width) for _ in range(3))
        self.o = nn.Linear(settings.width, width)

    def forward(self, x: Tensor) -> Tensor:
        sizes = (self.settings.heads, -1)
        q, k, v = (layer(x).unflatten(-1, sizes).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = (q @ k.transpose(-1, -2) * self.settings.head_width**-0.5).softmax(-1) @ v
        return self.o(mixed.transpose(1, 2).flatten(2)).relu()


@built("0 1.q 1.v 1.o 2.q 2.v 2.o", TOKENS)
def attentions_that_share_settings() -> nn.Module:
    settings = _Settings()
    return nn.Sequential(nn.Linear(6, 10), _Set(10, settings), _Set(10, settings), nn.Linear(10, 3))


class _Squares(nn.Module):
    """Makes images of tokens, of a number of channels that settings hold."""

    def __init__(self, settings: SimpleNamespace) -> None:
        super().__init__()
        self.settings = settings
        self.a = nn.Linear(6, settings.width * 16)
        self.b = nn.Conv2d(settings.width, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).view(len(x), self.settings.width, 4, 4).relu())


@built("a", torch.randn(3, 6))
def a_view_by_settings() -> nn.Module:
    return _Squares(SimpleNamespace(width=8, depth=8))


class Constrained(nn.Conv2d):
    """A convolution that changes its own weight before it is used."""

    def __init__(self, change: Callable[[Constrained], None], before: int, after: int) -> None:
        super().__init__(before, after, 3, padding=1)
        self.change = change
        self.register_buffer("mask", torch.ones(3, 3).tril())

    def forward(self, x: Tensor) -> Tensor:
        self.change(self)
        return super().forward(x)


def _constrained(change: Callable[[Any], None]) -> nn.Module:
    layers = Constrained(change, 3, 16), nn.BatchNorm2d(16), nn.ReLU(), Constrained(change, 16, 8), nn.ReLU()
    return nn.Sequential(*layers, nn.Conv2d(8, 4, 1))


@built("0 3", IMAGES)
def weights_that_are_masked_in_their_data() -> nn.Module:
    def mask(layer: Any) -> None:
        layer.weight.data *= layer.mask

    return _constrained(mask)


@built("0 3", IMAGES)
def weights_whose_rows_have_a_largest_norm() -> nn.Module:
    def limit(layer: Any) -> None:
        layer.weight.data = torch.renorm(layer.weight.data, 2, 0, maxnorm=0.3)

    return _constrained(limit)


@built("0 2", WORDS)
def words_with_a_largest_norm() -> nn.Module:
    return nn.Sequential(nn.Embedding(20, 8, max_norm=0.5), nn.Tanh(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


class Centred(nn.Module):
    """Activations minus their moving average, in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(6, 16), nn.Linear(16, 3)
        self.register_buffer("average", torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.training:
            self.average.mul_(0.9).add_(x.detach().mean((0, 1)), alpha=0.1)
            x = x - self.average
        last: Tensor = self.o(x.relu())
        return last


@built("a", TOKENS)
def a_buffer_that_is_read_in_training_alone() -> nn.Module:
    return Centred()
