"""More networks that users bring: matrices that are stacked, one for each expert, head, relation or member.

They are in the table of `tests.oicsr.users_networks`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.oicsr.users_networks import CASES, ROWS, built, images, rows, tail, weight

__all__ = ["CASES"]
EXPERTS = torch.tensor([0, 2, 1, 1, 0])
STACKS = {
    "r": lambda: nn.Linear(16, 3),
    "w": lambda: weight(3, 16, 12),
    "c": lambda: weight(3, 1, 12),
    "v": lambda: weight(3, 12, 8),
}
TURNED = STACKS | {"w": lambda: weight(3, 12, 16), "c": lambda: weight(3, 12), "v": lambda: weight(3, 8, 12)}


@rows("a w v", warns="softmax", **STACKS)
def experts_by_matmul(net: Any, x: Tensor) -> Tensor:
    x = net.a(x).relu()
    y = (x @ net.w + net.c).relu() @ net.v
    return net.o((y * net.r(x).softmax(-1).t().unsqueeze(-1)).sum(0).relu())


@rows("a w v", warns="softmax", **STACKS)
def experts_by_a_sum_of_products(net: Any, x: Tensor) -> Tensor:
    x = net.a(x).relu()
    y = torch.bmm(torch.baddbmm(net.c, x.unsqueeze(0).expand(3, -1, -1), net.w).relu(), net.v)
    return net.o((y * net.r(x).softmax(-1).t().unsqueeze(-1)).sum(0).relu())


@rows("a w v", warns="softmax", **STACKS)
def experts_by_einsum(net: Any, x: Tensor) -> Tensor:
    x = net.a(x).relu()
    y = torch.einsum("bd,edf->bef", x, net.w).relu()
    return net.o(torch.einsum("bef,efo,be->bo", y, net.v, net.r(x).softmax(-1)).relu())


@rows("a w v", warns="topk", **TURNED)
def the_best_experts_by_einsum(net: Any, x: Tensor) -> Tensor:
    x = net.a(x).relu()
    shares, best = net.r(x).topk(2, -1)
    y = torch.einsum("befd,bd->bef", net.w[best, ...], x) + net.c[best, ...]
    y = torch.einsum("beof,bef->beo", net.v[best], functional.silu(y))
    return net.o(torch.einsum("beo,be->bo", y, shares.softmax(-1)).relu())


@rows("a w v", EXPERTS, **TURNED)
def experts_by_number(net: Any, x: Tensor, number: Tensor) -> Tensor:
    y = (net.a(x).relu().unsqueeze(1) @ net.w[number].mT).relu()
    return net.o(torch.bmm(y, net.v.index_select(0, number).transpose(1, 2)).squeeze(1).relu())


@rows("a w v", warns="softmax", **STACKS | {"v": lambda: weight(3, 6, 8)})
def gated_experts_by_einsum(net: Any, x: Tensor) -> Tensor:
    x = net.a(x).relu()
    left, right = torch.einsum("bd,edf->bef", x, net.w).chunk(2, -1)
    y = torch.einsum("bef,efo->beo", functional.silu(left) * right, net.v)
    return net.o((y * net.r(x).softmax(-1).unsqueeze(-1)).sum(1).relu())


@rows("a w v", w=lambda: weight(16, 4, 6), v=lambda: weight(4, 6, 8))
def heads_by_einsum(net: Any, x: Tensor) -> Tensor:
    y = torch.einsum("bd,dhk->bhk", net.a(x).relu(), net.w)
    return net.o(torch.einsum("bhk,hko->bo", y.tanh(), net.v).relu())


@images("a.0 w", torch.tensor([2]), w=lambda: weight(3, 8, 16, 3, 3), o=lambda: tail(8))
def a_kernel_by_number(net: Any, x: Tensor, number: Tensor) -> Tensor:
    return net.o(functional.conv2d(net.a(x), net.w[number].squeeze(0), padding=1).relu())


@rows("w v", w=lambda: weight(3, 6, 16), v=lambda: weight(3, 16, 8), e=lambda: torch.rand(3, 5, 5))
def a_matrix_for_each_relation(net: Any, x: Tensor) -> Tensor:
    y = (net.e @ (x @ net.w)).sum(0).relu()
    return net.o(torch.einsum("rij,jd,rdf->if", net.e, y, net.v).relu())


class Member(nn.Module):
    """A layer of every network of an ensemble."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.weight, self.bias = weight(4, before, after), weight(4, 1, after)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            return torch.einsum("bi,nio->nbo", x, self.weight) + self.bias
        return torch.bmm(x, self.weight) + self.bias


@built("0 2", ROWS)
def an_ensemble() -> nn.Module:
    return nn.Sequential(Member(6, 16), nn.SiLU(), Member(16, 16), nn.SiLU(), Member(16, 3))


HEADS = {name: lambda: weight(16, 4, 6) for name in "qkv"} | {"p": lambda: weight(4, 6, 8)}
STACKED_HEADS = HEADS | {name: lambda: weight(4, 16, 6) for name in "qkv"}


@rows("a q v p", **HEADS)
def an_attention_by_einsum_of_raw_weights(net: Any, x: Tensor) -> Tensor:
    x = net.a(x).relu().unsqueeze(0)
    q, k, v = (torch.einsum("btd,dhk->bhtk", x, w) for w in (net.q, net.k, net.v))
    shares = (torch.einsum("bhtk,bhsk->bhts", q, k) * q.shape[-1] ** -0.5).softmax(-1)
    y = torch.einsum("bhts,bhsk->bhtk", shares, v)
    return net.o(torch.einsum("bhtk,hko->bto", y, net.p).tanh())


@rows("a q v p", **STACKED_HEADS)
def an_attention_by_products_of_stacks(net: Any, x: Tensor) -> Tensor:
    x = net.a(x).relu()[None, None]
    y = functional.scaled_dot_product_attention(x @ net.q, x @ net.k, x @ net.v)
    return net.o((y @ net.p).sum(1).relu())


@rows("a q v p", c=lambda: weight(4, 1, 6), **STACKED_HEADS)
def an_attention_with_a_bias_of_its_queries(net: Any, x: Tensor) -> Tensor:
    x = net.a(x).relu().expand(4, -1, -1)
    y = functional.scaled_dot_product_attention(
        torch.baddbmm(net.c, x, net.q), torch.bmm(x, net.k), torch.bmm(x, net.v)
    )
    return net.o(torch.bmm(y, net.p).mean(0).relu())


@rows("a w p", w=lambda: weight(3, 16, 12), p=lambda: weight(12, 8))
def queries_keys_and_values_in_one_stack(net: Any, x: Tensor) -> Tensor:
    x = net.a(x).relu()
    y = functional.scaled_dot_product_attention(*(x @ net.w).unbind(0))
    return net.o((y @ net.p).relu())


class MixedKernels(nn.Module):
    """A convolution whose kernels are mixed for each image (CondConv); the experts' kernels are flat rows."""

    def __init__(self, before: int, after: int, groups: int = 1) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.groups = before, after, groups
        self.route = nn.Linear(before, 3)
        self.weight = weight(3, after * (before // groups) * 9)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve each image with its own kernels, as groups of one image."""
        batch, channels = x.shape[:2]
        kernels = self.route(x.mean((2, 3))).sigmoid() @ self.weight
        kernels = kernels.view(batch * self.out_channels, self.in_channels // self.groups, 3, 3)
        y = functional.conv2d(
            x.reshape(1, batch * channels, *x.shape[2:]), kernels, padding=1, groups=self.groups * batch
        )
        return y.view(batch, self.out_channels, *y.shape[2:])


MIXED = {"b": lambda: MixedKernels(16, 16), "d": lambda: MixedKernels(16, 16, 16), "o": lambda: tail(16)}


@images("a.0 b.route d.route", warns="kernels that are activations", **MIXED)
def kernels_mixed_for_each_image(net: Any, x: Tensor) -> Tensor:
    return net.o(net.d(net.b(net.a(x)).relu()).relu())
