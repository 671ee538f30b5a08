"""Networks for sequences, graphs and reinforcement learning; `users_networks` holds the table and says how."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.oicsr.users_networks import CASES, WORDS, Net, built, rows, weight

__all__ = ["CASES"]

SEQUENCES = torch.randn(2, 5, 6)
MASK = nn.Transformer.generate_square_subsequent_mask


# ----------------------------------------------------------------------------------------------------------------
# what PyTorch's own modules ask of values
# ----------------------------------------------------------------------------------------------------------------


class Causal(nn.Module):
    """PyTorch's own transformer, with a causal mask that the forward makes."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.body = nn.Transformer(8, 2, 1, 1, 24, dropout=0.0, batch_first=True)
        self.out = nn.Linear(8, 5)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = MASK(target.shape[1]).to(self.out.weight)
        return self.out(self.body(self.words(source), self.words(target), tgt_mask=mask))


@built("body.encoder.layers.0.linear1 body.decoder.layers.0.linear1", WORDS, WORDS[:, :5], warns="layer_norm")
def a_transformer_with_a_causal_mask() -> nn.Module:
    return Causal()


@rows("a b", s=lambda: nn.Linear(8, 3))
def a_policy_with_a_distribution(net: Any, x: Tensor) -> Any:
    hidden = net.b(net.a(x).relu()).relu()
    policy = torch.distributions.Normal(net.o(hidden), functional.softplus(net.s(hidden)) + 0.1)
    return policy.mean, policy.log_prob(x[:, :3]), policy.entropy()


# ----------------------------------------------------------------------------------------------------------------
# equations in other forms, and products of values whose channels lie on different axes
# ----------------------------------------------------------------------------------------------------------------


class Scan(nn.Module):
    """A selective state space (Mamba) without its convolution, its scan written out."""

    def __init__(self, *, by_equations: bool) -> None:
        super().__init__()
        self.by_equations, self.width, self.rank, self.states = by_equations, 16, 2, 4
        self.first, self.steps = nn.Linear(6, 32), nn.Linear(2, 16)
        self.parts, self.out = nn.Linear(16, 2 + 2 * 4, bias=False), nn.Linear(16, 3)
        self.decay = nn.Parameter(torch.rand(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        values, gate = self.first(x).chunk(2, -1)
        steps, into, back = self.parts(values).split([self.rank, self.states, self.states], -1)
        steps = functional.softplus(self.steps(steps))
        if self.by_equations:
            kept = torch.einsum("bld,dn->bldn", steps, -self.decay.exp()).exp()
            new = torch.einsum("bld,bln,bld->bldn", steps, into, values)
        else:
            kept = (steps.unsqueeze(-1) * -self.decay.exp()).exp()
            new = steps.unsqueeze(-1) * into.unsqueeze(2) * values.unsqueeze(-1)
        state, found = torch.zeros(len(x), self.width, self.states).to(x), []
        for t in range(x.shape[1]):
            state = kept[:, t] * state + new[:, t]
            if self.by_equations:
                found.append(torch.einsum("...dn,...n->...d", state, back[:, t]))
            else:
                found.append((state * back[:, t].unsqueeze(1)).sum(-1))
        last: Tensor = self.out(torch.stack(found, 1) * functional.silu(gate))
        return last


@built("first parts", SEQUENCES, warns="gives values that cannot follow")
def a_selective_scan_by_equations() -> nn.Module:
    return Scan(by_equations=True)


@built("first parts", SEQUENCES)
def a_selective_scan_by_broadcasting() -> nn.Module:
    return Scan(by_equations=False)


@rows("a q v", q=lambda: nn.Linear(16, 6), k=lambda: nn.Linear(16, 6), v=lambda: nn.Linear(16, 8))
def an_attention_by_equations_with_dots(net: Any, x: Tensor) -> Tensor:
    x = net.a(x).relu()
    scores = torch.einsum("...id,...jd->...ij", net.q(x), net.k(x)).softmax(-1)
    return net.o(torch.einsum("...ij,...jd->...id", scores, net.v(x)))


@rows("a u core v", u=lambda: weight(16, 5), core=lambda: weight(5, 4), v=lambda: weight(4, 8))
def a_factorised_layer_in_one_equation(net: Any, x: Tensor) -> Tensor:
    return net.o(torch.einsum("...i,ir,rs,so->...o", net.a(x).relu(), net.u, net.core, net.v).relu())


@rows(
    "a q o",
    p=lambda: nn.Linear(16, 3),
    q=lambda: nn.Linear(16, 6),
    o=lambda: nn.Linear(18, 7),
    last=lambda: nn.Linear(7, 3),
)
def an_outer_product(net: Any, x: Tensor) -> Tensor:
    x = net.a(x).relu()
    return net.last(net.o(torch.einsum("bi,bj->bij", net.p(x), net.q(x)).flatten(1)).relu())


# ----------------------------------------------------------------------------------------------------------------
# graphs whose edges are a sparse matrix
# ----------------------------------------------------------------------------------------------------------------


def _edges() -> Tensor:
    dense = torch.eye(5) + torch.eye(5).roll(1, 0)
    dense[2, 4] = 0.5
    return dense.to_sparse()


@rows("a w", _edges(), w=lambda: weight(16, 8))
def a_graph_of_sparse_edges(net: Any, x: Tensor, edges: Tensor) -> Tensor:
    x = torch.sparse.mm(edges, net.a(x)).relu()
    return net.o(torch.spmm(edges, x @ net.w).relu())


@rows("a b", torch.tensor([[0, 1, 2, 3, 4, 4], [1, 2, 3, 4, 0, 2]]))
def a_graph_of_edges_that_are_made_sparse(net: Any, x: Tensor, places: Tensor) -> Tensor:
    edges = torch.sparse_coo_tensor(places, torch.ones_like(places[0], dtype=x.dtype), (5, 5))
    return net.o((edges @ net.b((edges @ net.a(x)).relu())).relu())


# ----------------------------------------------------------------------------------------------------------------
# one maximum of everything, products of features
# ----------------------------------------------------------------------------------------------------------------

PLACES = torch.tensor([0, 0, 1, 2, 1])


@rows("a", PLACES, o=lambda: nn.Linear(16, 3))
def a_softmax_of_neighbours_written_out(net: Any, x: Tensor, to: Tensor) -> Tensor:
    y = net.a(x)
    y = (y - y.max()).exp()
    whole = torch.zeros(3, y.shape[1]).to(x).index_add_(0, to, y)
    return net.o(y / (whole[to] + 1e-16))


@rows("a", o=lambda: nn.Linear(16, 3))
def a_logarithm_of_a_softmax_written_out(net: Any, x: Tensor) -> Tensor:
    y = net.a(x).clone()
    y.sub_(y.amax().detach())
    return net.o(y - y.exp().sum(0, keepdim=True).log())


@rows("b", warns="max.default in module '(root)' reduces over the channels")
def exponentials_under_their_maximum(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    y = (y - y.max()).exp()
    return net.o(net.b((y @ y.T @ y) / y.sum(0)).relu())


@rows("a b", PLACES, b=lambda: nn.Linear(16, 6), e=lambda: nn.Embedding(9, 6), o=lambda: nn.Linear(15, 3))
def features_multiplied_with_each_other(net: Any, x: Tensor, number: Tensor) -> Tensor:
    x = net.b(net.a(x).relu()).relu()
    y = torch.cat([x, net.e(number), net.e(number + 3)], 1).view(len(x), -1, x.shape[1])
    return net.o(torch.cat([x, torch.bmm(y, y.transpose(1, 2)).flatten(1)], 1))


class SharedAttention(nn.Module):
    """One attention that is called twice (ALBERT, Perceiver)."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.end, self.heads = nn.Linear(6, 12), nn.Linear(12, 3), 2
        self.query, self.key, self.value = nn.Linear(12, 16), nn.Linear(12, 16), nn.Linear(12, 16)
        self.out = nn.Linear(16, 12)

    def attend(self, x: Tensor) -> Tensor:
        layers = (self.query, self.key, self.value)
        query, key, value = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in layers)
        return self.out(functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        x = x + self.attend(x)
        return self.end(x + self.attend(x))


@built("start query value", SEQUENCES)
def an_attention_that_is_called_twice() -> nn.Module:
    return SharedAttention()


# ----------------------------------------------------------------------------------------------------------------
# tokens picked, repeated and put in place
# ----------------------------------------------------------------------------------------------------------------

VISIBLE = torch.tensor([True, False, True, True, False, True])


@built("a b", SEQUENCES)
def visible_tokens_of_a_masked_autoencoder() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        y = net.a(x)
        visible = VISIBLE[: x.shape[1]].expand(x.shape[:2])
        y = y[visible].reshape(len(x), -1, y.shape[-1])
        return net.o(y + net.c(net.b(y).relu())).mean(1)

    parts = {"a": nn.Linear(6, 12), "b": nn.Linear(12, 16), "c": nn.Linear(16, 12), "o": nn.Linear(12, 3)}
    return Net(run, parts)


@built("a b", SEQUENCES)
def images_among_the_tokens_of_a_text() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        y, image = net.a(x), net.e(x[:, :2].flatten(0, 1))
        places = (torch.arange(x.shape[1]) % x.shape[1] < 2).expand(x.shape[:2])
        y = y.masked_scatter(places.unsqueeze(-1).expand_as(y), image)
        return net.o(y + net.c(net.b(y).relu()))

    parts = {"a": nn.Linear(6, 12), "e": nn.Linear(6, 12), "b": nn.Linear(12, 16), "c": nn.Linear(16, 12)}
    return Net(run, parts | {"o": nn.Linear(12, 3)})


@built("a b", SEQUENCES)
def tokens_repeated_by_their_length() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        y = net.a(x).repeat_interleave(torch.arange(x.shape[1]) % 2 + 1, 1)
        return net.o(net.b(y.relu()).relu())

    return Net(run, {"a": nn.Linear(6, 12), "b": nn.Linear(12, 16), "o": nn.Linear(16, 3)})


@built("a b", SEQUENCES)
def a_diagonal_over_tokens() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        y = net.a(x)
        y = (y[:, :, None] * y[:, None]).diagonal(dim1=1, dim2=2).mT
        return net.o(net.b(y).relu())

    return Net(run, {"a": nn.Linear(6, 12), "b": nn.Linear(12, 16), "o": nn.Linear(16, 3)})
