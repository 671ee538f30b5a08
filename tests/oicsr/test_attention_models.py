"""Known transformers of timm: half of an attention goes exactly."""

from __future__ import annotations

import pytest
import torch

from tests.oicsr.networks import drop_third
from tests.oicsr.test_attention import check_exact, found


@pytest.mark.slow
@pytest.mark.parametrize("granularity", ["channel", "head"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {"depth": 2, "img_size": 64}),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 2, 1)}),
    ],
)
def test_timm_transformers_lose_what_was_emptied(name: str, options: dict[str, object], granularity: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    size = int(options.get("img_size", 224))  # type: ignore[call-overload]
    model = timm.create_model(name, drop_path_rate=0.0, **options).double().eval()
    images = torch.randn(2, 3, size, size, dtype=torch.float64)
    couplings = found(model, images, granularity)
    assert any(c.kind == granularity and ".attn." in c.name for c in couplings)
    check_exact(model, (images,), couplings, drop_third(couplings))
