"""The module in the place of `nn.MultiheadAttention`: the same function and state, and inner widths that are free."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import oicsr
from oicsr import PruningPlan, UnprunedChannelsWarning
from tests.oicsr.networks import drop_third
from tests.oicsr.test_attention import check_exact, found

FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch first": {"batch_first": True},
    "without bias": {"bias": False},
    "other widths": {"kdim": 5, "vdim": 7},
    "more keys": {"add_bias_kv": True, "add_zero_attn": True},
}


def masks(batch: int, tokens: int, keys: int) -> list[dict[str, Any]]:
    """Return calls with every kind of mask."""
    causal = torch.ones(tokens, keys).triu(1).bool()
    padding = torch.zeros(batch, keys).bool()
    padding[0, -1] = True
    return [
        {},
        {"attn_mask": causal},
        {"attn_mask": causal, "is_causal": True},
        {"key_padding_mask": padding},
        {"attn_mask": causal, "key_padding_mask": padding},
        {"attn_mask": torch.randn(batch * 2, tokens, keys, dtype=torch.float64)},
    ]


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_outputs_masks_and_state_are_those_of_pytorch(form: str, need_weights: bool) -> None:
    torch.manual_seed(0)
    options = FORMS[form]
    source = nn.MultiheadAttention(8, 2, **options).double().eval()
    opened = oicsr.open_attention(source).eval()
    shapes = (3, 4, 8), (3, 6, options.get("kdim", 8)), (3, 6, options.get("vdim", 8))
    tensors: list[Tensor] = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    if not options.get("batch_first"):
        tensors = [tensor.transpose(0, 1) for tensor in tensors]
    for call in masks(3, 4, 6):
        expected = source(*tensors, need_weights=need_weights, **call)
        given = opened(*tensors, need_weights=need_weights, **call)
        torch.testing.assert_close(given[0], expected[0], rtol=1e-12, atol=1e-12)
        assert (given[1] is None) == (expected[1] is None)
        if need_weights:
            torch.testing.assert_close(given[1], expected[1], rtol=1e-12, atol=1e-12)
            per_head = [m(*tensors, average_attn_weights=False, **call)[1] for m in (opened, source)]
            torch.testing.assert_close(*per_head, rtol=1e-12, atol=1e-12)
    state = source.state_dict()
    assert set(opened.state_dict()) == set(state)
    for name, value in opened.state_dict().items():
        assert torch.equal(value, state[name])
    other = nn.MultiheadAttention(8, 2, **options).double().eval()
    opened.load_state_dict(other.state_dict())
    torch.testing.assert_close(opened(*tensors)[0], other(*tensors)[0], rtol=1e-12, atol=1e-12)


class Encoder(nn.Module):
    """PyTorch's encoder with a head."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


@pytest.mark.parametrize("granularity", ["channel", "head"])
def test_an_encoder_loses_channels_and_heads_exactly(granularity: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Encoder().double().eval(), torch.randn(2, 5, 8, dtype=torch.float64)
    opened = oicsr.open_attention(model)
    torch.testing.assert_close(opened(x), model(x), rtol=1e-12, atol=1e-12)
    couplings = found(opened, x, granularity)
    kinds = {c.name: (c.kind, c.num_channels) for c in couplings if ".self_attn." in c.name}
    layers = [f"encoder.layers.{i}.self_attn" for i in range(2)]
    if granularity == "head":
        assert kinds == {f"{layer}.q_proj": ("head", 2) for layer in layers}
    else:
        assert kinds == {f"{layer}.{part}_proj": ("channel", 4) for layer in layers for part in "qv"}
    kept = drop_third(couplings) | {name: [1] for name, (kind, _) in kinds.items() if kind == "head"}
    small, plan = check_exact(opened, (x,), couplings, kept)
    oicsr.save_pruned(tmp_path / "small.safetensors", small, plan)
    loaded = oicsr.load_pruned(tmp_path / "small.safetensors", lambda: oicsr.open_attention(Encoder().double()))
    torch.testing.assert_close(loaded(x), small.eval()(x), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"q_proj.*Call oicsr\.open_attention on the network first .*in build_model"):
        oicsr.load_pruned(tmp_path / "small.safetensors", Encoder)


def test_pytorchs_own_attention_is_refused_with_what_to_call() -> None:
    model, x = Encoder().eval(), torch.randn(2, 5, 8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UnprunedChannelsWarning)
        couplings = oicsr.find_couplings(model, x)
    assert any("oicsr.open_attention(model) sets it free" in str(entry.message) for entry in caught)
    assert all("self_attn" not in coupling.name for coupling in couplings)


def test_nothing_to_open() -> None:
    with pytest.raises(ValueError, match="Linear holds no attention whose widths"):
        oicsr.open_attention(nn.Linear(2, 2))


def test_macs_are_those_of_pytorchs_own() -> None:
    model, x = Encoder().eval(), torch.randn(2, 5, 8)
    assert oicsr.count_macs(model, x) == oicsr.count_macs(oicsr.open_attention(model), x)


def test_a_plan_for_it_is_replayed() -> None:
    opened, x = oicsr.open_attention(Encoder()), torch.randn(2, 5, 8)
    couplings = found(opened, x, "head")
    plan = PruningPlan.from_kept(couplings, {"encoder.layers.0.self_attn.q_proj": [0]})
    assert oicsr.remove_channels(opened, plan).encoder.layers[0].self_attn.num_heads == 1


@pytest.mark.parametrize(
    ("name", "shape"), [("swin_t", (2, 3, 96, 96)), ("swin_v2_t", (2, 3, 96, 96)), ("swin3d_t", (1, 3, 4, 64, 64))]
)
def test_attention_in_windows_is_opened_without_a_change_and_pruned(name: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None)
    two_stages = 3 if name == "swin3d_t" else 4  # of four: plain and shifted windows, and a merging of patches between
    model.features = model.features[:two_stages]
    model.norm, model.head = nn.LayerNorm(192), nn.Linear(192, 5)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "table" in key or key.endswith(("bias", "logit_scale")):  # zeros at first, or all alike
                parameter.add_(torch.randn_like(parameter) / 4)
    opened, images = oicsr.open_attention(model), torch.randn(shape)
    assert opened.state_dict().keys() == model.state_dict().keys()
    for training in (False, True):
        outputs = []
        for network in (model.train(training), opened.train(training)):
            torch.manual_seed(1)
            outputs.append(network(images))
        torch.testing.assert_close(*outputs, rtol=0, atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", oicsr.UnprunedChannelsWarning)
        couplings = oicsr.find_couplings(opened.eval(), images)
        assert not any(".attn.qkv" in c.name for c in oicsr.find_couplings(model.eval(), images))
    assert sum(c.name.endswith(".attn.qkv") for c in couplings) == 4
    plan = oicsr.PruningPlan.from_kept(couplings, {c.name: range((c.num_channels + 1) // 2) for c in couplings})
    small = oicsr.remove_channels(opened, plan)
    assert oicsr.count_macs(small, images[:1]) < 0.75 * oicsr.count_macs(model, images[:1])
    small(images).sum().backward()
