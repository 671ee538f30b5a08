"""Every registered network: size, output, and what its builder promises."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

import oicsr
from benchmarks.models import MODELS, build_model, hub, input_shape

# MACs and parameters for 10 classes (1,000 for ImageNet); each value is also worked out in one of the tests below or
# stands beside a published figure there
GOLDEN = {
    "digits-resnet": (1_648_256, 174_970),
    "digits-batchnorm": (1_493_632, 65_834),
    "digits-groupnorm": (1_493_632, 65_834),
    "digits-plain": (1_493_632, 65_642),
    "digits-vit": (962_016, 58_474),
    "vit": (123_275_136, 1_806_154),
    "cifarnet": (32_778_112, 1_756_554),
    "cifarnet-plain": (32_778_112, 1_756_426),
    "resnet18": (555_422_720, 11_173_962),
    "resnet20": (40_551_040, 269_722),
    "resnet32": (68_862_592, 464_154),
    "resnet56": (125_485_696, 853_018),
    "resnet110": (252_887_680, 1_727_962),
    "vgg16": (313_201_664, 14_724_042),
    "vgg16-plain": (313_201_664, 14_719_818),
    "vgg19": (398_136_320, 20_035_018),
    "mobilenetv1": (46_354_432, 3_217_226),
    "mobilenetv2": (87_976_448, 2_236_682),
    "densenet40": (282_917_328, 1_059_298),
    "densenet89": (109_525_344, 598_762),
    "preactsenet18": (555_509_760, 11_261_250),
    "imagenet-alexnet": (714_188_480, 61_100_840),
    "imagenet-resnet50": (4_089_184_256, 25_557_032),
    "imagenet-vgg16": (15_470_264_320, 138_365_992),
    "imagenet-mobilenetv2": (300_774_272, 3_504_872),
}

# millions of MACs, millions of parameters, relative tolerance, source
PUBLISHED = {
    "resnet20": (40.55, 0.27, 0.01, "He et al. 2016, Table 6 (parameters); 40.55 M in the HRank line of work"),
    "resnet32": (None, 0.46, 0.01, "He et al. 2016, Table 6"),
    "resnet56": (125.49, 0.85, 0.005, "HRank+ base, 125.49 M; He et al. 2016, Table 6"),
    "resnet110": (252.89, 1.7, 0.02, "HRank+ base, 252.89 M; He et al. 2016, Table 6"),
    "vgg16": (313.73, 14.72, 0.005, "HRank+ base, 313.73 M (its classifier has one layer more)"),
    "densenet40": (282.00, 1.04, 0.02, "HRank+ base, 282.00 M"),
    "imagenet-resnet50": (4089, 25.557032, 0.0001, "the authors' repository, 4089 M; torchvision's model card"),
    "imagenet-alexnet": (714, 61.100840, 0.001, "torchvision's model card, 0.714 G"),
    "imagenet-vgg16": (15_470, 138.365992, 0.001, "torchvision's model card, 15.47 G"),
    "imagenet-mobilenetv2": (300.8, 3.504872, 0.001, "torchvision's model card, 0.301 G; Sandler et al. 2018, 300 M"),
}


def classes_of(name: str) -> int:
    return 1000 if name.startswith("imagenet") else 10


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return MODELS[name](classes_of(name))


def test_no_network_with_golden_values_is_gone() -> None:
    """Records name their network: one that was renamed or removed can no longer be repeated."""
    assert set(GOLDEN) <= set(MODELS)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_macs_and_parameters(name: str) -> None:
    model = on_meta(name)
    images = torch.zeros(1, *input_shape(name), device="meta")
    assert (oicsr.count_macs(model, images), oicsr.count_params(model)) == GOLDEN[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_golden_values_agree_with_published_ones(name: str) -> None:
    macs, params, tolerance, _ = PUBLISHED[name]
    assert macs is None or GOLDEN[name][0] / 1e6 == pytest.approx(macs, rel=tolerance)
    assert GOLDEN[name][1] / 1e6 == pytest.approx(params, rel=max(tolerance, 0.02 if params < 2 else 0.001))


@pytest.mark.parametrize(("name", "depth"), [("densenet40", 40), ("densenet89", 89), ("resnet110", 110), ("vgg16", 14)])
def test_depth_is_that_of_the_name(name: str, depth: int) -> None:
    """Convolutions and linear layers on the longest path; VGG-16 has one linear layer in the place of three."""
    layers = [m for m in on_meta(name).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth


def test_the_digits_chain_worked_out_by_hand() -> None:
    convolutions = [(1, 32, 64), (32, 32, 64), (32, 64, 16), (64, 64, 16)]  # in, out, pixels
    weights = sum(9 * a * b for a, b, _ in convolutions)
    macs = sum(9 * a * b * pixels for a, b, pixels in convolutions) + 64 * 10
    vectors = 32 + 32 + 64 + 64
    for name, per_channel in (("digits-batchnorm", 2), ("digits-groupnorm", 2), ("digits-plain", 1)):
        assert GOLDEN[name] == (macs, weights + per_channel * vectors + 65 * 10)


def test_the_vision_transformers_worked_out_by_hand() -> None:
    # patches, values of a patch, width, hidden, depth
    for name, tokens, patch, width, hidden, depth in (
        ("digits-vit", 16, 4, 48, 96, 3),
        ("vit", 64, 48, 192, 384, 6),
    ):
        block = 4 * width * width + 2 * width * hidden  # queries, keys, values, output; the MLP
        products = 2 * tokens * tokens * width  # scores, and what they mix
        macs = tokens * patch * width + depth * (tokens * block + products) + 10 * width
        vectors = 4 * width + hidden + width + 4 * width  # biases of attention and MLP, two LayerNorms
        params = (patch + 1 + tokens) * width + depth * (block + vectors) + 2 * width + 10 * (width + 1)
        assert GOLDEN[name] == (macs, params)


@pytest.mark.parametrize(("plain", "normalized"), [("cifarnet-plain", "cifarnet"), ("vgg16-plain", "vgg16")])
def test_plain_networks_have_a_bias_in_the_place_of_normalisation(plain: str, normalized: str) -> None:
    model = on_meta(plain)
    assert not any("norm" in type(m).__name__.lower() for m in model.modules())
    shifts = sum(m.bias.numel() for m in model.modules() if isinstance(m, nn.Conv2d))
    assert GOLDEN[plain] == (GOLDEN[normalized][0], GOLDEN[normalized][1] - shifts)  # scale and shift against a bias


def test_groups_of_normalisation_are_removed_whole() -> None:
    images = torch.zeros(1, 1, 8, 8)
    for name, widths in (("digits-groupnorm", [16, 16, 32, 32]), ("digits-plain", [32, 32, 64, 64])):
        model = MODELS[name](10)
        couplings = oicsr.find_couplings(model, images)
        assert [coupling.num_channels for coupling in couplings] == widths
        scores = oicsr.out_in_energy(model, couplings)
        small = oicsr.remove_channels(model, oicsr.select_channels(scores, couplings, model, images, macs_kept=0.3))
        assert oicsr.count_macs(small, images) / oicsr.count_macs(model, images) == pytest.approx(0.3, rel=0.01)


def test_parameters_equal_those_of_torchvision() -> None:
    """The CIFAR form of MobileNetV2 differs from ImageNet's in strides alone."""
    ours = [tuple(p.shape) for p in on_meta("mobilenetv2").parameters()]
    theirs = [tuple(p.shape) for p in torchvision.models.mobilenet_v2(weights=None, num_classes=10).parameters()]
    assert ours == theirs


@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("imagenet")])
def test_one_training_step_is_finite(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name, 7).train()
    outputs = model(torch.randn(2, *input_shape(name)))
    assert outputs.shape == (2, 7)
    nn.functional.cross_entropy(outputs, torch.tensor([0, 6])).backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in gradients)
    # a squeeze layer of four units may happen to be dead at the start; nothing else may
    moved = [bool(g.abs().max() > 0) for g in gradients if g.ndim > 1]
    assert sum(moved) >= 0.9 * len(moved)


def test_initialisation_keeps_the_scale_of_activations() -> None:
    """He initialisation, depthwise filters included: variance 2 / fan-out, of one group."""
    torch.manual_seed(0)
    model = MODELS["mobilenetv1"](10)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            fan_out = 9 * module.out_channels // module.groups if module.kernel_size[0] == 3 else module.out_channels
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1), name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet65", "model 'resnet65'. Did you mean 'resnet56'"),
        ("mobilenet_v2", "model 'mobilenet_v2'. Did you mean 'mobilenetv2'"),
        ("", "no model ''"),
        ("torchvision:resnet5", "model 'resnet5'. Did you mean 'resnet50'"),
        ("timm:resnet50dd", "model 'resnet50dd'. Did you mean 'resnet50d'"),
        ("keras:resnet50", "must be 'torchvision' or 'timm'"),
    ],
)
def test_unknown_names_suggest_the_nearest(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(name, 10)
    with pytest.raises(ValueError, match=message):
        input_shape(name)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("digits-resnet", (1, 8, 8)),
        ("resnet56", (3, 32, 32)),
        ("imagenet-resnet50", (3, 224, 224)),
        ("torchvision:resnet18", (3, 224, 224)),
        ("torchvision:inception_v3", (3, 299, 299)),
        ("timm:xception41", (3, 299, 299)),
        ("timm:resnet10t", (3, 176, 176)),
    ],
)
def test_input_shapes(name: str, shape: tuple[int, int, int]) -> None:
    assert input_shape(name) == shape


@pytest.mark.parametrize("name", ["torchvision:shufflenet_v2_x0_5", "timm:resnet10t"])
def test_hub_networks_are_built_by_name(name: str) -> None:
    model = build_model(name, 7).eval()
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_with_further_heads_give_one_output_in_training(name: str) -> None:
    import torchvision

    model = build_model(f"torchvision:{name}", 7).train()
    assert model(torch.zeros(2, 3, 96, 96)).shape == (2, 7)
    whole = torchvision.models.get_model(name, weights=None, init_weights=False).state_dict()
    kept = {key for key in whole if not key.startswith(hub.FURTHER_HEADS)}
    assert kept == model.state_dict().keys() and len(kept) < len(whole)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_local_weights_are_loaded_but_for_another_classifier(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(0)
    path, source = tmp_path / f"weights{suffix}", build_model("resnet20", 10)
    save_file(source.state_dict(), path) if suffix == ".safetensors" else torch.save(source.state_dict(), path)
    same = build_model("resnet20", 10, str(path))
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), source.parameters(), strict=True))
    other = build_model("resnet20", 7, str(path))
    assert other.fc.weight.shape == (7, 64)
    assert torch.equal(other.layer3[2].conv2.weight, source.layer3[2].conv2.weight)


def test_weights_that_do_not_fit_or_are_not_there_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    with pytest.raises(ValueError, match="must be 'pretrained' or the path of a local file"):
        build_model("resnet20", 10, str(path))
    with pytest.raises(ValueError, match="no pretrained weights of 'resnet20'"):
        build_model("resnet20", 10, "pretrained")
    torch.save(build_model("resnet32", 10).state_dict(), path)
    with pytest.raises(ValueError, match=r"do not fit ResNetCifar: missing .*unexpected .*layer1"):
        build_model("resnet20", 10, str(path))
    path.write_bytes(b"\x80\x02cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ValueError, match="no weights that can be read safely"):
        build_model("resnet20", 10, str(path))
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="holds a list, not a dictionary of tensors"):
        build_model("resnet20", 10, str(path))


@pytest.mark.parametrize("name", ["torchvision:shufflenet_v2_x0_5", "timm:resnet10t", "imagenet-mobilenetv2"])
def test_hub_that_cannot_be_reached_is_a_clear_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", unreachable)
    with pytest.raises(ValueError, match=r"pretrained weights of .* are not to be had here: OSError: no route to host"):
        build_model(name, 10, "pretrained")


@pytest.mark.parametrize("name", ["torchvision:shufflenet_v2_x0_5", "timm:resnet10t"])
def test_only_what_the_hubs_cannot_give_is_said_to_be_not_to_be_had(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    error: Exception = RuntimeError('invalid hash value (expected "0a", got "0b")')

    def failing(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", failing)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", failing)
    with pytest.raises(ValueError, match="not to be had here: RuntimeError: invalid hash value"):
        build_model(name, 10, "pretrained")
    for error in (RuntimeError("a fault"), ValueError("a fault"), AttributeError("a fault")):
        with pytest.raises(type(error), match=r"^a fault$"):
            build_model(name, 10, "pretrained")


def test_networks_without_pretrained_weights_say_so() -> None:
    with pytest.raises(ValueError, match="timm has no pretrained weights of 'nf_resnet26'"):
        build_model("timm:nf_resnet26", 10, "pretrained")
