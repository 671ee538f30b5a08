"""More networks that users bring: numbers of groups that the code computes, and sums over channels.

They are in the table of `tests.oicsr.users_networks`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.oicsr.users_networks import CASES, IMAGES, ROWS, Net, built, conv, images, rows, tail, weight

__all__ = ["CASES"]

# ----------------------------------------------------------------------------------------------------------------
# numbers of groups
# ----------------------------------------------------------------------------------------------------------------


@images("a.0 b.0")
def groups_of_a_quarter(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.o(net.b(functional.group_norm(y, y.shape[1] // 4)).relu())


@images("a.0 b.0", s=lambda: weight(16), t=lambda: weight(16))
def at_most_32_groups(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.o(net.b(torch.group_norm(y, min(32, y.shape[1] // 2), net.s, net.t)))


@images("a.0 b.0")
def groups_of_one_channel(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.o(net.b(functional.group_norm(y, y.size(1))))


@images("b.0", warns="number of groups that is fixed")
def four_groups(net: Any, x: Tensor) -> Tensor:
    return net.o(net.b(functional.group_norm(net.a(x), 4)))


@images("b.0", warns="number of groups that is fixed", a=lambda: conv(3, 128), b=lambda: conv(128, 8))
def groups_that_are_right_for_most_widths(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.o(net.b(functional.group_norm(y, 32 if y.shape[1] % 32 == 0 else y.shape[1] // 4)))


@images("b.0", warns="normalises over the channels")
def one_group(net: Any, x: Tensor) -> Tensor:
    return net.o(net.b(functional.group_norm(net.a(x), 1)))


@images("a.0 b.0")
def groups_by_hand(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    b, c, h, w = y.shape
    z = y.view(b, c // 4, 4, h, w)
    z = (z - z.mean((2, 3, 4), keepdim=True)) / (z.var((2, 3, 4), keepdim=True) + 1e-5).sqrt()
    return net.o(net.b(z.view_as(y)))


# ----------------------------------------------------------------------------------------------------------------
# sums over channels, lengths, distances and similarities
# ----------------------------------------------------------------------------------------------------------------


def embedded(net: Any, x: Tensor) -> Tensor:
    return net.b(net.a(x).relu())


PAIRS = ROWS.flip(0)


@rows("a b", PAIRS)
def distances_to_others(net: Any, x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(embedded(net, x), embedded(net, y)) ** 2


@rows("a b", PAIRS)
def squares_of_differences(net: Any, x: Tensor, y: Tensor) -> Tensor:
    return -(embedded(net, x).unsqueeze(1) - embedded(net, y)).square().sum(-1)


@rows("a", PAIRS, warns="mean.dim in module '(root)' reduces over the channels")
def means_of_differences(net: Any, x: Tensor, y: Tensor) -> Tensor:
    return -(embedded(net, x).unsqueeze(1) - embedded(net, y)).square().mean(-1)


@rows("a b", PAIRS)
def similarities_of_pairs(net: Any, x: Tensor, y: Tensor) -> Tensor:
    return functional.cosine_similarity(embedded(net, x).unsqueeze(1), embedded(net, y), dim=-1)


@rows("a b", w=lambda: weight(5, 8))
def a_cosine_classifier(net: Any, x: Tensor) -> Tensor:
    return 10 * functional.cosine_similarity(embedded(net, x)[:, None], net.w[None], dim=-1)


@rows("a b", w=lambda: weight(8, 5))
def an_angular_margin(net: Any, x: Tensor) -> Tensor:
    cosine = functional.normalize(embedded(net, x)).mm(functional.normalize(net.w, dim=0))
    return 30 * (cosine.clamp(-0.99, 0.99).acos() + 0.3).cos()


@rows("a b", w=lambda: weight(5, 8))
def centres_of_classes(net: Any, x: Tensor) -> Tensor:
    return torch.exp(-(embedded(net, x).unsqueeze(1) - net.w).pow(2).sum(-1))


@rows("a b", warns="'w' is the weight of a layer, and is read elementwise too", w=lambda: weight(12, 8))
def a_table_of_distances_and_of_rows(net: Any, x: Tensor) -> Any:
    z = embedded(net, x)
    return net.o(z + net.w[torch.arange(len(x)) % 12]), torch.cdist(z, net.w).exp().log().sum(1)


@rows("a b c", c=lambda: weight(12, 8), o=lambda: nn.Linear(12, 3))
def radial_basis_functions(net: Any, x: Tensor) -> Tensor:
    z = embedded(net, x)
    return net.o((2 * z @ net.c.t() - z.pow(2).sum(1, keepdim=True) - net.c.pow(2).sum(1)).exp())


@rows("a c", c=lambda: weight(12, 16), o=lambda: nn.Linear(12, 3))
def distances_to_centres_as_a_layer(net: Any, x: Tensor) -> Tensor:
    return net.o((-torch.cdist(net.a(x).relu(), net.c)).exp())


@rows("a b", PAIRS)
def distances_of_pairs(net: Any, x: Tensor, y: Tensor) -> Tensor:
    y, x = embedded(net, y), embedded(net, x)
    norms = [torch.linalg.norm(x - y, dim=1), (x - y).norm(p=1, dim=1), torch.linalg.vecdot(x, y), (x * y).sum(1)]
    return torch.stack([*norms, functional.pairwise_distance(x, y, eps=0.0)])


@rows("a b", PAIRS)
def sums_of_everything(net: Any, x: Tensor, y: Tensor) -> Tensor:
    y, x = embedded(net, y), embedded(net, x)
    return torch.stack([torch.dist(x, y), x.pow(2).sum(), x[0].dot(y[1]), functional.mse_loss(x, y, reduction="sum")])


@rows("a b", PAIRS)
def losses_of_pairs(net: Any, x: Tensor, y: Tensor) -> Tensor:
    y, x = embedded(net, y), embedded(net, x)
    smooth = functional.smooth_l1_loss(x, y, reduction="none").sum(1).mean()
    alike = functional.cosine_embedding_loss(x, y, torch.ones(len(x)).to(x))
    return torch.stack(
        [smooth, alike, functional.triplet_margin_loss(x, y, x.roll(1, 0), eps=0.0), torch.pdist(x).sum()]
    )


@rows("a b", b=lambda: nn.Linear(4, 8))
def sums_of_four_groups(net: Any, x: Tensor) -> Tensor:
    return net.o(net.b(net.a(x).view(len(x), 4, -1).relu().sum(-1)).relu())


@rows("a b", b=lambda: nn.Linear(4, 8))
def sums_of_groups_of_four(net: Any, x: Tensor) -> Tensor:
    return net.o(net.b(net.a(x).unflatten(1, (-1, 4)).sum(1)).relu())


@rows("a b")
def groups_of_length_one(net: Any, x: Tensor) -> Tensor:
    y = functional.normalize(net.a(x).view(len(x), 4, -1), dim=2)
    return net.o(net.b(y.flatten(1)).relu())


@rows("b", warns="cannot lose channels", b=lambda: nn.Linear(4, 8))
def sums_of_exponentials_in_groups(net: Any, x: Tensor) -> Tensor:
    return net.o(net.b(net.a(x).exp().view(len(x), 4, -1).sum(-1)).relu())


@rows("a", PAIRS, warns="averages over the channels")
def a_mean_square_error(net: Any, x: Tensor, y: Tensor) -> Tensor:
    return functional.mse_loss(embedded(net, x), embedded(net, y))


@rows("a b")
def vectors_and_matrices(net: Any, x: Tensor) -> Tensor:
    z = embedded(net, x)
    return z[0] @ z.t() + z @ z[1]


@images("a.0 b.0", s=lambda: nn.Conv2d(1, 1, 3, padding=1))
def spatial_attention_by_a_sum(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.o(net.b(y * net.s(y.sum(1, keepdim=True) / 10).sigmoid()))


@images("a.0 b.0", s=lambda: nn.Conv2d(1, 1, 3, padding=1))
def spatial_attention_by_the_largest(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.o(net.b(y * net.s(y.max(1, keepdim=True)[0]).sigmoid()))


@images("b.0", a=lambda: nn.Conv2d(3, 16, 3), warns="amax.default in module '(root)' reduces over the channels")
def the_largest_below_zero(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.o(net.b(y - y.amax(1, keepdim=True)))


@images("a.0 b.0", g=lambda: nn.Linear(16, 16))
def the_largest_behind_a_gate(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    y = y * net.g(y.amax((2, 3))).sigmoid()[:, :, None, None]
    return net.o(net.b(y / (1 + y.amax(1, keepdim=True))))


@images("a.0 h.1 b.0", h=lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 16)))
def the_largest_of_gated_channels(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    gate = net.h(functional.avg_pool2d(y, y.shape[2:])).sigmoid()
    y = 0.5 * y * gate[:, :, None, None].expand_as(y) / 2
    return net.o(net.b(y / (1 + torch.maximum(y.max(1, keepdim=True)[0], y.flip(2).amax(1, keepdim=True)))))


@images("b.0", warns="amax.default in module '(root)' reduces over the channels")
def the_largest_of_negative_multiples(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.o(net.b(y * (y * -0.5).amax(1, keepdim=True)))


@images("b.0", warns="amax.default in module '(root)' reduces over the channels")
def the_largest_of_what_is_moved(net: Any, x: Tensor) -> Tensor:
    y = net.a(x) - 1
    return net.o(net.b(y * (y.add(-0.1) * y.sigmoid()).amax(1, keepdim=True)))


@images("f", w=lambda: weight(8, 16, 3, 3), f=lambda: nn.Linear(3, 16), warns="sum.dim_IntList")
def a_demodulated_weight(net: Any, x: Tensor) -> Tensor:
    scale = 1 + net.f(x.mean((2, 3)))
    lengths = (net.w * scale[:, None, :, None, None]).square().sum((2, 3, 4))
    y = functional.conv2d(net.a(x) * scale[:, :, None, None], net.w)
    return net.o((y * (lengths + 1e-8).rsqrt()[:, :, None, None]).relu())


@rows("b", warns="sum.dim_IntList in module '(root)' reduces over the channels")
def a_sum_of_exponentials(net: Any, x: Tensor) -> Tensor:
    z = net.a(x)
    return net.o(net.b(z / (z.exp().sum(1, keepdim=True) + 1)).relu())


@images("a.0 b.0")
def a_distance_of_features(net: Any, x: Tensor) -> Tensor:
    y, z = (functional.normalize(net.b(net.a(v)), dim=1) for v in (x, x.flip(0)))
    return net.o(y) + (y - z).pow(2).sum(1).mean((1, 2))[:, None]


@images("a.0 b", b=lambda: nn.Conv2d(16, 8, 1), e=lambda: nn.Embedding(12, 8), warns="argmin.default")
def a_vector_quantiser(net: Any, x: Tensor) -> Tensor:
    z = net.b(net.a(x)).permute(0, 2, 3, 1)
    flat, codes = z.reshape(-1, z.shape[-1]), net.e.weight
    d = flat.pow(2).sum(1, keepdim=True) + codes.pow(2).sum(1) - 2 * flat @ codes.t()
    return net.o((z + (net.e(d.argmin(1)).view_as(z) - z).detach()).permute(0, 3, 1, 2))


@images("a.0 b", b=lambda: nn.Conv2d(16, 8, 1), e=lambda: torch.randn(8, 12), warns="max.dim")
def a_vector_quantiser_of_columns(net: Any, x: Tensor) -> Tensor:
    z = net.b(net.a(x)).permute(0, 2, 3, 1)
    flat = z.reshape(-1, z.shape[-1])
    d = flat.pow(2).sum(1, keepdim=True) - 2 * flat @ net.e + net.e.pow(2).sum(0, keepdim=True)
    codes = functional.embedding((-d).max(1)[1].view(z.shape[:-1]), net.e.t())
    return net.o(codes.permute(0, 3, 1, 2))


@built("e l", torch.randint(0, 20, (4, 5)))
def a_factorisation_machine() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        v = net.e(x)
        pairs = (v.sum(1).pow(2) - v.pow(2).sum(1)).sum(1, keepdim=True) / 2
        return pairs + net.o(net.l(v.flatten(1)).relu())

    return Net(run, {"e": nn.Embedding(20, 8), "l": nn.Linear(40, 8), "o": nn.Linear(8, 1)})


@built("u", torch.randint(0, 20, (6, 2)))
def factors_of_a_matrix() -> nn.Module:
    parts = {"u": nn.Embedding(20, 8), "v": nn.Embedding(20, 8)}
    return Net(lambda net, x: (net.u(x[:, 0]) * net.v(x[:, 1])).sum(1), parts)


@rows(
    "a e.0.0 e.1.0",
    warns="argmax.default",
    r=lambda: nn.Linear(16, 2),
    e=lambda: nn.ModuleList(nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8)) for _ in range(2)),
)
def rows_sent_to_experts(net: Any, x: Tensor) -> Tensor:
    x = net.a(x).relu()
    chosen, mixed = net.r(x).argmax(1), x.new_zeros(len(x), 8)
    for number, expert in enumerate(net.e):
        (places,) = torch.where(chosen == number)
        mixed = mixed.index_add(0, places, expert(x[places]))
    return net.o(mixed.relu())


# ----------------------------------------------------------------------------------------------------------------
# means over channels that layers read
# ----------------------------------------------------------------------------------------------------------------


@images("a.0 b.0", s=lambda: nn.Conv2d(3, 1, 3, padding=1))
def spatial_attention_by_means(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    coarse = functional.interpolate(functional.avg_pool2d(y.mean(1).unsqueeze(1), 2), scale_factor=2, mode="bilinear")
    maps = [y.mean(1, keepdim=True), y.amax(1, keepdim=True), functional.leaky_relu(coarse / 2)]
    return net.o(net.b(y * net.s(torch.cat(maps, 1)).sigmoid()))


@images("a.0", b=lambda: conv(16, 16), s=lambda: nn.Conv2d(1, 1, 3), t=lambda: nn.Conv2d(1, 1, 1), o=lambda: tail(16))
def two_means_of_one_stream(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    y = (y + net.b(y) * functional.pad(net.s(y.mean(1, keepdim=True)).sigmoid(), (1, 1, 1, 1))).relu()
    return net.o(y * net.t(y.mean(1, keepdim=True)).sigmoid())


@images("a.0 b.0", b=lambda: conv(16 + 9, 8))
def a_cost_volume(net: Any, x: Tensor) -> Tensor:
    y, z = net.a(x), functional.pad(net.a(x.flip(0)), (1, 1, 1, 1))
    moved = [z[..., i : i + y.shape[2], j : j + y.shape[3]] for i in range(3) for j in range(3)]
    return net.o(net.b(torch.cat([torch.cat([(y * m).mean(1, keepdim=True) for m in moved], 1).relu(), y], 1)))


@images("a b.0", a=lambda: nn.Conv2d(3, 16, 3, 2), b=lambda: conv(25, 8))
def a_correlation_over_the_root_of_a_tensor(net: Any, x: Tensor) -> Tensor:
    y, z = net.a(x), net.a(x.flip(0)).flatten(2)
    volume = y.flatten(2).transpose(1, 2) @ z / torch.sqrt(torch.tensor(float(y.shape[1]), dtype=y.dtype))
    return net.o(net.b(volume.transpose(1, 2).unflatten(2, y.shape[2:])))


@images("a.0 a.1 b.0", a=lambda: nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 16, 1)), b=lambda: conv(27, 8))
def a_scaled_correlation_beside_what_the_code_makes(net: Any, x: Tensor) -> Tensor:
    y, z = net.a(x).flatten(2), net.a(x.flip(0)).flatten(2)
    volume = y.transpose(1, 2) @ z / torch.sqrt(torch.tensor(y.shape[1]).to(y.dtype))
    flow = torch.zeros(len(x), 2, 5, 5, dtype=x.dtype)
    return net.o(net.b(torch.cat([volume.transpose(1, 2).unflatten(2, (5, 5)), flow], 1)))


@rows("a b", m=lambda: nn.Linear(1, 8))
def a_mean_beside_a_factor(net: Any, x: Tensor) -> Tensor:
    y = net.a(x).relu()
    return net.o((net.b(y / math.sqrt(y.shape[1])) + net.m(y.mean(1, keepdim=True))).tanh())


@rows("a b")
def two_factors_that_differ(net: Any, x: Tensor) -> Tensor:
    width = net.b.weight.shape[1]
    return net.o(net.b(net.a(x).relu() / width * math.sqrt(width)).tanh())


@rows("a b", b=lambda: nn.Linear(16, 8, bias=False))
def a_factor_in_front_and_behind(net: Any, x: Tensor) -> Tensor:
    y = net.a(x).relu() / math.sqrt(net.a.out_features)
    return net.o((net.b(y) / math.sqrt(net.b.in_features)).tanh())


@rows("a b", b=lambda: nn.Linear(17, 8))
def a_mean_behind_a_factor(net: Any, x: Tensor) -> Tensor:
    y = net.a(x).relu()
    return net.o(net.b(torch.cat([y / math.sqrt(y.shape[1]), y.mean(1, keepdim=True)], 1)).tanh())


@images("a.0 b.0", o=lambda: nn.Linear(2, 4))
def means_of_everything(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.o(torch.stack([y.mean((1, 2, 3)), net.b(y).mean(dim=(1, 2, 3))], -1))


@images("b.0", warns="mean.dim in module '(root)' reduces over the channels", s=lambda: nn.Conv2d(1, 1, 3, padding=1))
def a_root_of_a_mean(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.o(net.b(y * net.s(y.mean(1, keepdim=True).sqrt()).sigmoid()))


@images("b.0", warns="mean.dim in module '(root)' reduces over the channels", s=lambda: nn.Conv2d(1, 1, 3, padding=1))
def a_mean_and_a_sum_into_one_layer(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.o(net.b(y * (net.s(y.mean(1, keepdim=True)) + net.s(y.sum(1, keepdim=True))).sigmoid()))


@images("c.0", warns="reduces over the channels", s=lambda: nn.Conv2d(1, 1, 3, padding=1), c=lambda: conv(24, 8))
def a_mean_over_two_widths(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    y = torch.cat([y, net.b(y)], 1)
    return net.o(net.c(y * net.s(y.mean(1, keepdim=True)).sigmoid()))


# ----------------------------------------------------------------------------------------------------------------
# expected places of boxes: a softmax over fixed ones is no attention
# ----------------------------------------------------------------------------------------------------------------


@built("a.0 b.0", IMAGES)
def places_of_boxes() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        sides = net.o(net.b(net.a(x))).view(len(x), 4, 4, -1)
        return (sides.softmax(2) * net.places.view(1, 1, -1, 1)).sum(2)

    return Net(run, {"a": conv(3, 16), "b": conv(16, 8), "o": nn.Conv2d(8, 16, 1), "places": torch.arange(4.0)})
