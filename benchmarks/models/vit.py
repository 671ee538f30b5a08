"""Small vision transformers, for digits and for CIFAR: pre-norm blocks of attention and an MLP, as in ViT.

Dosovitskiy et al., "An Image is Worth 16x16 Words" (2021), with the mean over the patches in the place of a class token
(Beyer et al., "Better plain ViT baselines for ImageNet-1k", 2022). Queries, keys and values have layers of their own,
and the code leaves widths of heads open, so that channels of queries and keys, channels of values, and heads can go.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.models.initialization import initialize


class Attention(nn.Module):
    """Self-attention of `num_heads` heads."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, tokens, width)` to the same shape."""
        query, key, value = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (batch, heads, tokens, width of a head)
            for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        result: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return result


class Block(nn.Module):
    """Attention and an MLP, each behind a LayerNorm and beside a residual connection."""

    def __init__(self, width: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, num_heads)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, tokens, width)` to the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))  # type: ignore[no-any-return]


class ViT(nn.Module):
    """A vision transformer.

    Args:
        image: Channels and side of the images.
        patch: Side of a patch.
        width: Width of the residual stream.
        num_heads: Heads of each attention.
        hidden: Width of each MLP.
        depth: Blocks.
        num_classes: Outputs.
    """

    def __init__(
        self, image: tuple[int, int], patch: int, width: int, num_heads: int, hidden: int, depth: int, num_classes: int
    ) -> None:
        super().__init__()
        channels, side = image
        self.embed = nn.Conv2d(channels, width, patch, stride=patch)
        # ViT's 0.02 is for Adam: with SGD, positions that small are learned after many epochs only
        self.positions = nn.Parameter(0.5 * torch.randn((side // patch) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, num_heads, hidden) for _ in range(depth)))
        self.norm, self.classifier = nn.LayerNorm(width), nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, channels, side, side)` to `(batch, num_classes)`."""
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.classifier(self.norm(self.blocks(tokens)).mean(1))
        return logits


def digits_vit(num_classes: int) -> nn.Module:
    """Build the ViT for 8x8 digits: 16 patches, 3 blocks of width 48 with 4 heads."""
    return initialize(ViT((1, 8), 2, 48, 4, 96, 3, num_classes))


def vit(num_classes: int) -> nn.Module:
    """Build the ViT for CIFAR: 64 patches, 6 blocks of width 192 with 6 heads."""
    return initialize(ViT((3, 32), 4, 192, 6, 384, 6, num_classes))
