"""Small attentions in the forms that people write them, for the tests of what can go."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class Shape(NamedTuple):
    """Heads, and channels of each."""

    heads: int
    width: int


class Fused(nn.Module):
    """One projection for queries, keys and values, in the manner of timm."""

    def __init__(self, width: int = 12, heads: int = 3, per_head: int = 4, form: str = "kernel") -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = heads, per_head, heads * per_head
        self.scale = per_head**-0.5
        self.form = form
        self.qkv = nn.Linear(width, 3 * self.attn_dim)
        self.proj = nn.Linear(self.attn_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.form == "kernel":
            x = functional.scaled_dot_product_attention(q, k, v)
        elif self.form == "stored":
            x = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        else:
            x = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1) @ v
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, self.attn_dim))


class Separate(nn.Module):
    """Projections of their own, also of another input, with the width of a head left open."""

    def __init__(self, width: int = 12, heads: int = 3, per_head: int = 4, form: str = "kernel", causal: bool = False):
        super().__init__()
        self.heads, self.form, self.causal = heads, form, causal
        self.q, self.k = nn.Linear(width, heads * per_head), nn.Linear(width, heads * per_head)
        self.v, self.out = nn.Linear(width, heads * per_head), nn.Linear(heads * per_head, width)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        memory = x if memory is None else memory
        q, k, v = self.q(x), self.k(memory), self.v(memory)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        if self.form == "kernel":
            x = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        elif self.form == "einsum":
            scores = torch.einsum("bhid,bhjd->bhij", q, k) * q.size(-1) ** -0.5
            x = torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v)
        else:
            x = functional.scaled_dot_product_attention(q, k, v, scale=0.3)
        return self.out(x.transpose(1, 2).flatten(2))


class RotatedPairs(Separate):
    """Neighbouring channels of queries and keys are rotated, as GPT-J does; the width of a head is left open."""

    def rotated(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[-2])[:, None] * 0.1 ** torch.arange(x.shape[-1] // 2)
        even, odd = x[..., ::2], x[..., 1::2]
        turned = even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos()
        return torch.stack(turned, -1).flatten(-2)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = functional.scaled_dot_product_attention(self.rotated(q), self.rotated(k), v)
        return self.out(x.transpose(1, 2).flatten(2))


class Decomposed(nn.Module):
    """Over a map of 2 x 3: positions of rows and columns are looked up by the queries, which lie in the batch by head.

    So do SAM and, with pooling of the queries by a depthwise convolution, MViTv2.
    """

    def __init__(self, width: int = 12, heads: int = 3, pool: bool = False) -> None:
        super().__init__()
        per_head = width // heads
        self.num_heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.rows, self.columns = (nn.Parameter(torch.randn(size, per_head)) for size in (3, 5))
        self.pool = nn.Conv2d(per_head, per_head, 3, padding=1, groups=per_head) if pool else nn.Identity()
        self.norm = nn.LayerNorm(per_head) if pool else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        (batch, tokens, _), (height, width) = x.shape, (2, 3)
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.reshape(3, batch * self.num_heads, tokens, -1).unbind(0)
        q = self.norm(self.pool(q.reshape(-1, height, width, q.shape[-1]).permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        rows, columns = (
            table[torch.arange(size)[:, None] - torch.arange(size) + size - 1]
            for table, size in ((self.rows, height), (self.columns, width))
        )
        by_row, by_column = torch.einsum("bhwc,hkc->bhwk", q, rows), torch.einsum("bhwc,wkc->bhwk", q, columns)
        bias = (by_row[..., :, None] + by_column[..., None, :]).reshape(-1, tokens, tokens)
        x = functional.scaled_dot_product_attention(q.flatten(1, 2), k, v, attn_mask=bias)
        return self.proj(x.reshape(batch, self.num_heads, tokens, -1).transpose(1, 2).reshape(batch, tokens, -1))


class Grouped(nn.Module):
    """Two heads of queries for each of keys and values, rotated or not, as decoders have them."""

    def __init__(self, width: int = 16, heads: int = 4, groups: int = 2, rotate: bool = False, repeat: bool = False):
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = heads, groups, 4
        self.rotate, self.repeat = rotate, repeat
        self.q_proj = nn.Linear(width, heads * 4, bias=False)
        self.k_proj, self.v_proj = nn.Linear(width, groups * 4, bias=False), nn.Linear(width, groups * 4, bias=False)
        self.o_proj = nn.Linear(heads * 4, width, bias=False)
        self.register_buffer("frequencies", torch.tensor([1.0, 0.1]))

    def rotated(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[-2])[:, None] * self.frequencies
        angles = torch.cat([angles, angles], -1)
        first, second = x.chunk(2, -1)
        return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q = self.q_proj(x).view(batch, tokens, -1, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(batch, tokens, -1, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(batch, tokens, -1, self.head_dim).transpose(1, 2)
        if self.rotate:
            q, k = self.rotated(q), self.rotated(k)
        if self.repeat:
            times = self.num_heads // self.num_kv_heads
            k, v = (t[:, :, None].expand(-1, -1, times, -1, -1).reshape(batch, -1, tokens, t.shape[-1]) for t in (k, v))
            x = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            x = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(x.transpose(1, 2).reshape(batch, tokens, -1))


class Masked(nn.Module):
    """Grouped queries under an explicit mask, with gates: a number per head, one computed per head, or per channel."""

    def __init__(self, width: int, heads: int, groups: int, per_head: int, mask: str, gate: str, norm: bool) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.mask, self.gate = heads, groups, mask, gate
        self.q, self.out = nn.Linear(width, heads * per_head), nn.Linear(heads * per_head, width)
        self.k, self.v = nn.Linear(width, groups * per_head), nn.Linear(width, groups * per_head)
        self.norm = nn.LayerNorm(per_head) if norm else nn.Identity()
        self.scales = nn.Parameter(torch.rand(heads, 1, 1) + 0.5) if gate == "number" else None
        sizes = {"head": heads, "channel": heads * per_head}
        self.gates = nn.Linear(width, sizes[gate]) if gate in sizes else None

    def bias(self, tokens: int, scores: Tensor) -> Tensor:
        """Return the scores `(batch, heads, tokens, tokens)` under the mask, in one of the forms that people write."""
        later = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
        if self.mask == "filled":
            return scores.masked_fill(later, -torch.inf)
        if self.mask == "added":
            return scores + torch.zeros(tokens, tokens, dtype=scores.dtype).masked_fill(later, -1e4)
        return torch.where(later, torch.finfo(scores.dtype).min, scores) if self.mask == "chosen" else scores

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q = self.norm(self.q(x).view(batch, tokens, self.num_heads, -1)).transpose(1, 2)
        k = self.norm(self.k(x).view(batch, tokens, self.num_kv_heads, -1)).transpose(1, 2)
        v = self.v(x).view(batch, tokens, self.num_kv_heads, -1).transpose(1, 2)
        if self.mask == "kernel":
            allowed = torch.ones(tokens, tokens, dtype=torch.bool).tril()
            mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed, enable_gqa=True)
        else:
            k, v = (part.repeat_interleave(self.num_heads // self.num_kv_heads, 1) for part in (k, v))
            scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
            mixed = self.bias(tokens, scores).softmax(-1) @ v
        mixed = mixed if self.scales is None else mixed * self.scales
        if self.gate == "head":
            mixed = mixed * self.gates(x).sigmoid().transpose(1, 2)[..., None]
        mixed = mixed.transpose(1, 2).reshape(batch, tokens, -1)
        return self.out(mixed * self.gates(x).sigmoid() if self.gate == "channel" else mixed)


class Rigid(nn.Module):
    """Reshapes back to the width of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 3
        self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, channels = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        x = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, channels))


class Tables(nn.Module):
    """A table of relative positions per head, talking heads, and a gate per head."""

    def __init__(self, heads: int = 4, talking: bool = False) -> None:
        super().__init__()
        self.num_heads = heads
        self.table = nn.Parameter(torch.randn(9, heads))
        self.register_buffer("places", (torch.arange(5)[:, None] - torch.arange(5)[None] + 4).flatten())
        self.gate = nn.Parameter(torch.rand(heads, 1, 1))
        self.talk = nn.Linear(heads, heads) if talking else None
        self.qkv, self.proj = nn.Linear(12, 3 * heads * 3), nn.Linear(heads * 3, 12)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.places].view(5, 5, -1).permute(2, 0, 1)
        scores = q @ k.transpose(-2, -1) * 0.5 + bias
        if self.talk is not None:
            scores = self.talk(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = scores.softmax(-1) @ v * self.gate
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, -1))


class CrossCovariance(nn.Module):
    """Softmax over channels: only heads can go."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 3
        self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 4, 1).unbind(0)
        x = (q @ k.transpose(-2, -1) * 0.1).softmax(-1) @ v
        return self.proj(x.permute(0, 3, 1, 2).reshape(batch, tokens, -1))


class Network(nn.Module):
    """An attention between a residual and a head, as the library sees it in a transformer."""

    def __init__(self, attention: nn.Module, width: int = 12) -> None:
        super().__init__()
        self.norm, self.attention, self.head = nn.LayerNorm(width), attention, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + self.attention(self.norm(x))).mean(1))


class ClassToken(nn.Module):
    """Attention of the first token to all others, which reshapes back to the width of its input."""

    def __init__(self, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.num_heads = heads
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, channels = x.shape
        q = self.q(x[:, :1]).reshape(batch, 1, self.num_heads, -1).transpose(1, 2)
        k, v = (part(x).reshape(batch, tokens, self.num_heads, -1).transpose(1, 2) for part in (self.k, self.v))
        return self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, 1, channels))


class Sized(nn.Module):
    """Keeps its widths in tuples, by position or by name, and the sizes of its pieces in a list."""

    def __init__(self, named: bool) -> None:
        super().__init__()
        self.shape = Shape(3, 4) if named else (3, 4)
        self.sizes, self.named = [12, 12, 12], named
        self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        pieces = self.qkv(x).chunk(3, -1) if self.named else self.qkv(x).split(self.sizes, -1)
        q, k, v = (piece.unflatten(-1, self.shape).transpose(1, 2) for piece in pieces)
        return self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Transposed(nn.Module):
    """A layer whose weight is `(inputs, outputs)`, and which keeps its width as a number, as that of GPT-2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.nf = outputs
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs) / 4), nn.Parameter(torch.randn(outputs) / 4)

    def forward(self, x: Tensor) -> Tensor:
        out = (*x.shape[:-1], self.nf)
        return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(out)


class Generative(nn.Module):
    """Attention in the manner of GPT-2: its own layers, and a scale in a tensor."""

    def __init__(self, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.split_size = heads, width // heads, width
        self.c_attn, self.c_proj = Transposed(width, 3 * width), Transposed(width, width)

    def forward(self, x: Tensor) -> Tensor:
        pieces = self.c_attn(x).split(self.split_size, dim=2)
        q, k, v = (piece.view(*x.shape[:2], self.num_heads, self.head_dim).transpose(1, 2) for piece in pieces)
        scores = q @ k.transpose(-1, -2) / torch.full([], v.shape[-1] ** 0.5, dtype=q.dtype)
        x = (scores.softmax(-1) @ v).transpose(1, 2).contiguous()
        return self.c_proj(x.view(*x.shape[:2], self.num_heads * self.head_dim))


class Paired(nn.Module):
    """Grouped queries whose numbers only fit together: the width of a head is left to the code."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.heads, self.kv_heads = 4, 2
        self.q, self.out = nn.Linear(width, 16), nn.Linear(16, width)
        self.k, self.v = nn.Linear(width, 8), nn.Linear(width, 8)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (part(x).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2) for part in (self.k, self.v))
        x = functional.scaled_dot_product_attention(q, k, v, scale=0.4, enable_gqa=True)
        return self.out(x.transpose(1, 2).flatten(2))


class Unnamed(nn.Module):
    """Keeps the number of heads under a name that does not say so; the scale follows the width of a head."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.parts = 3
        self.qkv, self.out = nn.Linear(width, 36), nn.Linear(12, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.parts, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        x = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v
        return self.out(x.transpose(1, 2).flatten(2))


class Stacked(nn.Module):
    """Heads stand behind one another in the batch, as in the set transformer; the scale is that of the whole width."""

    def __init__(self, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.dim, self.num_heads = width, heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        size = self.dim // self.num_heads
        q, k, v = (torch.cat(part(x).split(size, 2), 0) for part in (self.q, self.k, self.v))
        mixed = (q.bmm(k.transpose(1, 2)) / math.sqrt(self.dim)).softmax(2).bmm(v)
        return self.out(torch.cat(mixed.split(len(x), 0), 2))
