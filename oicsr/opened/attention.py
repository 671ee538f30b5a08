"""Attention with inner widths of its own: those of `nn.MultiheadAttention` are the width of its input."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from oicsr.networks.copying import FLAGS, HOOKS, copy_model
from oicsr.opened.code import freed, is_freed
from oicsr.opened.windows import OpenWindowAttention, is_window_attention
from oicsr.optimizers.held import held_optimizers
from oicsr.optimizers.rebinding import holds

FUSED = ("in_proj_weight", "in_proj_bias")
SEPARATE = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
PARTS = ("q_proj", "k_proj", "v_proj")


class OpenAttention(nn.Module):
    """Multi-head attention with the arguments, outputs and state of `nn.MultiheadAttention`, and free inner widths.

    Queries, keys and values have projections of their own, whose widths may differ from that of the input. Its state
    (`state_dict`) is that of `nn.MultiheadAttention`, with `in_proj_weight` in one piece.

    Args:
        source: The attention whose weights it takes over.

    Attributes:
        num_heads: How many heads there are.
        scale: What scores are multiplied with: that of the source, whatever goes later.
    """

    in_proj_bias = None  # what nn.TransformerEncoderLayer looks at before it takes a kernel that knows one width only

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear

    def __init__(self, source: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim, self.kdim, self.vdim = source.embed_dim, source.kdim, source.vdim
        self.num_heads, self.dropout, self.batch_first = source.num_heads, source.dropout, source.batch_first
        self.scale = source.head_dim**-0.5
        self.add_zero_attn = source.add_zero_attn
        self._fused = bool(source._qkv_same_embed_dim)
        self._qkv_same_embed_dim = False
        weights = (
            source.in_proj_weight.chunk(3)
            if self._fused
            else (source.q_proj_weight, source.k_proj_weight, source.v_proj_weight)
        )
        biases = source.in_proj_bias.chunk(3) if source.in_proj_bias is not None else (None, None, None)
        for name, weight, bias in zip(PARTS, weights, biases, strict=True):
            setattr(self, name, _linear(weight, bias))
        self.bias_k, self.bias_v = source.bias_k, source.bias_v
        self.out_proj = source.out_proj
        self.training = source.training
        for store in (*HOOKS, *FLAGS):  # hooks of the network's own, which keep attention maps
            vars(self)[store].update(vars(source)[store])
        self.register_state_dict_post_hook(_to_state)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_from_state)  # type: ignore[no-untyped-call]

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; see `nn.MultiheadAttention.forward` for arguments and outputs."""
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        single = query.dim() == 2
        if single:
            query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        k, v, added = self._with_more_keys(k, v)
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (q, k, v))
        if self.add_zero_attn:
            k, v = functional.pad(k, (0, 0, 0, 1)), functional.pad(v, (0, 0, 0, 1))
        causal = is_causal and key_padding_mask is None and not need_weights  # the mask is not read then
        attn_mask = None if causal else attn_mask
        mask = _joined_mask(attn_mask, key_padding_mask, query, self.num_heads, added + self.add_zero_attn)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * self.scale
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = functional.dropout(weights, dropout)
            mixed = weights @ v
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, mask, dropout, causal, scale=self.scale)
        output = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return _shaped(output, weights, single, self.batch_first, average_attn_weights)

    def _with_more_keys(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, int]:
        """Put the learned key and value behind the others, if there are any."""
        if self.bias_k is None or self.bias_v is None:
            return k, v, 0
        more_k, more_v = (bias.expand(k.shape[0], -1, -1) for bias in (self.bias_k, self.bias_v))
        return torch.cat([k, more_k], 1), torch.cat([v, more_v], 1), 1

    def extra_repr(self) -> str:
        """Return the widths."""
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}"


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
    return layer


def _joined_mask(
    attn_mask: Tensor | None, padding: Tensor | None, query: Tensor, heads: int, added: int
) -> Tensor | None:
    """Return both masks as one that is added to the scores, `(batch, heads or 1, tokens, keys)`; None without any."""
    masks = []
    if attn_mask is not None:
        mask = _additive(attn_mask, query)
        masks.append(mask.unflatten(0, (-1, heads)) if mask.dim() == 3 else mask[None, None])
    if padding is not None:
        masks.append(_additive(padding if padding.dim() == 2 else padding[None], query)[:, None, None])
    if not masks:
        return None
    total = masks[0] + masks[1] if len(masks) == 2 else masks[0]
    return functional.pad(total, (0, added)) if added else total


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype is not torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -math.inf)


def _shaped(
    output: Tensor, weights: Tensor | None, single: bool, batch_first: bool, average: bool
) -> tuple[Tensor, Tensor | None]:
    if weights is not None and average:
        weights = weights.mean(1)
    if single:
        return output.squeeze(0), None if weights is None else weights.squeeze(0)
    return (output if batch_first else output.transpose(0, 1)), weights


def _to_state(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Let the state have the names of `nn.MultiheadAttention`, unless a projection was replaced (by an adapter)."""
    if any(f"{prefix}{name}.weight" not in state for name in PARTS):
        return
    weights = [state.pop(f"{prefix}{name}.weight") for name in PARTS]
    biases = [state.pop(f"{prefix}{name}.bias", None) for name in PARTS]
    if module._fused:
        state[f"{prefix}in_proj_weight"] = torch.cat(weights)
    else:
        state.update({prefix + name: weight for name, weight in zip(SEPARATE, weights, strict=True)})
    if all(bias is not None for bias in biases):
        state[f"{prefix}in_proj_bias"] = torch.cat(biases)


def _from_state(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Read a state with the names of `nn.MultiheadAttention`, at the widths that the module has."""
    sizes = [getattr(module, name).weight.shape[0] for name in PARTS]
    fused, bias = (state.pop(prefix + name, None) for name in FUSED)
    weights = [state.pop(prefix + name, None) for name in SEPARATE]
    if fused is not None and fused.shape[0] == sum(sizes):
        weights = list(fused.split(sizes))
    for name, weight in zip(PARTS, weights, strict=True):
        if weight is not None:
            state[f"{prefix}{name}.weight"] = weight
    if bias is not None and bias.shape[0] == sum(sizes):
        for name, part in zip(PARTS, bias.split(sizes), strict=True):
            state[f"{prefix}{name}.bias"] = part


def open_attention(model: nn.Module) -> nn.Module:
    """Return a copy of a network in which every attention has inner widths that are free.

    There are three kinds: `nn.MultiheadAttention`, of which `nn.TransformerEncoderLayer` and its like and torchvision's
    `vit_b_16` are made; the attention in windows of torchvision's Swin transformers; and what is written out in a
    module's own code, which reshapes to a width that it knows from elsewhere (`x.reshape(B, N, C)`; most of timm's). In
    such code, -1 takes the place of the width. Outputs, masks and `state_dict` stay. PyTorch's fused kernel for whole
    encoder layers in evaluation mode is not used any more, and tensors without elements cannot be reshaped to -1.

    Args:
        model: The network; left as it is. A module that is an attention itself is replaced as well.

    Raises:
        ValueError: There is no such module, or one of a class derived from `nn.MultiheadAttention`, which may compute
            something else, or the network holds an optimiser of its parameters; says which.
    """
    memo: dict[int, Any] = {}
    twin = copy_model(model, memo=memo)
    found = {
        name: module
        for name, module in twin.named_modules()
        if isinstance(module, nn.MultiheadAttention) or is_window_attention(module)
    }
    written = [(module, kind) for module in twin.modules() if (kind := freed(module)) is not None]
    if not found and not written:
        raise ValueError(
            f"{type(model).__name__} holds no attention whose widths open_attention can free: no "
            "nn.MultiheadAttention, no attention in windows of torchvision, and none that reshapes to a width in its "
            "own code, at hand as a file, and is known for one by its name or a softmax"
        )
    for name, module in found.items():
        if isinstance(module, nn.MultiheadAttention) and type(module) is not nn.MultiheadAttention:
            raise ValueError(f"{name!r} is a {type(module).__name__}: only nn.MultiheadAttention itself is replaced")
    parts = [parameter for module in found.values() for parameter in module.parameters()]
    for attribute, optimizer in held_optimizers(model, twin, memo):
        if holds(optimizer, {*map(id, parts)}):
            raise ValueError(
                f"the {type(optimizer).__name__} in {attribute} would not train the parameters that open_attention "
                "makes: give the network its optimiser afterwards"
            )
    for module, kind in written:
        object.__setattr__(module, "__class__", kind)
    opened: Mapping[int, nn.Module] = {id(module): _opened(module) for module in set(found.values())}
    if id(twin) in opened:
        return opened[id(twin)]
    for parent in twin.modules():
        for name, child in list(parent._modules.items()):  # a module may have two names in it
            if id(child) in opened:
                setattr(parent, name, opened[id(child)])
    return twin


def opened_modules(model: nn.Module) -> dict[str, str]:
    """Return the names of the modules that `open_attention` changed, where parameters do not tell.

    With each goes the name of what holds the layers that it works on: itself, or what it is in if it has none.
    """
    found = {name: m for name, m in model.named_modules() if isinstance(m, OpenWindowAttention) or is_freed(m)}
    return {
        name: name if any(True for _ in module.parameters()) else name.rpartition(".")[0]
        for name, module in found.items()
    }


def _opened(module: nn.Module) -> nn.Module:
    return OpenAttention(module) if isinstance(module, nn.MultiheadAttention) else OpenWindowAttention(module)
