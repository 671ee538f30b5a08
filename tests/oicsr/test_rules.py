"""Rules of single operators: removed channels of zeros leave the outputs unchanged; what is left is named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import oicsr
from tests.oicsr.networks import check_every_channel


class Between(nn.Module):
    """An operator between two convolutions, and one that comes after; `width`: the channels that it gives."""

    def __init__(self, operator: Callable[[Tensor], Tensor], width: int = 8, rank: int = 2) -> None:
        super().__init__()
        conv: type[nn.Module] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
        self.one, self.two, self.three = conv(3, 16, 1), conv(width, 5, 1), conv(5, 2, 1)
        self.operator = operator  # registered, and called `operator`, where it is a module

    def forward(self, x: Tensor) -> Tensor:
        return self.three(torch.relu(self.two(self.operator(self.one(x)))))


def inputs(rank: int = 2, batch: int = 2, size: int = 4) -> Tensor:
    return torch.randn(batch, 3, *[size] * rank)


def by_hand_shuffle(x: Tensor, factor: int = 2) -> Tensor:
    batch, width, height, length = x.shape
    x = x.view(batch, width // factor**2, factor, factor, height, length).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(batch, width // factor**2, height * factor, length * factor)


def by_hand_unshuffle(x: Tensor, factor: int = 2) -> Tensor:
    batch, width, height, length = x.shape
    x = x.view(batch, width, height // factor, factor, length // factor, factor).permute(0, 1, 3, 5, 2, 4)
    return x.reshape(batch, width * factor**2, height // factor, length // factor)


def by_hand_channel_shuffle(x: Tensor) -> Tensor:
    batch, width, *places = x.shape
    return x.view(batch, 2, width // 2, *places).transpose(1, 2).reshape(batch, width, *places)


def open_shuffle(x: Tensor) -> Tensor:
    return x.unflatten(1, (-1, 4)).transpose(1, 2).reshape(x.shape)


def unpool(x: Tensor) -> Tensor:
    small, places = functional.max_pool2d(x, 2, return_indices=True)
    return functional.max_unpool2d(torch.sigmoid(small), places, 2)


def sampled(x: Tensor) -> Tensor:
    grid = functional.affine_grid(torch.eye(2, 3, dtype=x.dtype).expand(len(x), 2, 3), [len(x), 1, 4, 4], False)
    return functional.grid_sample(x, grid, align_corners=False)


def sorted_rows(x: Tensor) -> Tensor:
    values, places = x.sort(dim=2)
    return values + 0.1 * places


def strongest(x: Tensor) -> Tensor:
    values, places = x.flatten(2).topk(3, dim=2)
    return (values + 0.1 * places).unsqueeze(3)


def patches(x: Tensor) -> Tensor:
    return functional.fold(torch.tanh(functional.unfold(x, 3, padding=1)), 4, 3, padding=1)


def group_means(x: Tensor, width: int) -> Tensor:
    groups = x.view(len(x), -1, width, *x.shape[2:])
    return torch.tanh(groups.mean(2, keepdim=True).expand(groups.shape)).reshape(x.shape)


SINGLE_INPUT: dict[str, tuple[Callable[[Tensor], Tensor], int, int, int]] = {
    # the operator, the channels that it gives, the rank of the input, the channels that can go
    "PixelShuffle": (nn.PixelShuffle(2), 4, 2, 4),
    "PixelUnshuffle": (nn.PixelUnshuffle(2), 64, 2, 16),
    "ChannelShuffle": (nn.ChannelShuffle(2), 16, 2, 8),
    "pixel shuffle by hand": (by_hand_shuffle, 4, 2, 4),
    "pixel unshuffle by hand": (by_hand_unshuffle, 64, 2, 16),
    "channel shuffle by hand": (by_hand_channel_shuffle, 16, 2, 8),
    "shuffled twice": (lambda x: by_hand_channel_shuffle(torch.relu(by_hand_channel_shuffle(x))), 16, 2, 4),
    "shuffle by an open width": (open_shuffle, 16, 2, 4),
    "nearest 1-D": (nn.Upsample(scale_factor=2), 16, 1, 16),
    "linear 1-D": (nn.Upsample(scale_factor=2, mode="linear"), 16, 1, 16),
    "nearest 3-D": (nn.Upsample(scale_factor=2), 16, 3, 16),
    "trilinear 3-D": (nn.Upsample(scale_factor=2, mode="trilinear"), 16, 3, 16),
    "nearest-exact 2-D": (nn.Upsample(scale_factor=2, mode="nearest-exact"), 16, 2, 16),
    "bicubic 2-D, antialiased": (
        lambda x: functional.interpolate(x, 3, mode="bicubic", antialias=True), 16, 2, 16
    ),
    "reflection 1-D": (nn.ReflectionPad1d(1), 16, 1, 16),
    "replication 3-D": (nn.ReplicationPad3d(1), 16, 3, 16),
    "circular 2-D": (nn.CircularPad2d(1), 16, 2, 16),
    "max pool 3-D": (nn.MaxPool3d(2), 16, 3, 16),
    "adaptive max pool 1-D": (nn.AdaptiveMaxPool1d(2), 16, 1, 16),
    "GLU": (nn.GLU(1), 8, 2, 8),
    "GLU on the last axis": (lambda x: functional.glu(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), 8, 2, 8),
    "GLU along a spatial axis": (nn.GLU(2), 16, 2, 16),
    "where": (lambda x: torch.where(x > 0, x, 0.1 * x), 16, 2, 16),
    "where of a number": (lambda x: torch.where(x > 0, x, 2.0), 16, 2, 16),
    "masked_fill": (lambda x: x.masked_fill(x < 0, 0.5), 16, 2, 16),
    "masked_fill_": (lambda x: (2 * x).masked_fill_(x < 0, 0.5), 16, 2, 16),
    "lerp": (lambda x: torch.lerp(x, torch.tanh(x), 0.3), 16, 2, 16),
    "lerp by a tensor": (lambda x: torch.lerp(x, torch.tanh(x), torch.sigmoid(x.mean((2, 3), True))), 16, 2, 16),
    "addcmul": (lambda x: torch.addcmul(x, torch.tanh(x), x.mean((2, 3), True), value=0.5), 16, 2, 16),
    "addcdiv": (lambda x: torch.addcdiv(x, x, 1 + x.square()), 16, 2, 16),
    "zeros_like": (lambda x: torch.maximum(x, torch.zeros_like(x)), 16, 2, 16),
    "ones_like": (lambda x: x * (torch.ones_like(x) + x), 16, 2, 16),
    "full_like": (lambda x: torch.cat([x, torch.full_like(x, 0.5)], 1), 32, 2, 16),
    "empty_like": (lambda x: torch.empty_like(x).fill_(0.5) + x, 16, 2, 16),
    "rand_like": (lambda x: x + 0 * torch.rand_like(x), 16, 2, 16),
    "flip of the channels": (lambda x: x.flip(1), 16, 2, 16),
    "flip of rows": (lambda x: x + x.flip(2, 3), 16, 2, 16),
    "roll": (lambda x: torch.roll(x, (1, 2), (2, 3)), 16, 2, 16),
    "cumsum": (lambda x: x.cumsum(3), 16, 2, 16),
    "cumprod, cummax": (lambda x: x.cumprod(2) + x.cummax(-1)[0], 16, 2, 16),
    "max over an axis": (lambda x: x.max(3, keepdim=True)[0], 16, 2, 16),
    "min without it": (lambda x: x.min(3)[0].unsqueeze(2), 16, 2, 16),
    "argmax": (lambda x: x * (1 + x.argmax(3, keepdim=True)), 16, 2, 16),
    "max of two": (lambda x: torch.max(x, torch.tanh(x)), 16, 2, 16),
    "logsumexp": (lambda x: x.logsumexp((2, 3), keepdim=True), 16, 2, 16),
    "var_mean": (lambda x: sum(torch.var_mean(x, (2, 3), keepdim=True)), 16, 2, 16),
    "median": (lambda x: x.median(3, keepdim=True)[0], 16, 2, 16),
    "sort": (sorted_rows, 16, 2, 16),
    "topk": (strongest, 16, 2, 16),
    "MaxUnpool": (unpool, 16, 2, 16),
    "grid_sample": (sampled, 16, 2, 16),
    "unfold and fold": (patches, 16, 2, 16),
    "repeat": (lambda x: x.repeat(1, 2, 1, 1), 32, 2, 16),
    "repeat_interleave": (lambda x: x.repeat_interleave(2, 1).repeat_interleave(2, 2), 32, 2, 16),
    "number to the power": (lambda x: 2 ** torch.tanh(x), 16, 2, 16),
    "power of tensors": (lambda x: x.abs() ** torch.tanh(x), 16, 2, 16),
    "clamp by a tensor": (lambda x: x.clamp(min=x.mean((2, 3), True)), 16, 2, 16),
    "comparison": (lambda x: x * (x > x.mean((2, 3), keepdim=True)), 16, 2, 16),
    "index_select": (lambda x: x.index_select(2, torch.tensor([2, 0])), 16, 2, 16),
    "index by a list": (lambda x: x[:, :, [0, 2, 1]], 16, 2, 16),
    "index by two lists": (lambda x: x[:, :, [0, 2], [1, 3]].unsqueeze(3), 16, 2, 16),
    "windows": (lambda x: x.unfold(2, 2, 1).mean(-1), 16, 2, 16),
    "triangle": (torch.tril, 16, 2, 16),
    "copy into halves": (lambda x: torch.empty_like(x).copy_(torch.tanh(x)), 16, 2, 16),
    "mean over groups": (lambda x: x + group_means(x, 4), 16, 2, 4),
}  # fmt: skip


@pytest.mark.parametrize("name", SINGLE_INPUT)
def test_operator_between_layers_is_followed(name: str) -> None:
    torch.manual_seed(0)
    operator, width, rank, channels = SINGLE_INPUT[name]
    model = Between(operator, width, rank)
    assert check_every_channel(model, inputs(rank)) == {"one": channels, "two": 5}


LEFT: dict[str, tuple[Callable[[Tensor], Tensor], int, str]] = {
    "cumsum": (lambda x: x.cumsum(1), 16, r"aten\.cumsum.* runs along the channels"),
    "roll": (lambda x: x.roll(1, 1), 16, r"aten\.roll.* runs along the channels"),
    "roll of everything": (lambda x: x.roll(1), 16, r"aten\.roll.* runs along the channels"),
    "max": (lambda x: x * x.max(1, keepdim=True)[0], 16, r"aten\.max.* reduces over the channels"),
    "max of everything": (lambda x: x / x.max(), 16, r"aten\.max.* reduces over the channels"),
    "argmax": (lambda x: x * x.argmax(1, keepdim=True), 16, r"aten\.argmax.* reduces over the channels"),
    "sort": (lambda x: x.sort(1)[0], 16, r"aten\.sort.* reduces over the channels"),
    "mean": (lambda x: x - x.mean(1, keepdim=True), 16, r"aten\.mean.* reduces over the channels"),
    "constants": (lambda x: x + torch.arange(16.0, dtype=x.dtype).view(-1, 1, 1), 16, r"aten\.arange.* gives numbers"),
    "picked": (lambda x: x + x[:, 3:4], 16, r"aten\.slice.* picks single channels"),
    "picked by a list": (lambda x: x[:, [3, 1, 0, 2]], 4, r"aten\.index.* picks single channels"),
    "picked one": (lambda x: x * x[:, 3].unsqueeze(1), 16, r"aten\.select.* picks single channels"),
    "triangle": (lambda x: x.transpose(1, 3).tril().transpose(1, 3), 16, r"aten\.tril.* triangle"),
    "pool over channels": (
        lambda x: functional.max_pool2d(x.permute(0, 2, 3, 1), 2).permute(0, 3, 1, 2), 8, r"pools over the channels"
    ),
    "pool of vectors": (
        lambda x: functional.avg_pool1d(x.mean((2, 3)), 2)[..., None, None], 8, r"aten\.avg_pool1d.* pools over the ch"
    ),
    "groups in a function": (
        lambda x: functional.group_norm(x, 2), 16, r"aten\.group_norm.* number of groups that is fixed"
    ),
    "LayerNorm": (
        lambda x: functional.layer_norm(x.permute(0, 2, 3, 1), (16,)).permute(0, 3, 1, 2), 16,
        r"aten\.layer_norm.* normalises over the channels",
    ),
    "linear algebra": (lambda x: torch.linalg.qr(x.flatten(2))[0].unsqueeze(3)[:, :, :4], 16, "qr.* has no rule"),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_says_operator_and_module(name: str) -> None:
    operator, width, reason = LEFT[name]
    with pytest.warns(oicsr.UnprunedChannelsWarning, match=reason) as caught:
        couplings = oicsr.find_couplings(Between(operator, width), inputs())
    assert [c.name for c in couplings] == ["two"]
    assert "in module '" in str(caught[0].message)


class Layers(nn.Module):
    """A sequence of layers on `(batch, 3, ...)` inputs; `names` are those whose channels can go."""

    def __init__(self, *layers: nn.Module | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        for position, layer in enumerate(layers):
            setattr(self, f"l{position}", layer)
        self.count = len(layers)

    def forward(self, x: Tensor) -> Tensor:
        for position in range(self.count):
            x = getattr(self, f"l{position}")(x)
        return x


CHAINS: dict[str, tuple[Callable[[], Layers], int, dict[str, int]]] = {
    "depthwise transposed": (
        lambda: Layers(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=8), nn.Conv2d(8, 2, 1)),
        2, {"l0": 8},
    ),
    "depthwise transposed, two filters each, no bias": (
        lambda: Layers(
            nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 16, 3, groups=8, bias=False), nn.BatchNorm2d(16),
            nn.Conv2d(16, 2, 1),
        ),
        2, {"l0": 8},
    ),
    "transposed, many groups": (
        lambda: Layers(nn.Conv2d(3, 12, 1), nn.ConvTranspose2d(12, 18, 2, 2, groups=6), nn.Conv2d(18, 2, 1)),
        2, {"l0": 6},
    ),
    "transposed, few groups": (
        lambda: Layers(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 12, 2, 2, groups=2), nn.Conv2d(12, 2, 1)),
        2, {"l0": 4, "l1": 6},
    ),
    "transposed 1-D, few groups": (
        lambda: Layers(nn.Conv1d(3, 8, 1), nn.ConvTranspose1d(8, 6, 3, groups=2), nn.Conv1d(6, 2, 1)),
        1, {"l0": 4, "l1": 3},
    ),
    "transposed 3-D, depthwise": (
        lambda: Layers(nn.Conv3d(3, 6, 1), nn.ConvTranspose3d(6, 6, 2, groups=6), nn.Conv3d(6, 2, 1)),
        3, {"l0": 6},
    ),
    "generator": (
        lambda: Layers(
            nn.Flatten(), nn.Linear(48, 8 * 16), lambda x: x.view(x.shape[0], -1, 4, 4), nn.BatchNorm2d(8), nn.ReLU(),
            nn.ConvTranspose2d(8, 6, 4, 2, 1), nn.ReLU(), nn.Conv2d(6, 3, 3),
        ),
        2, {"l1": 8, "l5": 6},
    ),
    "generator by unflatten, up-sampled": (
        lambda: Layers(
            nn.Flatten(), nn.Linear(48, 8 * 4), nn.Unflatten(1, (-1, 2, 2)), nn.Upsample(scale_factor=2),
            nn.Conv2d(8, 6, 3), nn.Conv2d(6, 3, 1),
        ),
        2, {"l1": 8, "l4": 6},
    ),
    "generator by places": (
        lambda: Layers(
            nn.Flatten(), nn.Linear(48, 8 * 4), lambda x: x.view(x.shape[0], 4, -1).transpose(1, 2),
            nn.Conv1d(8, 6, 3), nn.Conv1d(6, 3, 1),
        ),
        2, {"l1": 8, "l3": 6},
    ),
    "generator in 1-D": (
        lambda: Layers(
            nn.Flatten(), nn.Linear(12, 8 * 5), lambda x: x.reshape(len(x), x.shape[1] // 5, 5), nn.PReLU(8),
            nn.Conv1d(8, 6, 3), nn.Conv1d(6, 3, 1),
        ),
        1, {"l1": 8, "l4": 6},
    ),
    "without a batch": (
        lambda: Layers(
            lambda x: x[0], nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.ConvTranspose2d(8, 6, 2), nn.Conv2d(6, 2, 1)
        ),
        2, {"l1": 8, "l3": 6},
    ),
    "in rows, then whole": (
        lambda: Layers(
            nn.Conv2d(3, 8, 1), lambda x: x.permute(0, 2, 3, 1).reshape(len(x), -1), nn.Linear(128, 6), nn.Linear(6, 2)
        ),
        2, {"l0": 8, "l2": 6},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_chain_is_pruned_exactly(name: str) -> None:
    torch.manual_seed(0)
    build, rank, widths = CHAINS[name]
    assert check_every_channel(build(), inputs(rank)) == widths


def test_groups_of_a_transposed_convolution_follow() -> None:
    build, _, _ = CHAINS["transposed, many groups"]
    model = build()
    (coupling,) = oicsr.find_couplings(model, inputs())
    small = oicsr.remove_channels(model, oicsr.PruningPlan.from_kept([coupling], {"l0": [0, 2, 5]}))
    layer = small.l1
    assert (layer.groups, layer.in_channels, layer.out_channels) == (3, 6, 9)
    assert tuple(layer.weight.shape) == (6, 3, 2, 2) and len(layer.bias) == 9


class Masks(nn.Module):
    """Takes the tokens that a mask names, of all examples at once."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.hidden, self.out = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.register_buffer("mask", torch.tensor([True, False, True, True]))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x)[self.mask.expand(len(x), 4)]
        return self.out(self.hidden(tokens).relu())  # type: ignore[no-any-return]


def test_channels_pass_a_mask_over_other_axes() -> None:
    model, x = Masks(), torch.randn(2, 4, 4)
    assert [coupling.name for coupling in oicsr.find_couplings(model, x)] == ["embed", "hidden"]
    assert oicsr.prune(model, x, macs_kept=0.5, tolerance=0.05).model(x).shape == (6, 3)


class Samples(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean, self.spread, self.out = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.normal(self.mean(x), self.spread(x).exp()))  # type: ignore[no-any-return]


def test_means_and_deviations_of_what_is_drawn_go_together() -> None:
    trace = oicsr.trace_couplings(Samples(), torch.randn(2, 4))
    assert not trace.untried and len(trace.couplings) == 1
    assert {"mean.weight", "spread.weight"} < {member.parameter for member in trace.couplings[0].members}


def test_a_slice_that_begins_before_the_axis_begins_at_its_start() -> None:
    class Slices(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 16), nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            half = x.shape[1] // 2
            return self.b(x[:, -100:half]) + self.c(x[:, half:])  # type: ignore[no-any-return]

    couplings = oicsr.find_couplings(Slices(), torch.randn(2, 4), scope="all")
    assert {coupling.num_channels for coupling in couplings} <= {8, 16} and couplings
