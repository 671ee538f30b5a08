"""Known transformers: half of an attention goes exactly, in one call, and what is left is exported and compiled."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import oicsr
from tests.oicsr.attentions import Grouped, Network
from tests.oicsr.networks import drop_third
from tests.oicsr.test_attention import check_exact, found

# Swin: a stage of plain windows, a merging of patches, and plain and shifted windows; as many as of 7 in 224 pixels
SMALL = {
    "vit_tiny_patch16_224": {"depth": 2, "img_size": 64},
    "swin_tiny_patch4_window7_224": {"depths": (1, 2), "num_heads": (3, 6), "img_size": 64, "window_size": 2},
}
SHALLOW = {
    "vit_tiny_patch16_224": {"depth": 4, "img_size": 64},
    "swin_tiny_patch4_window7_224": {"depths": (2, 2, 2, 2), "img_size": 224},
}


def timm_model(name: str, **options: object) -> tuple[nn.Module, Tensor]:
    """Return a network of timm's with an image for it."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    size = int(options["img_size"])  # type: ignore[call-overload]
    return timm.create_model(name, drop_path_rate=0.0, **options).eval(), torch.randn(1, 3, size, size)


def torchvision_vit(depth: int) -> tuple[nn.Module, Tensor]:
    """Return torchvision's ViT-B/16, of `depth` blocks for small images, with its attentions opened, and an image."""
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(64, 16, depth, num_heads=12, hidden_dim=768, mlp_dim=3072)
    nn.init.normal_(model.heads.head.weight, std=0.02)  # zeros, as it comes
    return oicsr.open_attention(model).eval(), torch.randn(1, 3, 64, 64)


def weights_of_attention(model: nn.Module) -> int:
    """Return how many weights the attentions of a network hold."""
    return sum(p.numel() for name, p in model.named_parameters() if ".attn." in name or "attention" in name)


@pytest.mark.slow
@pytest.mark.parametrize("granularity", ["channel", "head"])
@pytest.mark.parametrize("name", SMALL)
def test_timm_transformers_lose_what_was_emptied(name: str, granularity: str) -> None:
    model, images = timm_model(name, **SMALL[name])
    model, images = model.double(), images.double()
    couplings = found(model, images, granularity)
    assert any(c.kind == granularity and ".attn." in c.name for c in couplings)
    check_exact(model, (images,), couplings, drop_third(couplings))


@pytest.mark.slow
@pytest.mark.parametrize("granularity", ["channel", "head"])
def test_torchvisions_transformer_loses_what_was_emptied(granularity: str) -> None:
    model, images = torchvision_vit(2)
    model, images = model.double(), images.double()
    couplings = found(model, images, granularity)
    assert any(c.kind == granularity and "attention" in c.name for c in couplings)
    check_exact(model, (images,), couplings, drop_third(couplings))


@pytest.mark.slow
@pytest.mark.parametrize("granularity", ["channel", "head"])
@pytest.mark.parametrize("name", [*SHALLOW, "torchvision vit_b_16"])
def test_half_of_the_macs_goes_in_one_call_half_of_the_attention_included(name: str, granularity: str) -> None:
    model, images = timm_model(name, **SHALLOW[name]) if name in SHALLOW else torchvision_vit(2)
    before = oicsr.count_macs(model, images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", oicsr.UnprunedChannelsWarning)
        result = oicsr.prune(model, images, macs_kept=0.5, granularity=granularity)  # type: ignore[arg-type]
    assert oicsr.count_macs(result.model, images) == pytest.approx(before / 2, rel=0.02)
    assert 0.4 < weights_of_attention(result.model) / weights_of_attention(model) < 0.6


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SMALL, "torchvision vit_b_16", "grouped queries"])
def test_a_pruned_network_gives_the_same_in_onnx_runtime_and_compiled(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    if name == "grouped queries":
        model: nn.Module = Network(Grouped(rotate=True, repeat=True), 16).eval()
        x = torch.randn(2, 5, 16)
    else:
        model, x = timm_model(name, **SMALL[name]) if name in SMALL else torchvision_vit(1)
    couplings = found(model, x, "head")
    kept = {c.name: list(range((c.num_channels + 1) // 2)) for c in couplings}
    assert any(c.kind == "head" for c in couplings)
    small = oicsr.remove_channels(model, oicsr.PruningPlan.from_kept(couplings, kept))
    path = tmp_path / "small.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(small, (x,), str(path), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    expected = small(x).detach()
    assert float(expected.abs().max()) > 0
    torch.testing.assert_close(torch.from_numpy(given), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(torch.compile(small, backend="aot_eager")(x).detach(), expected, rtol=1e-3, atol=1e-4)
