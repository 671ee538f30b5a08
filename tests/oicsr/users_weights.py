"""More networks that users bring: weights that are computed, products with raw weights, numbers kept on modules.

They are in the table of `tests.oicsr.users_networks`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torchvision.ops import DeformConv2d

from tests.oicsr.users_networks import CASES, IMAGES, ROWS, SERIES, Net, built, conv, images, rows, tail, weight

__all__ = ["CASES"]

SOUND = torch.randn(3, 1, 20)

# ----------------------------------------------------------------------------------------------------------------
# weights that are computed from parameters
# ----------------------------------------------------------------------------------------------------------------


@rows("a w", w=lambda: weight(16, 8), c=lambda: weight(8), b=lambda: nn.Identity())
def a_raw_matrix_behind(net: Any, x: Tensor) -> Tensor:
    return net.o((net.a(x).relu() @ net.w + net.c).relu())


@rows("a w", w=lambda: weight(8, 16))
def a_raw_matrix_in_front(net: Any, x: Tensor) -> Tensor:
    return net.o((net.w @ net.a(x).relu().t()).relu().t())


@rows("a w", w=lambda: weight(16, 8))
def a_transposed_weight(net: Any, x: Tensor) -> Tensor:
    return net.o(functional.linear(net.a(x).relu(), net.w.t()).relu())


@built("enc", ROWS)
def a_tied_autoencoder() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        return functional.linear(net.enc(x).relu(), net.enc.weight.t()) + net.shift

    return Net(run, {"enc": nn.Linear(6, 16), "shift": nn.Parameter(torch.zeros(1))})


@rows("a w", w=lambda: weight(8, 16), c=lambda: weight(8))
def an_equalised_learning_rate(net: Any, x: Tensor) -> Tensor:
    return net.o(functional.linear(net.a(x).relu(), net.w * 0.3, net.c * 0.1).relu())


@rows("a w", w=lambda: weight(8, 16), m=lambda: (torch.rand(8, 16) > 0.3).float())
def a_masked_weight(net: Any, x: Tensor) -> Tensor:
    return net.o(functional.linear(net.a(x).relu(), net.w * net.m).relu())


@rows("a b", lower=lambda: weight(4, 16), upper=lambda: weight(8, 4))
def a_low_rank_update_of_a_weight(net: Any, x: Tensor) -> Tensor:
    return net.o(functional.linear(net.a(x).relu(), net.b.weight + net.upper @ net.lower, net.b.bias).relu())


@rows("a b lower", lower=lambda: weight(4, 16), upper=lambda: weight(8, 4))
def a_low_rank_path_beside(net: Any, x: Tensor) -> Tensor:
    x = net.a(x).relu()
    return net.o((net.b(x) + x @ net.lower.t() @ net.upper.t()).relu())


@rows("a b")
def a_detached_weight(net: Any, x: Tensor) -> Tensor:
    return net.o(functional.linear(net.a(x).relu(), net.b.weight.detach(), net.b.bias).relu())


@rows("a w", w=lambda: weight(16, 16))
def halves_of_a_weight(net: Any, x: Tensor) -> Tensor:
    x = net.a(x).relu()
    left, right = net.w.chunk(2)
    return net.o(functional.linear(x, left) * functional.linear(x, right).sigmoid())


@rows("a", w=lambda: weight(12, 16), warns="cuts the channel axis into unequal pieces")
def the_first_rows_of_a_weight(net: Any, x: Tensor) -> Tensor:
    return net.o(functional.linear(net.a(x).relu(), net.w[:8]).relu())


@rows("a w", w=lambda: nn.Parameter(torch.randn(8, 16) * 3))
def a_rounded_weight(net: Any, x: Tensor) -> Tensor:
    rounded = net.w + (net.w.round() - net.w).detach()
    return net.o(functional.linear(net.a(x).relu(), rounded).relu())


@rows("a w", w=lambda: weight(16, 8))
def an_einsum_of_rows(net: Any, x: Tensor) -> Tensor:
    return net.o(torch.einsum("bi,io->bo", net.a(x).relu(), net.w).relu())


@images("a.0 w", w=lambda: weight(8, 16), s=lambda: weight(16))
def an_einsum_of_maps(net: Any, x: Tensor) -> Tensor:
    x = torch.einsum("bchw,c->bchw", net.a(x), net.s)
    return net.o(torch.einsum("bchw,dc->bdhw", x, net.w).relu())


@images("w", w=lambda: weight(8, 16, 3, 3), warns="standardises a weight")
def a_standardised_weight(net: Any, x: Tensor) -> Tensor:
    w = (net.w - net.w.mean((1, 2, 3), keepdim=True)) / (net.w.std((1, 2, 3), keepdim=True) + 1e-5)
    return net.o(functional.conv2d(net.a(x), w).relu())


@rows("a w", w=lambda: weight(16, 8), c=lambda: weight(8))
def a_product_that_is_added(net: Any, x: Tensor) -> Tensor:
    return net.o(torch.addmm(net.c, net.a(x).relu(), net.w).relu())


@rows("a b", b=lambda: nn.Linear(6, 8), o=lambda: nn.Bilinear(16, 8, 3))
def a_bilinear_form(net: Any, x: Tensor) -> Tensor:
    return net.o(net.a(x).relu(), net.b(x))


@rows("a w", w=lambda: weight(16, 8))
def a_weight_turned_by_its_attribute(net: Any, x: Tensor) -> Tensor:
    return net.o(functional.linear(net.a(x).relu(), net.w.T).relu())


@images("w", a=lambda: nn.Identity(), w=lambda: weight(8, 3, 3, 3))
def a_kernel_in_four_rotations(net: Any, x: Tensor) -> Tensor:
    return net.o(sum(functional.conv2d(x, torch.rot90(net.w, k, (2, 3)), padding=1) for k in range(4)).relu())  # type: ignore[union-attr]


@images("a.0 w", w=lambda: weight(8, 16, 3, 3), o=lambda: tail(32))
def rotations_as_channels(net: Any, x: Tensor) -> Tensor:
    turned = torch.stack([torch.rot90(net.w, k, (2, 3)) for k in range(4)], 1).flatten(0, 1)
    return net.o(functional.conv2d(net.a(x), turned, padding=1).relu())


@images("a.0 bank", bank=lambda: weight(4, 8, 16, 3, 3), shares=lambda: weight(4))
def a_mixture_of_kernels(net: Any, x: Tensor) -> Tensor:
    return net.o(functional.conv2d(net.a(x), torch.einsum("k,koihw->oihw", net.shares.softmax(0), net.bank)).relu())


@images("a.0 v", w=lambda: weight(8, 16, 3, 3), v=lambda: weight(8, 16, 3, 3), shares=lambda: weight(2))
def a_stack_of_kernels(net: Any, x: Tensor) -> Tensor:
    shares = net.shares.softmax(0).view(2, 1, 1, 1, 1)
    return net.o(functional.conv2d(net.a(x), (torch.stack([net.w, net.v]) * shares).sum(0)).relu())


@rows("a ways.0", ways=lambda: nn.ModuleList([nn.Linear(16, 8) for _ in range(3)]))
def layers_in_one_product(net: Any, x: Tensor) -> Tensor:
    weights = torch.stack([layer.weight for layer in net.ways])
    return net.o(torch.einsum("bi,koi->kbo", net.a(x).relu(), weights).relu().mean(0))


@images("a.0 u", u=lambda: weight(8, 4), v=lambda: weight(4, 16), core=lambda: weight(4, 4, 3, 3))
def a_kernel_of_low_rank(net: Any, x: Tensor) -> Tensor:
    kernel = torch.einsum("or,rshw,si->oihw", net.u, net.core, net.v)
    return net.o(functional.conv2d(net.a(x), kernel).relu())


@images("a.0 bank", bank=lambda: weight(4, 8, 16, 3, 3), shares=lambda: weight(4))
def a_contraction_of_kernels(net: Any, x: Tensor) -> Tensor:
    return net.o(functional.conv2d(net.a(x), torch.tensordot(net.shares, net.bank, 1)).relu())


@images("a.0 v w", w=lambda: weight(4, 16, 3, 3), v=lambda: weight(4, 16, 3, 3))
def kernels_behind_one_another(net: Any, x: Tensor) -> Tensor:
    shifts = torch.cat([kernel.sum((1, 2, 3)) for kernel in (net.w, net.v)])
    return net.o(functional.conv2d(net.a(x), torch.cat([net.w, net.v]), shifts).relu())


@images("a.0 w", w=lambda: weight(8, 16, 3, 3))
def a_kernel_that_is_enlarged(net: Any, x: Tensor) -> Tensor:
    kernel = functional.interpolate(net.w, size=5, mode="bilinear")
    return net.o(functional.conv2d(net.a(x), kernel, padding=2).relu())


@rows("w", w=lambda: weight(8, 16), warns="normalises a weight")
def rows_that_sum_to_one(net: Any, x: Tensor) -> Tensor:
    return net.o(functional.linear(net.a(x).relu(), net.w.softmax(1)).relu())


@rows("a b", g=lambda: torch.rand(5, 5))
def a_graph_of_rows(net: Any, x: Tensor) -> Tensor:
    return net.o((net.g @ net.b((net.g @ net.a(x)).relu())).relu())


@rows("a w", w=lambda: weight(3, 16, 8))
def a_batch_of_experts(net: Any, x: Tensor) -> Tensor:
    x = net.a(x).relu()
    return net.o(torch.bmm(torch.stack([x, x, x]), net.w).relu().sum(0))


# ----------------------------------------------------------------------------------------------------------------
# numbers that are kept on modules
# ----------------------------------------------------------------------------------------------------------------


class GroupNorm(nn.Module):
    """A group normalisation of one's own."""

    def __init__(self, groups: int, width: int) -> None:
        super().__init__()
        self.groups, self.weight, self.bias = groups, weight(width), weight(width)

    def forward(self, x: Tensor) -> Tensor:
        return functional.group_norm(x, self.groups, self.weight, self.bias)


class Readout(nn.Linear):
    """A layer that divides by its own width."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x / math.sqrt(self.in_features), self.weight, self.bias)


@built("0 3.0", IMAGES)
def groups_in_an_attribute() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 3), GroupNorm(4, 16), nn.ReLU(), conv(16, 8), tail(8))


@built("0 3.0", IMAGES)
def group_norm_without_a_scale() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16, affine=False), nn.ReLU(), conv(16, 8), tail(8))


@built("a b", IMAGES)
def group_norm_over_two_layers() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        return net.o(net.n(torch.cat([net.a(x), net.b(x)], 1)).relu())

    parts = {"a": nn.Conv2d(3, 16, 3), "b": nn.Conv2d(3, 8, 3), "n": nn.GroupNorm(6, 24, affine=False)}
    return Net(run, {**parts, "o": tail(24)})


@rows("a b", o=lambda: Readout(8, 3))
def divided_by_its_width(net: Any, x: Tensor) -> Tensor:
    return net.o(net.b(net.a(x).relu()).relu())


@rows("a b")
def divided_by_another_width(net: Any, x: Tensor) -> Tensor:
    return net.o(net.b(net.a(x).relu() / net.a.weight.shape[0] ** 0.5).relu())


@built("0 3", ROWS)
def a_generator_with_unflatten() -> nn.Module:
    up = nn.ConvTranspose2d(16, 8, 2, 2)
    return nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Unflatten(1, (16, 2, 2)), up, nn.ReLU(), nn.Conv2d(8, 3, 1))


class Kept(nn.Module):
    """A network that keeps sizes in attributes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.flat, self.sizes = width, width * 4, [4, 12]
        self.a, self.b = nn.Linear(6, width * 4), nn.ConvTranspose2d(width, 16, 2, 2)
        self.c, self.d = nn.Conv2d(4, 6, 1), nn.Conv2d(12, 6, 1)
        self.o = nn.Linear(12 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu().view(-1, self.width, 2, 2)).relu()
        few, many = torch.split(x, self.sizes, 1)
        return self.o(torch.cat([self.c(few), self.d(many)], 1).relu().flatten(1))


@built("a b c d", ROWS)
def sizes_in_attributes() -> nn.Module:
    return Kept(16)


@images("a.0", k=lambda: torch.rand(1, 1, 3, 3), o=lambda: tail(16))
def one_kernel_that_blurs_all_channels(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    kernel = net.k.expand(y.shape[1], -1, -1, -1)
    return net.o(
        functional.conv2d(functional.pad(y, (1, 1, 1, 1), mode="reflect"), kernel, stride=2, groups=y.shape[1])
    )


@images("a.0", k=lambda: torch.rand(1, 1, 3, 3), o=lambda: tail(16))
def one_kernel_that_is_repeated(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.o(functional.conv2d(y, net.k.repeat(y.shape[1], 1, 1, 1), padding=1, groups=y.shape[1]))


@images("a.0 e b.0", e=lambda: nn.Linear(16 * 12, 10), h=lambda: nn.Linear(10, 16 * 12), b=lambda: conv(32, 8))
def reshaped_to_the_width_of_what_it_is_put_behind(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    n, c, h, w = y.shape
    z = net.h(net.e(y.permute(0, 2, 1, 3).reshape(n, h, c * w)).tanh())
    return net.o(net.b(torch.cat([y, z.reshape(n, h, c, w).permute(0, 2, 1, 3)], 1)))


class BandPass(nn.Module):
    """Filters that are functions of their two cut-off frequencies, as in SincNet (Ravanelli and Bengio, 2018)."""

    def __init__(self, filters: int, size: int) -> None:
        super().__init__()
        self.filters, self.size = filters, size
        self.low, self.band = nn.Parameter(torch.rand(filters, 1) + 0.5), nn.Parameter(torch.rand(filters, 1))
        self.register_buffer("steps", torch.arange(-(size // 2), 0.0).view(1, -1))
        self.register_buffer("window", torch.hamming_window(size)[: size // 2])

    def forward(self, x: Tensor) -> Tensor:
        low = 0.1 + self.low.abs()
        high = torch.clamp(low + 0.1 + self.band.abs(), 0.1, 3)
        band = (high - low)[:, 0]
        left = ((high @ self.steps).sin() - (low @ self.steps).sin()) / (self.steps / 2) * self.window
        kernels = torch.cat([left, 2 * band.view(-1, 1), left.flip(1)], 1) / (2 * band[:, None])
        return functional.conv1d(x, kernels.view(self.filters, 1, self.size))


@built("0 3", SOUND)
def filters_that_are_functions_of_frequencies() -> nn.Module:
    return nn.Sequential(
        BandPass(16, 9), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 8, 3), nn.ReLU(), nn.Conv1d(8, 3, 1)
    )


@built("l", SOUND)
def symmetric_kernels() -> nn.Module:
    return Net(
        lambda net, x: net.o(functional.conv1d(x, torch.cat([net.l, net.m, net.l.flip(-1)], -1)).relu()),
        {"l": weight(16, 1, 4), "m": weight(16, 1, 1), "o": nn.Conv1d(16, 3, 3)},
    )


@rows("u v b", u=lambda: weight(16, 6), v=lambda: weight(10, 6), b=lambda: nn.Linear(26, 8))
def one_layer_of_two_weights(net: Any, x: Tensor) -> Tensor:
    return net.o(net.b(functional.linear(x, torch.cat([net.u, net.v])).relu()).relu())


class Quantized(nn.Linear):
    """Weights of eight bits; gradients pass as if they were not."""

    def forward(self, x: Tensor) -> Tensor:
        step = self.weight.abs().max() / 127
        rounded = (self.weight / step).round().clamp(-128, 127) * step
        return functional.linear(x, self.weight + (rounded - self.weight).detach(), self.bias)


@built("0 2", ROWS)
def quantized_weights() -> nn.Module:
    return nn.Sequential(Quantized(6, 16), nn.ReLU(), Quantized(16, 8), nn.ReLU(), Quantized(8, 3))


# ----------------------------------------------------------------------------------------------------------------
# recurrent layers, deformable convolutions
# ----------------------------------------------------------------------------------------------------------------


def recurrent(cls: type[nn.RNNBase], **options: Any) -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        return net.o(net.r(net.c(x).transpose(1, 2))[0][:, -1])

    ways = 1 + options.get("bidirectional", False)
    parts = {"c": nn.Conv1d(4, 12, 3), "r": cls(12, 10, batch_first=True, **options), "o": nn.Linear(10 * ways, 3)}
    return Net(run, parts)


@built("c r", SERIES)
def a_recurrence_of_two_layers_and_ways() -> nn.Module:
    return recurrent(nn.LSTM, num_layers=2, bidirectional=True)


@built("c r", SERIES)
def a_gated_recurrence() -> nn.Module:
    return recurrent(nn.GRU)


@built("c r", SERIES)
def a_plain_recurrence_without_biases() -> nn.Module:
    return recurrent(nn.RNN, bias=False)


@built("e", SERIES.transpose(1, 2))
def an_encoder_and_a_decoder() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        return net.o(net.d(x, net.e(x)[1])[0])

    return Net(run, {"e": nn.GRU(4, 10), "d": nn.GRU(4, 10), "o": nn.Linear(10, 3)})


@built("cell", SERIES)
def steps_of_a_cell() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        hidden = memory = x.new_zeros(len(x), net.cell.hidden_size)
        for step in x.unbind(2):
            hidden, memory = net.cell(step, (hidden, memory))
        return net.o(hidden)

    return Net(run, {"cell": nn.LSTMCell(4, 10), "o": nn.Linear(10, 3)})


@images(
    "a.0 d",
    f=lambda: nn.Conv2d(16, 18, 3, padding=1),
    m=lambda: nn.Conv2d(16, 9, 3, padding=1),
    d=lambda: DeformConv2d(16, 8, 3, padding=1),
    warns="takes places from it",
)
def a_deformed_convolution(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    return net.o(net.d(x, net.f(x), net.m(x).sigmoid()).relu())


@rows("a b")
def a_rest_that_is_empty(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    x = torch.cat((x[..., :16].cos() - 1, x[..., 16:]), -1)  # rotary embeddings of whole heads leave such a rest
    x, rest = net.b(x).split([net.b.out_features, 0], -1)
    return net.o(torch.cat((x, rest), -1).relu())


class LowRank(nn.Module):
    """A parametrization with parameters of its own: a low-rank update of a weight."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.upper, self.lower = weight(rows, 4), weight(4, columns)

    def forward(self, full: Tensor) -> Tensor:
        return full + 0.5 * (self.upper @ self.lower).view(full.shape)


@built("0 2", ROWS)
def a_low_rank_parametrization() -> nn.Module:
    layers = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    for layer in (layers[2], layers[4]):
        rows, columns = layer.weight.shape
        parametrize.register_parametrization(layer, "weight", LowRank(rows, columns))
    return layers


@rows(
    "b",
    torch.rand(3, 5, 5),
    warns="gives a weight whose axis 2 is no axis of a parameter",
    d=lambda: weight(2, 6, 16),
    c=lambda: weight(3, 2),
    b=lambda: nn.Linear(16, 8),
)
def matrices_of_a_flattened_basis(net: Any, x: Tensor, edges: Tensor) -> Tensor:
    matrices = (net.c @ net.d.view(2, -1)).view(3, 6, -1)
    return net.o(net.b(torch.einsum("rij,jd,rde->ie", edges, x, matrices).relu()).relu())


@images("w", w=lambda: weight(8, 16, 3, 3), warns="standardises a weight")
def a_weight_standardised_by_its_variance_and_mean(net: Any, x: Tensor) -> Tensor:
    spread, mean = torch.var_mean(net.w, dim=(1, 2, 3), keepdim=True)
    return net.o(functional.conv2d(net.a(x), (net.w - mean) / (spread + 1e-5).sqrt()).relu())


@built("0 2 4", IMAGES)
def groups_of_colours() -> nn.Module:
    thin = [nn.Conv2d(3, 24, 3, groups=3), nn.ReLU(), nn.Conv2d(24, 24, 3, groups=3), nn.ReLU()]
    return nn.Sequential(*thin, nn.Conv2d(24, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


@built("0 1", SERIES)
def several_filters_for_each_series() -> nn.Module:
    return nn.Sequential(nn.ConvTranspose1d(4, 16, 3, groups=4), nn.Conv1d(16, 12, 1), nn.ReLU(), nn.Conv1d(12, 3, 1))


@images("a.0 w", w=lambda: weight(16, 5, 3, 3), o=lambda: tail(20))
def four_groups_by_number(net: Any, x: Tensor) -> Tensor:
    return net.o(functional.conv_transpose2d(net.a(x), net.w, groups=4).relu())


@images("a.0", a=lambda: conv(3, 32), w=lambda: weight(40, 8, 3, 3), o=lambda: tail(40))
def groups_of_eight(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    return net.o(functional.conv2d(x, net.w, groups=x.shape[1] // 8).relu())


@images("a.0", c=lambda: weight(16, 6), rate=lambda: weight(16, 6), step=lambda: weight(16), o=lambda: tail(16))
def the_kernel_of_a_diagonal_state_space(net: Any, x: Tensor) -> Tensor:
    x = net.a(x).flatten(2)
    length = x.shape[-1]
    decay = (-net.rate.exp() * net.step.exp()[:, None])[..., None] * torch.arange(length, device=x.device)
    kernel = torch.einsum("hn,hnl->hl", net.c, decay.exp())
    product = torch.fft.rfft(kernel, n=2 * length) * torch.fft.rfft(x, n=2 * length)
    return net.o(torch.fft.irfft(product, n=2 * length)[..., :length, None].relu())


@rows("a", w=lambda: weight(16, 5), v=lambda: weight(5), s=lambda: weight(16, 5), o=lambda: nn.Linear(16, 3))
def scales_from_products_of_weights(net: Any, x: Tensor) -> Tensor:
    scale = net.w @ net.v + torch.einsum("hn,hn,n->h", net.w, net.s, net.v)
    return net.o((net.a(x) * scale).relu())


@rows("a w v", w=lambda: weight(16, 12), v=lambda: weight(8, 12))
def products_over_axes(net: Any, x: Tensor) -> Tensor:
    x = torch.tensordot(net.a(x).relu(), net.w, dims=([-1], [0])).relu()
    return net.o(torch.inner(x, net.v).relu())


@built("a", torch.randn(2, 5, 6))
def tokens_that_are_weighed_by_products_over_axes() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        y = net.a(x)
        mean = torch.tensordot(torch.ones(y.shape[1]).to(y) / y.shape[1], y, dims=([0], [1]))
        return net.o((y * mean[:, None]).relu())

    return Net(run, {"a": nn.Linear(6, 12), "o": nn.Linear(12, 3)})
