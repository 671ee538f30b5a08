"""Numbers on modules that only other methods read: fused blocks and noisy layers work on after surgery."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

import oicsr
from tests.oicsr.networks import randomize_norms

IMAGES = torch.randn(2, 3, 8, 8, dtype=torch.float64)


class Branches(nn.Module):
    """Two branches while training (RepVGG); `fuse` makes one convolution of them, by the numbers that it keeps."""

    def __init__(self, inputs: int, outputs: int, groups: int = 1) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.groups = inputs, outputs, groups
        self.wide = nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups)
        self.narrow = nn.Conv2d(inputs, outputs, 1, groups=groups)
        self.fused: nn.Conv2d | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.fused is not None:
            return self.fused(x).relu()
        both: Tensor = self.wide(x) + self.narrow(x)
        return both.relu()

    @torch.no_grad()
    def fuse(self) -> None:
        self.fused = nn.Conv2d(self.in_channels, self.out_channels, 3, padding=1, groups=self.groups).double()
        self.fused.weight.copy_(self.wide.weight + functional.pad(self.narrow.weight, [1] * 4))
        assert self.wide.bias is not None and self.narrow.bias is not None and self.fused.bias is not None
        self.fused.bias.copy_(self.wide.bias + self.narrow.bias)


def halved(model: nn.Module, inputs: Tensor) -> nn.Module:
    couplings = oicsr.find_couplings(model, inputs, scope="all")
    return oicsr.remove_channels(
        model, oicsr.PruningPlan.from_kept(couplings, {c.name: range(c.num_channels // 2) for c in couplings})
    )


def test_branches_are_fused_after_surgery() -> None:
    model = nn.Sequential(Branches(3, 16), Branches(16, 16, 16), Branches(16, 24), nn.Conv2d(24, 4, 1)).double()
    small = halved(model, IMAGES)
    assert [(b.in_channels, b.out_channels, b.groups) for b in small[:3]] == [(3, 8, 1), (8, 8, 8), (8, 12, 1)]
    before = small(IMAGES)
    for block in small[:3]:
        block.fuse()
    torch.testing.assert_close(small(IMAGES), before)
    assert (model[0].out_channels, model[2].out_channels) == (16, 24)


@pytest.mark.parametrize("name", ["mobileone_s0", "repvgg_a0"])
def test_blocks_of_timm_are_fused_after_surgery(name: str) -> None:
    model = randomize_norms(timm.create_model(name, num_classes=4)).double().eval()
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    small = halved(model, x)
    expected = small(x)
    torch.testing.assert_close(timm.utils.model.reparameterize_model(copy.deepcopy(small))(x), expected)


class Noisy(nn.Module):
    """A linear layer with weights of its own; its noise is drawn by the numbers that it keeps."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.mean, self.deviation = (nn.Parameter(torch.randn(outputs, inputs)) for _ in range(2))
        self.register_buffer("noise", torch.randn(outputs, inputs))

    def draw(self) -> None:
        self.noise.copy_(torch.outer(torch.randn(self.out_features), torch.randn(self.in_features)))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.mean + self.deviation * self.noise)


def test_noise_is_drawn_after_surgery() -> None:
    small = halved(nn.Sequential(Noisy(6, 16), nn.ReLU(), Noisy(16, 3)), torch.randn(4, 6))
    assert [(layer.in_features, layer.out_features) for layer in (small[0], small[2])] == [(6, 8), (8, 3)]
    small[0].draw()
    small[2].draw()
    assert small(torch.randn(4, 6)).shape == (4, 3)


class Told(nn.Module):
    """Holds two layers of one width, and a number of that name; `reads` it or not."""

    def __init__(self, reads: bool, *, apart: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features, self.reads = 6, 16, reads
        self.first, self.second = nn.Linear(6, 16), nn.Linear(6, 16)
        self.last, self.other, self.apart = nn.Linear(16, 4), nn.Linear(16, 4), apart

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.out_features if self.reads else x
        first, second = self.first(x).relu(), self.second(x).relu()
        both: Tensor = self.last(first) + self.other(second) if self.apart else self.last(first + second)
        return both


def test_a_number_that_is_read_or_that_layers_do_not_agree_on_stays() -> None:
    x = torch.randn(4, 6)
    assert halved(Told(False), x).out_features == 8
    assert halved(Told(True), x).out_features == 16  # a factor
    assert halved(Told(False, apart=True), x).out_features == 16  # two layers, each with channels of its own


class Samples(nn.Module):
    """An autoencoder that draws codes by a number of its own, and may hold another layer of that width."""

    def __init__(self, name: str, *, other: bool = False) -> None:
        super().__init__()
        setattr(self, name, 8)
        self.name = name
        self.encoder = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8))
        self.decoder = nn.Sequential(nn.Linear(8, 20), nn.ReLU(), *([nn.Linear(20, 8)] if other else []))
        self.last = nn.Linear(8 if other else 20, 12)

    def forward(self, x: Tensor) -> Tensor:
        codes: Tensor = self.last(self.decoder(self.encoder(x)))
        return codes

    def sample(self, count: int) -> Tensor:
        drawn: Tensor = self.last(self.decoder(torch.randn(count, getattr(self, self.name))))
        return drawn


@pytest.mark.parametrize("name", ["latent_dim", "z_dim", "hidden_size", "width", "code_channels", "nz", "latent"])
def test_widths_that_another_method_reads_follow(name: str) -> None:
    small = halved(Samples(name), torch.randn(2, 12))
    assert getattr(small, name) == 4 and small.sample(3).shape == (3, 12)


@pytest.mark.parametrize("name", ["num_classes", "kernel_size", "head_dim", "input_size", "steps", "patch_size"])
def test_numbers_that_are_no_widths_by_their_names_stay(name: str) -> None:
    assert getattr(halved(Samples(name), torch.randn(2, 12)), name) == 8


def test_a_width_of_two_couplings_stays() -> None:
    assert halved(Samples("latent_dim", other=True), torch.randn(2, 12)).latent_dim == 8
