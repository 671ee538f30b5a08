"""Small attentions in the forms that people write them, for the tests of what can go."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


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
