"""Parameters beside the weights of layers: tables of positions, two roles, factors of parts, buffers as kernels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import oicsr
from tests.oicsr.networks import check_every_channel
from tests.oicsr.test_rules import inputs


class Positions(nn.Module):
    """A table of positions that is added to an activation, in one of several layouts."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.one, self.two, self.fc = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1), nn.Linear(5, 2)
        shapes = {"map": (1, 8, 4, 4), "tokens": (1, 16, 8), "cls": (1, 17, 8), "rows": (8, 4), "few": (1, 8, 2, 2)}
        shapes |= {"place": (1, 1, 4, 4), "buffer": (8, 4, 4), "prompt": (1, 3, 8), "axes": (8, 4, 1)}
        self.table = nn.Parameter(torch.randn(shapes[kind]))
        if kind == "buffer":
            del self.table
            self.register_buffer("table", torch.randn(8, 4, 4))
        if kind == "cls":
            self.cls = nn.Parameter(torch.randn(1, 1, 8))
        if kind == "axes":
            self.other = nn.Parameter(torch.randn(8, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        if self.kind in ("map", "place", "buffer"):
            x = x + self.table
        elif self.kind == "rows":
            x = x * self.table[..., None]
        elif self.kind == "axes":
            x = x + (self.table + self.other)
        elif self.kind == "few":
            x = x + functional.interpolate(self.table, (4, 4), mode="bilinear")
        else:
            tokens = x.flatten(2).transpose(1, 2)
            if self.kind == "cls":
                tokens = torch.cat([self.cls.expand(len(x), -1, -1), tokens], 1)
            elif self.kind == "prompt":
                tokens = torch.cat([self.table.expand(len(x), -1, -1), tokens], 1)
            tokens = tokens if self.kind == "prompt" else tokens + self.table
            x = tokens.transpose(1, 2).unsqueeze(3)
        return self.fc(torch.relu(self.two(x)).mean((2, 3)))


@pytest.mark.parametrize("kind", ["map", "tokens", "cls", "rows", "few", "place", "buffer", "prompt", "axes"])
def test_tables_of_positions_follow_the_channels(kind: str) -> None:
    torch.manual_seed(0)
    assert check_every_channel(Positions(kind), inputs()) == {"one": 8, "two": 5}
    one, _ = oicsr.find_couplings(Positions(kind), inputs())
    axes = {"map": 1, "tokens": 2, "cls": 2, "rows": 0, "few": 1, "buffer": 0, "prompt": 2, "axes": 0}
    members = {member.axis: member.channels.tolist() for member in one.members}
    if kind == "place":
        assert not any(parameter == "table" for parameter, _ in members)
    else:
        assert members["table", axes[kind]] == [*range(8)]


def test_a_large_table_of_positions_follows_too() -> None:
    """More elements than ViT-B's 197 x 768."""

    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.table, self.two = (
                nn.Linear(3, 16),
                nn.Parameter(torch.randn(1, 20_000, 16)),
                nn.Linear(16, 2),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x) + self.table)

    (coupling,) = oicsr.find_couplings(Large(), torch.randn(1, 20_000, 3))
    assert ("table", 2) in {member.axis for member in coupling.members}


class Roles(nn.Module):
    """Parameters that are computed with before a layer takes them, or that are in two roles."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.one, self.norm, self.two, self.fc = (
            nn.Conv2d(3, 8, 1),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 5, 1),
            nn.Linear(5, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        x, norm = self.one(x), self.norm
        if self.kind == "1 + scale":
            x = functional.batch_norm(x, norm.running_mean, norm.running_var, 1 + norm.weight, norm.bias)
        elif self.kind == "exp of scale":
            x = functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight.exp(), -norm.bias)
        elif self.kind == "constant scale":
            x = functional.batch_norm(x, norm.running_mean, norm.running_var, torch.ones(8, dtype=x.dtype), norm.bias)
        elif self.kind == "scale twice":
            x = norm(x) * norm.weight[:, None, None] + norm.bias.view(-1, 1, 1)
        elif self.kind == "norms of filters":
            x = x * self.one.weight.abs().mean((1, 2, 3))[:, None, None]
        elif self.kind == "norms of columns":
            x = x * self.two.weight.abs().mean((0, 2, 3))[:, None, None]
        return self.fc(torch.relu(self.two(x)).mean((2, 3)))


@pytest.mark.parametrize("kind", ["1 + scale", "exp of scale", "scale twice", "norms of filters"])
def test_parameters_in_two_roles_follow_in_both(kind: str) -> None:
    torch.manual_seed(0)
    assert check_every_channel(Roles(kind), inputs()) == {"one": 8, "two": 5}


def test_a_constant_scale_keeps_channels() -> None:
    with pytest.warns(oicsr.UnprunedChannelsWarning, match=r"aten\.ones.* gives numbers"):
        couplings = oicsr.find_couplings(Roles("constant scale"), inputs())
    assert "one" not in {c.name for c in couplings}


@pytest.mark.filterwarnings("ignore::oicsr.UnprunedChannelsWarning")
def test_norms_of_columns_keep_rows_alone() -> None:
    """A mean over the rows of a weight changes with their number; its columns are channels of the layer in front."""
    torch.manual_seed(0)
    assert check_every_channel(Roles("norms of columns"), inputs()) == {"one": 8}
    with pytest.warns(oicsr.UnprunedChannelsWarning, match=r"'two\.weight' is the weight of a layer, and"):
        oicsr.find_couplings(Roles("norms of columns"), inputs())


class Split(nn.Module):
    """A channel axis in two parts that is scaled by groups, or needed along both parts."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.one, self.two, self.fc = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 5, 1), nn.Linear(5, 2)
        self.scale, self.gate, self.part = nn.Parameter(torch.randn(2, 1)), nn.Conv2d(16, 2, 1), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        parts = x.permute(0, 2, 3, 1).unflatten(3, (2, x.shape[1] // 2))
        if self.kind == "scaled":
            parts = parts * self.scale
        elif self.kind == "gated":
            parts = parts * torch.sigmoid(self.gate(x).mean((2, 3)))[:, None, None, :, None]
        elif self.kind == "normalised":
            parts = functional.normalize(parts, dim=4)
        elif self.kind == "both":
            parts = parts - parts.mean(3, keepdim=True) - parts.mean(4, keepdim=True)
        elif self.kind == "layer":
            parts = self.part(parts)
        return self.fc(torch.relu(self.two(parts.flatten(3).permute(0, 3, 1, 2))).mean((2, 3)))


def test_a_factor_for_each_part_stays() -> None:
    torch.manual_seed(0)
    assert check_every_channel(Split("scaled"), inputs()) == {"one": 8, "two": 5}


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("gated", r"aten\.mul.* scales groups of channels"),
        ("normalised", "'one' .*number in the model's code"),
        ("both", r"aten\.mean.* reduces over the channels"),
    ],
)
def test_a_split_that_does_not_fit_is_left(kind: str, reason: str) -> None:
    with pytest.warns(oicsr.UnprunedChannelsWarning, match=reason):
        couplings = oicsr.find_couplings(Split(kind), inputs())
    assert "one" not in {c.name for c in couplings} or kind == "gated"
    assert "gate" not in {c.name for c in couplings}


class Halves(nn.Module):
    """A table of rows and one of columns, each for half of the channels, as in DETR."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 5, 1)
        self.rows, self.columns = nn.Embedding(4, 8), nn.Embedding(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        columns = self.columns.weight[None].expand(4, -1, -1)
        rows = self.rows.weight[:, None].expand(-1, 4, -1)
        return self.two(torch.relu(self.one(x) + torch.cat([columns, rows], -1).permute(2, 0, 1)))


def test_tables_of_rows_and_columns_follow_the_channels() -> None:
    torch.manual_seed(0)
    (one,) = oicsr.find_couplings(Halves(), inputs())
    assert (one.name, one.num_channels) == ("one", 14)  # each table keeps a column
    members = {member.axis: member.channels.tolist() for member in one.members}
    kept = [*members["columns.weight", 1], *members["rows.weight", 1]]
    assert kept == members["one.weight", 0] and sorted(kept) == [-1, -1, *range(14)]


class Blur(nn.Module):
    """A fixed depthwise kernel between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1)
        self.register_buffer("kernel", torch.rand(8, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        blurred = functional.conv2d(self.one(x), self.kernel, padding=1, groups=self.kernel.shape[0])
        return self.two(torch.relu(blurred))


def test_the_kernel_of_a_blur_follows_without_energy() -> None:
    model = Blur()
    couplings = oicsr.find_couplings(model, inputs())
    assert [coupling.name for coupling in couplings] == ["one"]
    assert any(member.parameter == "kernel" and not member.counts for member in couplings[0].members)
    (energy,) = oicsr.channel_energy(model, couplings)
    expected = model.one.weight.square().sum((1, 2, 3)) + model.two.weight.square().sum((0, 2, 3))
    assert torch.allclose(energy, expected)
    assert oicsr.count_macs(model, inputs()) == 16 * (8 * 3 + 8 * 9 + 5 * 8)
    small = oicsr.remove_channels(model, oicsr.PruningPlan.from_kept(couplings, {"one": [0, 1]}))
    assert oicsr.count_macs(small, inputs()) == 16 * (2 * 3 + 2 * 9 + 5 * 2)


class OverChannels(nn.Module):
    """A convolution that slides over the channels' means."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.slide = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1), nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        return self.two(x * torch.sigmoid(self.slide(x.mean((2, 3)).unsqueeze(1)).squeeze(1))[:, :, None, None])


def test_channels_stay_never_without_a_word() -> None:
    with pytest.warns(oicsr.UnprunedChannelsWarning, match="gives values that cannot follow the channels"):
        assert not oicsr.find_couplings(OverChannels(), inputs())


class _Noisy(nn.Module):
    """StyleGAN's noise: one image, of which each channel takes its own share."""

    def __init__(self, *, last: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.register_buffer("noise", torch.randn((1, 6, 6, 1) if last else (1, 1, 6, 6)))
        self.share = nn.Parameter(torch.randn(8) if last else torch.randn(8, 1, 1))
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        noise = self.noise * self.share
        return self.two(torch.relu(self.one(x) + (noise.permute(0, 3, 1, 2) if self.last else noise)))


@pytest.mark.parametrize("last", [False, True])
def test_a_buffer_gives_way_to_a_parameter_with_a_number_for_each_channel(last: bool) -> None:
    network, x = _Noisy(last=last), torch.randn(2, 3, 8, 8)
    (coupling,) = oicsr.find_couplings(network, x)  # warnings are errors
    assert coupling.name == "one" and "share" in {member.parameter for member in coupling.members}
    assert check_every_channel(network, x) == {"one": 8}
