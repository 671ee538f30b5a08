"""The transformers of the attention table: how each is built, small, and what it is given.

Those of timm and torchvision have two blocks where their constructors allow it. Those of Hugging Face's `transformers`,
where the package is installed, are small configurations with random weights. All widths of attention that
`oicsr.open_attention` can free are free, for torch-pruning as well.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from benchmarks.coverage.tasks import freely

TWO: dict[str, Any] = {"depth": 2, "img_size": 64}
TIMM: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": TWO,
    "deit_tiny_patch16_224": TWO,
    "vit_relpos_small_patch16_224": TWO,
    "cait_xxs24_224": TWO,
    "xcit_nano_12_p16_224": {"depth": 2},
    "beit_base_patch16_224": TWO,
    "eva02_tiny_patch14_224": {"depth": 2, "img_size": 56},
    "samvit_base_patch16_224": {"depth": 2, "global_attn_indexes": (1,)},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 2, 1)},
    "swinv2_tiny_window8_256": {"depths": (1, 1, 2, 1)},
    "maxvit_nano_rw_256": {"depths": (1, 1, 1, 1)},
    "coatnet_nano_rw_224": {"depths": (1, 1, 1, 1)},
    "pvt_v2_b0": {"depths": (1, 1, 1, 1)},
    "efficientformer_l1": {},
    "efficientformerv2_s0": {},
    "mobilevit_xxs": {},
    "mobilevitv2_050": {},
    "mvitv2_tiny": {},
    "nextvit_small": {"depths": (1, 2, 5, 2)},
    "tiny_vit_5m_224": {},
    "levit_128s": {},
    "nest_tiny": {"depths": (1, 1, 2), "embed_dims": (96, 192, 384), "num_heads": (3, 6, 12)},
    "gcvit_xxtiny": {"depths": (1, 1, 2, 1), "num_heads": (2, 4, 8, 16)},
    "twins_svt_small": {"depths": (1, 1, 2, 1)},
    "davit_tiny": {"depths": (1, 1, 1, 1)},
    "convit_tiny": {"depth": 2},
    "crossvit_tiny_240": {},
    "volo_d1_224": {"layers": (1, 1, 1, 1), "embed_dims": (192, 384, 384, 384), "num_heads": (6, 12, 12, 12)},
    "edgenext_xx_small": {},
    "efficientvit_b0": {},
    "efficientvit_m0": {},
    "hieradet_small": {},
}
# Their functions pass the depths themselves and refuse others: timm's module and class, called with all that they pass.
CLASSES = {
    "nest_tiny": ("nest", "Nest"),
    "gcvit_xxtiny": ("gcvit", "GlobalContextVit"),
    "volo_d1_224": ("volo", "VOLO"),
}
TORCHVISION = "vit_b_16 swin_t swin_v2_t maxvit_t".split()
HUGGING_FACE = "bert vit detr_decoder llama t5 whisper_encoder gpt2".split()
SOURCES = {"torchvision": TORCHVISION, "timm": [*TIMM], "transformers": HUGGING_FACE}
SIZE, HEADS, LAYERS, WORDS = 32, 4, 2, 100

Built = tuple[nn.Module, Any]  # a network and the arguments of one call: a tensor, or a dictionary of them


def listed() -> list[str]:
    """Return the names of all networks of the table that can be built here."""
    installed = {"torchvision", "timm"} | ({"transformers"} if find_spec("transformers") else set())
    return [f"{source}:{name}" for source, names in SOURCES.items() if source in installed for name in names]


def every_network() -> list[str]:
    """Return the names of all networks of the table, wherever it is made."""
    return [f"{source}:{name}" for source, names in SOURCES.items() for name in names]


def build(name: str) -> Built:
    """Return a network with random weights and two inputs.

    Raises:
        KeyError: The table has no network of this name.
    """
    source, _, short = name.partition(":")
    torch.manual_seed(0)
    builders: dict[str, Callable[[str], Built]] = {
        "torchvision": _torchvision,
        "timm": _timm,
        "transformers": _hugging_face,
    }
    model, inputs = builders[source](short)
    return (freely(model) or model).eval(), inputs


def _timm(name: str) -> Built:
    import timm

    model: Any
    if name in CLASSES:
        file, kind = CLASSES[name]
        model = getattr(import_module(f"timm.models.{file}"), kind)(num_classes=10, **TIMM[name])
    else:
        model = timm.create_model(name, num_classes=10, **TIMM[name])
    known: Any = timm.get_pretrained_cfg(name)
    side = TIMM[name].get("img_size") or known.input_size[-1]
    return model, torch.randn(2, 3, side, side)


def _torchvision(name: str) -> Built:
    import torchvision

    small = {"image_size": 32} if name == "vit_b_16" else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=10, **small)
    if name == "vit_b_16":
        encoder: Any = model.encoder
        encoder.layers = encoder.layers[:LAYERS]
    side = 32 if small else 224 if name == "maxvit_t" else 64
    return model, torch.randn(2, 3, side, side)


def _hugging_face(name: str) -> Built:
    import transformers

    words = torch.randint(0, WORDS, (2, 8))
    common = {"vocab_size": WORDS, "hidden_size": SIZE, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    wide = {**common, "intermediate_size": 2 * SIZE}
    if name == "bert":
        return transformers.BertModel(transformers.BertConfig(**wide)), {"input_ids": words}
    if name == "vit":
        seen = {key: value for key, value in wide.items() if key != "vocab_size"}
        config = transformers.ViTConfig(**seen, image_size=32, patch_size=8)
        return transformers.ViTModel(config), {"pixel_values": torch.randn(2, 3, 32, 32)}
    if name == "llama":
        config = transformers.LlamaConfig(**wide, num_key_value_heads=HEADS // 2)
        return transformers.LlamaModel(config), {"input_ids": words, "use_cache": False}
    if name == "t5":
        config = transformers.T5Config(
            vocab_size=WORDS, d_model=SIZE, d_kv=8, num_heads=HEADS, d_ff=2 * SIZE, num_layers=LAYERS
        )
        return transformers.T5EncoderModel(config), {"input_ids": words}
    if name == "gpt2":
        config = transformers.GPT2Config(vocab_size=WORDS, n_embd=SIZE, n_layer=LAYERS, n_head=HEADS)
        return transformers.GPT2Model(config), {"input_ids": words, "use_cache": False}
    return _encoder_or_decoder(name)


def _encoder_or_decoder(name: str) -> Built:
    from transformers import DetrConfig, WhisperConfig
    from transformers.models.detr.modeling_detr import DetrDecoder
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    if name == "detr_decoder":
        config = DetrConfig(
            d_model=SIZE, decoder_layers=LAYERS, decoder_attention_heads=HEADS, decoder_ffn_dim=2 * SIZE
        )
        names = "inputs_embeds encoder_hidden_states spatial_position_embeddings object_queries_position_embeddings"
        queries, places = torch.randn(2, 5, SIZE), torch.randn(2, 9, SIZE)
        given = dict(zip(names.split(), (queries, places, places.flip(0), queries.flip(0)), strict=True))
        return DetrDecoder(config), given
    if name != "whisper_encoder":
        raise KeyError(name)
    config = WhisperConfig(
        d_model=SIZE,
        encoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        encoder_ffn_dim=2 * SIZE,
        num_mel_bins=16,
        max_source_positions=20,
    )
    return WhisperEncoder(config), {"input_features": torch.randn(2, 16, 40)}
