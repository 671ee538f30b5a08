"""What torch-pruning is told of attention, as its users do it: how many heads there are, and what follows by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

QUERIES = set(
    "qkv to_qkv qkv_proj c_attn qk kv q k v wq wk wv query key value q_proj k_proj v_proj q_conv k_conv v_conv".split()
)
FUSED = {"qkv": 3, "to_qkv": 3, "qkv_proj": 3, "c_attn": 3, "qk": 2, "kv": 2}  # how many of the three a layer gives
COUNTS = ("num_heads", "num_attention_heads", "n_heads", "heads", "n_head")


def heads_of(model: nn.Module, fewest: int = 1) -> dict[nn.Module, int]:
    """Return the layers that give queries, keys and values, to the number of their heads, from `fewest` on."""
    found = {}
    for module in model.modules():
        for name, layer in _projections(module).items():
            count = next((vars(module)[key] for key in COUNTS if type(vars(module).get(key)) is int), 0)
            width = vars(module).get("head_dim", 0)
            if count or width:
                found[layer] = count or layer.weight.shape[0] // FUSED.get(name, 1) // width
    return {layer: count for layer, count in found.items() if count >= fewest}


def groups_of(model: nn.Module) -> dict[nn.Module, int]:
    """Return PyTorch's own attentions, to the number of their heads, by which their widths have to divide."""
    return {module: module.num_heads for module in model.modules() if isinstance(module, nn.MultiheadAttention)}


def set_by_hand(model: nn.Module, heads: Mapping[nn.Module, int]) -> None:
    """Set the numbers on the modules: of heads, of the channels of one, and of all; torch-pruning leaves them."""
    patches = getattr(model, "conv_proj", None)
    if isinstance(patches, nn.Conv2d) and "hidden_dim" in vars(model):  # torchvision's vision transformers
        vars(model)["hidden_dim"] = patches.out_channels
    for module in model.modules():
        told = {name: layer for name, layer in _projections(module).items() if layer in heads}
        if not told:
            continue
        name, layer = next(iter(told.items()))
        width = int(layer.weight.shape[0]) // FUSED.get(name, 1)
        values = {
            **dict.fromkeys(COUNTS, heads[layer]),
            **dict.fromkeys(("head_dim", "attention_head_size"), width // heads[layer]),
            **dict.fromkeys(("attn_dim", "all_head_size", "inner_dim", "embed_dim"), width),
        }
        for key, value in values.items():
            if type(vars(module).get(key)) is int:
                setattr(module, key, value)


def _projections(module: nn.Module) -> dict[str, Any]:
    """Return the layers of a module that give queries, keys or values; of one with a norm, the layer before it."""
    found: dict[str, Any] = {}
    for name, child in module.named_children():
        if name in QUERIES:
            parts = [part for part in child.modules() if isinstance(getattr(part, "weight", None), nn.Parameter)]
            found |= {name: parts[0]} if parts else {}
    return found
