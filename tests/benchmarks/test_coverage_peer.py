"""What torch-pruning is told before it is counted: it has to fail by itself, not by how it is asked."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks.coverage import examine as coverage
from benchmarks.coverage.peer import groups_of, heads_of, set_by_hand


class Attention(nn.Module):
    """Attention as timm writes it, with a norm behind its queries."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = heads, 12 // heads, 12
        self.qkv = nn.Linear(8, 36)
        self.norm = nn.LayerNorm(12 // heads)


class Split(nn.Module):
    """Attention that knows the width of a head alone, and whose queries have a norm with them."""

    def __init__(self) -> None:
        super().__init__()
        self.head_dim = 4
        self.q = nn.Sequential(nn.Linear(8, 12), nn.LayerNorm(12))
        self.k = nn.Linear(8, 12)


def test_heads_and_their_numbers() -> None:
    several, one, split = Attention(3), Attention(1), Split()
    model = nn.Sequential(several, one, split)
    assert heads_of(model) == {several.qkv: 3, one.qkv: 1, split.q[0]: 3, split.k: 3}
    assert heads_of(model, fewest=2) == {several.qkv: 3, split.q[0]: 3, split.k: 3}
    several.qkv = nn.Linear(8, 24)  # what the tool leaves: two heads of four channels
    set_by_hand(model, {several.qkv: 2})
    assert (several.num_heads, several.head_dim, several.attn_dim) == (2, 4, 8)
    assert (one.num_heads, one.head_dim, split.head_dim) == (1, 12, 4)


class TwoMaps(nn.Module):
    """A backbone that gives two maps by name, as a detector's does."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return both."""
        x = self.first(x).relu()
        return {"one": x, "two": self.second(x).relu()}


class Transformer(nn.Module):
    """PyTorch's own attention over patches, whose number of channels the code keeps (torchvision's form)."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_dim = 24
        self.conv_proj = nn.Conv2d(3, 24, 8, 8)
        self.attention = nn.MultiheadAttention(24, 3, batch_first=True)
        self.last = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Attend to patches, and average over them."""
        x = self.conv_proj(x).reshape(len(x), self.hidden_dim, -1).permute(0, 2, 1)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        scores: Tensor = self.last(x.mean(1))
        return scores


@pytest.mark.parametrize("build", [TwoMaps, Transformer])
def test_the_peer_is_told_what_its_users_tell_it(build: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_pruning")
    monkeypatch.setattr(coverage, "_prepare", lambda _: (build().eval(), torch.randn(2, 3, 32, 32)))
    assert coverage.examine_peer("any")["torch_pruning"] == "yes"


def test_widths_of_pytorch_attention_go_in_equal_parts() -> None:
    model = Transformer()
    assert groups_of(model) == {model.attention: 3}
    assert heads_of(model) == {}
