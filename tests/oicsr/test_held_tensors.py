"""Tensors that a network holds or makes of others: repeated kernels, extremes of weights, plain attributes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import oicsr
from oicsr import PruningPlan


class Blurred(nn.Module):
    """A blur between two convolutions: one kernel, repeated for as many channels as there are."""

    def __init__(self, repeated: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
        self.kernel, self.repeated = nn.Parameter(torch.rand(1, 1, 3, 3)), repeated

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x).relu()
        width = x.shape[1]
        return self.two(functional.conv2d(x, self.repeated(self.kernel, width), groups=width))


REPEATED: dict[str, Callable[[Tensor, int], Tensor]] = {
    "expand": lambda kernel, width: kernel.expand(width, 1, 3, 3),
    "repeat": lambda kernel, width: kernel.repeat(width, 1, 1, 1),
    "repeat_interleave": lambda kernel, width: kernel.repeat_interleave(width, 0),
    "cat": lambda kernel, width: torch.cat([kernel] * width),
    "stack": lambda kernel, width: torch.stack([kernel[0]] * width),
    "a share of its sum": lambda kernel, width: (kernel / kernel.sum()).expand(width, -1, -1, -1),
}


@pytest.mark.parametrize("kind", REPEATED)
def test_a_kernel_that_is_repeated_for_each_channel_stays_whole(kind: str) -> None:
    torch.manual_seed(0)
    model, x = Blurred(REPEATED[kind]).double(), torch.randn(2, 3, 12, 12, dtype=torch.float64)
    (coupling,) = oicsr.find_couplings(model, x)
    assert (coupling.name, coupling.num_channels) == ("one", 8)
    with torch.no_grad():
        for parameter in (model.one.weight, model.one.bias):
            parameter[[1, 4, 6]] = 0
    small = oicsr.remove_channels(model, PruningPlan.from_kept([coupling], {"one": [0, 2, 3, 5, 7]}))
    torch.testing.assert_close(small(x), model(x), rtol=1e-12, atol=1e-12)
    assert small.kernel.shape == (1, 1, 3, 3) and small.one.out_channels == 5


COPIES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "repeat": lambda kernels, width: kernels.repeat(width, 1, 1, 1),
    "cat": lambda kernels, width: torch.cat([kernels] * width),
    "stack": lambda kernels, width: torch.stack([kernels] * width).flatten(0, 1),
}


class Wavelet(nn.Module):
    """A wavelet and its inverse: the same four kernels for every channel."""

    def __init__(self, repeated: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(32, 24, 3, padding=1), nn.Conv2d(6, 4, 1)
        self.kernels, self.repeated = nn.Parameter(torch.rand(4, 1, 2, 2)), repeated

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x).relu()
        width = x.shape[1]
        bands = functional.conv2d(x, self.repeated(self.kernels, width), stride=2, groups=width)
        bands = self.two(bands).relu()
        width = bands.shape[1] // 4
        kernels = self.repeated(self.kernels, width)
        return self.head(functional.conv_transpose2d(bands, kernels, stride=2, groups=width))


@pytest.mark.parametrize("form", COPIES)
def test_a_channel_goes_with_its_own_copy_of_the_kernels_of_a_wavelet(form: str) -> None:
    torch.manual_seed(0)
    model, x = Wavelet(COPIES[form]).double(), torch.randn(2, 3, 10, 10, dtype=torch.float64)
    couplings = oicsr.find_couplings(model, x)
    assert [(c.name, c.num_channels) for c in couplings] == [("one", 8), ("two", 6)]
    with torch.no_grad():
        for parameter, rows in ((model.one, [1, 4, 6]), (model.two, [8, 9, 10, 11])):
            parameter.weight[rows], parameter.bias[rows] = 0, 0
    plan = PruningPlan.from_kept(couplings, {"one": [0, 2, 3, 5, 7], "two": [0, 1, 3, 4, 5]})
    small = oicsr.remove_channels(model, plan)
    torch.testing.assert_close(small(x), model(x), rtol=1e-12, atol=1e-12)
    assert small.kernels.shape == (4, 1, 2, 2) and small.two.weight.shape == (20, 20, 3, 3)


class Weighted(nn.Module):
    """Divides a weight by its largest entry in each row, as quantisers do."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        largest = self.one.weight.abs().amax(1, keepdim=True)
        bounded = torch.maximum(self.one.weight / (largest + 1e-3), torch.full((), -0.5, dtype=x.dtype))
        return self.two(functional.linear(x, bounded).relu())


def test_weights_made_of_their_extremes_lose_rows() -> None:
    torch.manual_seed(0)
    model, x = Weighted().double(), torch.randn(5, 4, dtype=torch.float64)
    (coupling,) = oicsr.find_couplings(model, x)
    assert coupling.num_channels == 8
    with torch.no_grad():
        model.one.weight[[0, 3]] = 0
    small = oicsr.remove_channels(model, PruningPlan.from_kept([coupling], {coupling.name: [1, 2, 4, 5, 6, 7]}))
    torch.testing.assert_close(small(x), model(x), rtol=1e-12, atol=1e-12)


class Held(nn.Module):
    """Multiplies with a tensor that is no buffer."""

    def __init__(self, *, attribute: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 3)
        self.gains, self.attribute = torch.rand(8), attribute

    def forward(self, x: Tensor) -> Tensor:
        gains = self.gains if self.attribute else torch.tensor([0.5] * 8)
        return self.two(self.one(x) * gains)


@pytest.mark.parametrize(
    ("attribute", "words"),
    [
        (True, "'gains', which is no buffer of the model: register it as one, so that it can follow"),
        (False, "a tensor that is a constant of the model's code"),
    ],
)
def test_a_tensor_that_is_no_buffer_is_named_with_the_layer_that_stays(attribute: bool, words: str) -> None:
    model = Held(attribute=attribute)
    with pytest.warns(oicsr.UnprunedChannelsWarning) as warned:
        assert oicsr.find_couplings(model, torch.randn(5, 4)) == []
    assert words in "".join(str(warning.message) for warning in warned)


def test_a_direction_of_zeros_has_no_length_to_divide_by() -> None:
    torch.manual_seed(0)
    one = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
    model = nn.Sequential(one, nn.ReLU(), nn.Conv2d(8, 4, 3)).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    (coupling,) = oicsr.find_couplings(model, x)
    proof = oicsr.prove(model, x, [coupling])
    assert not proof.refuted and not proof.untried


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "mobilenetv3_small_050", "vgg11_bn"])
def test_the_widths_that_timm_keeps_for_a_new_head_follow(name: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model, x = timm.create_model(name, num_classes=7).eval(), torch.randn(1, 3, 224, 224)
    couplings = oicsr.find_couplings(model, x, verify="shapes")
    plan = PruningPlan.from_kept(couplings, {c.name: range(max(1, c.num_channels // 2)) for c in couplings})
    small = oicsr.remove_channels(model, plan)
    features = small.forward_features(x)
    assert small.num_features in features.shape
    before = small.forward_head(features, pre_logits=True)
    assert small.head_hidden_size == (before[0] if isinstance(before, tuple) else before).shape[-1]
    small.reset_classifier(4)
    output = small(x)
    assert output.shape == (1, 4)
