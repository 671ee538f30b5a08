"""Surgery: outputs do not change when empty out-in-channels go, and training can go on."""

from __future__ import annotations

import copy
import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import oicsr
from benchmarks.models import MODELS, build_model, input_shape
from oicsr.selection import MacsModel
from tests.oicsr.networks import (
    Basic,
    Chain,
    Mixed,
    drop_third,
    exported_once,
    narrowed,
    randomize_norms,
    zero_channels,
)
from tests.slow import but_few_slow

IMAGES = torch.zeros(2, 3, 8, 8)
# what the registered ones lack: channel shuffle, SE with depthwise, branches, concatenation without normalisation
TORCHVISION = [
    ("shufflenet_v2_x0_5", 64, ("inner", "all")),
    ("googlenet", 64, ("inner",)),
    ("efficientnet_b0", 32, ("all",)),
    ("squeezenet1_1", 64, ("all",)),
]
QUICK = ("digits-resnet", "digits-vit", "resnet20", "mobilenetv2", "densenet40", "preactsenet18")
# networks with linear layers of thousands of features are made narrow by the surgery first: seconds, not minutes
NARROWED = ("imagenet-vgg16", "imagenet-alexnet")


def registered(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(0)
    channels, height, width = input_shape(name)
    shape = (1, channels, min(64, height), min(64, width))
    model = MODELS[name](10)
    return (narrowed(model, torch.zeros(shape)) if name in NARROWED else model), shape


def check_invariance(model: nn.Module, shape: tuple[int, ...], scope: str) -> None:
    """Outputs stay to 1e-9 when the in-side of what goes is empty, and do not when only the out-side is."""
    model = randomize_norms(model).double().eval()
    images = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    couplings = oicsr.find_couplings(model, images, scope=scope)  # type: ignore[arg-type]
    kept = drop_third(couplings)
    plan = oicsr.PruningPlan.from_kept(couplings, kept)
    differences = {}
    for side in ("in", "out"):
        emptied = copy.deepcopy(model)
        zero_channels(emptied, couplings, kept, side)
        small = oicsr.remove_channels(emptied, plan)
        with torch.no_grad():
            before, after = emptied(images), small(images)
        differences[side] = float((before - after).abs().max() / before.abs().max())
    assert differences["in"] < 1e-9, scope
    # negative control: BatchNorm's shift (or a bias) leaks out of an empty channel
    assert differences["out"] > 1e-6, scope
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    stays = torch.cat([torch.tensor([i in set(kept[c.name]) for i in range(c.num_channels)]) for c in couplings])
    assert oicsr.count_macs(small, images) == MacsModel(couplings, model, images).macs(stays)


@pytest.mark.parametrize("scope", ["inner", "all"])
@pytest.mark.parametrize("network", [Chain, Basic, Mixed])
def test_removing_empty_channels_changes_nothing(network: type[nn.Module], scope: str) -> None:
    torch.manual_seed(0)
    check_invariance(network(), (2, 3, 8, 8), scope)


@pytest.mark.parametrize("name", but_few_slow(MODELS, QUICK))
def test_invariance_of_every_registered_model(name: str) -> None:
    model, shape = registered(name)
    with warnings.catch_warnings(), exported_once():
        if "vit" in name:  # LayerNorms keep the width of its stream, and say so where it is asked for
            warnings.simplefilter("ignore", oicsr.UnprunedChannelsWarning)
        for scope in ("inner", "all"):
            check_invariance(model, shape, scope)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "scopes"), TORCHVISION, ids=[name for name, *_ in TORCHVISION])
def test_invariance_of_torchvision_models(name: str, size: int, scopes: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    model = build_model(f"torchvision:{name}", 10)
    with (
        warnings.catch_warnings(),
        exported_once(),
    ):  # ShuffleNet splits and shuffles one of its widths such that it stays, and says so
        warnings.simplefilter("ignore", oicsr.UnprunedChannelsWarning)
        for scope in scopes:
            check_invariance(model, (1, 3, size, size), scope)


def test_original_is_untouched_and_attributes_follow() -> None:
    model = Mixed()
    state = copy.deepcopy(model.state_dict())
    couplings = oicsr.find_couplings(model, IMAGES)
    small = oicsr.remove_channels(model, oicsr.PruningPlan.from_kept(couplings, {"expand": [0, 2, 5]}))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert (small.expand.out_channels, small.depthwise.groups, small.depthwise.in_channels) == (6, 6, 6)
    assert (small.norm.num_channels, small.norm.num_groups) == (6, 3)
    assert (small.squeeze.in_channels, small.excite.out_channels) == (6, 6)
    assert "6, 6" in repr(small.depthwise)


def test_marks_on_parameters_stay(tmp_path: Path) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        model = Chain()
        for name in ("conv1.weight", "bn1.bias", "fc.weight", "fc.bias"):
            model.get_parameter(name)._no_weight_decay = True  # type: ignore[attr-defined]
        return model

    def marked(model: nn.Module) -> set[str]:
        return {name for name, parameter in model.named_parameters() if getattr(parameter, "_no_weight_decay", False)}

    model = build()
    plan = oicsr.PruningPlan.from_kept(oicsr.find_couplings(model, torch.zeros(2, 3, 8, 8)), {"conv1": [0, 2]})
    small = oicsr.remove_channels(model, plan)
    oicsr.save_pruned(tmp_path / "small.safetensors", small, plan)
    back = oicsr.load_pruned(tmp_path / "small.safetensors", build)
    assert marked(model) == marked(small) == marked(back) and len(marked(model)) == 4


def test_requires_grad_gradient_mode_and_layout_stay() -> None:
    model = Chain().to(memory_format=torch.channels_last).train()
    model.conv1.weight.requires_grad_(False)
    model.bn1.eval()
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    couplings = oicsr.find_couplings(model, IMAGES)
    small = oicsr.remove_channels(model, oicsr.PruningPlan.from_kept(couplings, {"conv1": [1, 3], "conv2": [0, 7]}))
    assert small.training and not small.bn1.training
    assert not small.conv1.weight.requires_grad and small.conv2.weight.requires_grad
    assert small.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(small.conv2.weight.grad, model.conv2.weight.grad[[0, 7]][:, [1, 3]])


def sliced_like(tensor: Tensor, name: str, plan: oicsr.PruningPlan) -> Tensor:
    for entry in plan.slices:
        if entry.parameter == name:
            tensor = tensor.index_select(entry.dim, torch.tensor(entry.kept))
    return tensor


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "adamw-amsgrad": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_optimizer_state_follows_its_parameters(kind: str) -> None:
    """One more step after surgery equals the step that the whole network takes, slice by slice."""
    torch.manual_seed(0)
    model = Basic().double().eval()
    optimizer = OPTIMIZERS[kind](model.parameters())
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    model(images).square().sum().backward()
    optimizer.step()
    couplings = oicsr.find_couplings(model, images, scope="all")
    plan = oicsr.PruningPlan.from_kept(couplings, drop_third(couplings))
    whole = copy.deepcopy(model)
    whole_optimizer = OPTIMIZERS[kind](whole.parameters())
    whole_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    small = oicsr.remove_channels(model, plan, optimizer=optimizer)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in small.parameters()}
    pairs = [(name, p, dict(small.named_parameters())[name]) for name, p in whole.named_parameters()]
    for name, large, little in pairs:
        large.grad = torch.randn_like(large)
        little.grad = sliced_like(large.grad, name, plan)
    before = [little.detach().clone() for _, _, little in pairs]
    whole_optimizer.step()
    optimizer.step()
    assert sum(little.numel() < large.numel() for _, large, little in pairs) > 5
    for (name, large, little), old in zip(pairs, before, strict=True):
        assert torch.equal(little, sliced_like(large, name, plan)), name
        assert not torch.equal(little, old), name


def test_rows_and_columns_of_a_state_follow() -> None:
    """Adafactor keeps means of squares over rows and over columns of a weight."""
    model = Chain()
    optimizer = torch.optim.Adafactor(model.parameters())
    model(IMAGES).square().sum().backward()
    optimizer.step()
    couplings = oicsr.find_couplings(model, IMAGES)
    plan = oicsr.PruningPlan.from_kept(couplings, {"conv1": [1, 3], "conv2": [0, 7]})
    before = optimizer.state[model.conv2.weight]
    small = oicsr.remove_channels(model, plan, optimizer=optimizer)
    state = optimizer.state[small.conv2.weight]
    for key in ("row_var", "col_var"):
        assert torch.equal(state[key], before[key][[0, 7]][:, [1, 3]])
    small(IMAGES).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("least", "kept", "follows"),
    [(16, range(40), True), (16, range(20), False), (16, range(12), False), (128, range(12), True)],
)
def test_means_over_the_largest_axes_follow_as_long_as_these_stay_the_largest(
    least: int, kept: range, follows: bool
) -> None:
    """timm's Adafactor works out its axes at each step: below a size there are none, and the largest comes last."""
    pytest.importorskip("timm")
    from timm.optim.adafactor_bv import AdafactorBigVision

    model = nn.Sequential(nn.Linear(30, 48), nn.ReLU(), nn.Linear(48, 44), nn.ReLU(), nn.Linear(44, 2))
    optimizer, rows = AdafactorBigVision(model.parameters(), min_dim_size_to_factor=least), torch.randn(4, 30)
    model(rows).square().sum().backward()
    optimizer.step()
    plan = oicsr.PruningPlan.from_kept(oicsr.find_couplings(model, rows), {"0": [*kept], "2": [*range(18)]})
    if not follows:
        with pytest.raises(
            ValueError, match=r"keeps means over axes of '.*', whose shape is .*, and would keep others"
        ):
            oicsr.remove_channels(model, plan, optimizer=optimizer)
        assert model[0].weight.shape == (48, 30)
        return
    small = oicsr.remove_channels(model, plan, optimizer=optimizer)
    small(rows).square().sum().backward()
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in small.parameters())


def test_several_optimizers_share_the_parameters() -> None:
    """Muon takes matrices only, so that users have a second optimiser for the rest; both follow, or none."""
    torch.manual_seed(0)
    model, images = Basic(), torch.randn(2, 3, 8, 8)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    first, second = torch.optim.SGD(matrices, lr=0.1, momentum=0.9), torch.optim.AdamW(others, lr=0.1)
    model(images).square().sum().backward()
    first.step(), second.step()
    couplings = oicsr.find_couplings(model, images, scope="all")
    plan = oicsr.PruningPlan.from_kept(couplings, drop_third(couplings))
    foreign = torch.optim.SGD([nn.Parameter(torch.zeros(7))], lr=0.1)
    with pytest.raises(ValueError, match="SGD holds none of the model's parameters"):
        oicsr.remove_channels(model, plan, optimizer=[first, second, foreign])
    assert all(held is p for held, p in zip(first.param_groups[0]["params"], matrices, strict=True))

    small = oicsr.remove_channels(model, plan, optimizer=[first, second])
    held = [p for one in (first, second) for group in one.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in small.parameters()}
    assert all(state.shape == p.shape for p in held for state in _state(first, second, p) if state.ndim)
    before = {p: p.detach().clone() for p in held}
    small(images).square().sum().backward()
    first.step(), second.step()
    for one in (first, second):
        assert any(not torch.equal(p, before[p]) for p in one.param_groups[0]["params"])


def _state(first: torch.optim.Optimizer, second: torch.optim.Optimizer, parameter: Tensor) -> list[Tensor]:
    own = first.state.get(parameter) or second.state[parameter]
    return [value for value in own.values() if isinstance(value, Tensor)]


def test_optimizer_with_a_foreign_parameter_is_refused() -> None:
    model = Chain()
    plan = oicsr.PruningPlan.from_kept(oicsr.find_couplings(model, IMAGES), {"conv1": [0]})
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(7))], lr=0.1)
    with pytest.raises(ValueError, match="holds none of the model's parameters"):
        oicsr.remove_channels(model, plan, optimizer=optimizer)


def test_what_inference_mode_makes_can_be_trained(tmp_path: Path) -> None:
    model = Chain().eval()
    with torch.inference_mode():
        couplings = oicsr.find_couplings(model, IMAGES)
        plan = oicsr.PruningPlan.from_kept(couplings, {c.name: range(c.num_channels // 2) for c in couplings})
        small = oicsr.remove_channels(model, plan)
        oicsr.save_pruned(tmp_path / "small.safetensors", small, plan)
        back = oicsr.load_pruned(tmp_path / "small.safetensors", Chain)
    for network in (small, back):
        network(IMAGES).square().sum().backward()
        assert all(p.grad is not None and not p.is_inference() for p in network.parameters())


def test_same_plan_prunes_a_moving_average() -> None:
    model = Chain()
    average = torch.optim.swa_utils.AveragedModel(model).module
    plan = oicsr.PruningPlan.from_kept(oicsr.find_couplings(model, IMAGES), {"conv1": [0, 5]})
    assert oicsr.remove_channels(average, plan).conv1.weight.shape == (2, 3, 3, 3)


def test_plan_of_another_model_is_refused() -> None:
    plan = oicsr.PruningPlan.from_kept(oicsr.find_couplings(Chain(), IMAGES), {"conv1": [0]})
    with pytest.raises(ValueError, match=r"'conv1\.weight', which Basic does not have"):
        oicsr.remove_channels(Basic(), plan)
    small = oicsr.remove_channels(Chain(), plan)
    with pytest.raises(ValueError, match=r"expects 6 slices on axis 0 of 'conv1\.weight'"):
        oicsr.remove_channels(small, plan)


def test_plans_compose_and_round_trip() -> None:
    torch.manual_seed(0)
    model = Chain().eval()
    couplings = oicsr.find_couplings(model, IMAGES)
    first = oicsr.PruningPlan.from_kept(couplings, {"conv1": [0, 2, 3, 5]})
    half_way = oicsr.remove_channels(model, first)
    smaller = oicsr.shrink_couplings(couplings, first)
    assert [(c.name, c.num_channels) for c in smaller] == [
        (c.name, c.num_channels) for c in oicsr.find_couplings(half_way, IMAGES)
    ]
    second = oicsr.PruningPlan.from_kept(smaller, {"conv1": [1, 3], "conv2": [0, 1, 6]})
    both = oicsr.PruningPlan.from_json(first.then(second).to_json())
    assert both.kept["conv1"] == (2, 5) and both.kept["conv2"] == (0, 1, 6)
    in_two, in_one = oicsr.remove_channels(half_way, second), oicsr.remove_channels(model, both)
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(in_two(images), in_one(images))


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"conv9": [0]}, "no coupling is called 'conv9'"),
        ({"conv1": []}, "would lose every channel"),
        ({"conv1": [6]}, "channels 0 to 5, not 6"),
        ({"conv1": [0, 0]}, "given twice"),
    ],
)
def test_plans_by_hand_are_checked(kept: dict[str, list[int]], message: str) -> None:
    couplings = oicsr.find_couplings(Chain(), IMAGES)
    with pytest.raises(ValueError, match=message):
        oicsr.PruningPlan.from_kept(couplings, kept)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        '{"format": "oicsr-plan-1", "kept": [], "slices": []}',
        '{"format": "oicsr-plan-1", "kept": {"a": [1, 0]}, "slices": []}',
        '{"format": "oicsr-plan-1", "kept": {}, "slices": [["w", 0, 4, [4]]]}',
        '{"format": "oicsr-plan-1", "kept": {}, "slices": [["w", 0, 4, "import os"]]}',
    ],
)
def test_damaged_plans_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a pruning plan"):
        oicsr.PruningPlan.from_json(text)


def test_pruned_model_survives_its_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = randomize_norms(Basic())
    couplings = oicsr.find_couplings(model, IMAGES, scope="all")
    plan = oicsr.PruningPlan.from_kept(couplings, drop_third(couplings))
    small = oicsr.remove_channels(model, plan).eval()
    oicsr.save_pruned(tmp_path / "small.safetensors", small, plan)
    again = oicsr.load_pruned(tmp_path / "small.safetensors", Basic)
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(small(images), again(images))


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    with pytest.raises(FileNotFoundError, match="no such file"):
        oicsr.load_pruned(path, Chain)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="was not written by save_pruned"):
        oicsr.load_pruned(path, Chain)
    plan = oicsr.PruningPlan.from_kept(oicsr.find_couplings(Chain(), IMAGES), {"conv1": [0]})
    small = oicsr.remove_channels(Chain(), plan)
    with pytest.raises(ValueError, match="it is not this model's plan"):
        oicsr.save_pruned(path, Chain(), plan)
    oicsr.save_pruned(path, small, plan)
    with pytest.raises(ValueError, match="does not fit the model"):
        oicsr.load_pruned(path, Basic)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1  # one bit of one weight
    path.write_bytes(content)
    with pytest.raises(ValueError, match="changed after it was written"):
        oicsr.load_pruned(path, Chain)
    path.write_bytes(content[:-40])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        oicsr.load_pruned(path, Chain)
    path.write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        oicsr.load_pruned(path, Chain)


def test_plan_text_is_plain_json() -> None:
    plan = oicsr.PruningPlan.from_kept(oicsr.find_couplings(Chain(), IMAGES), {"conv1": [0, 1]})
    assert json.loads(plan.to_json())["kept"]["conv1"] == [0, 1]


class Headed(nn.Module):
    """What timm's networks have: widths that are kept, one more layer behind the features, and a new classifier."""

    def __init__(self, last: int, classifiers: int = 1) -> None:
        super().__init__()
        self.stem, self.conv_head = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 20, 1)
        self.num_features, self.head_hidden_size = last, 20
        self.head = nn.Sequential(nn.BatchNorm1d(20), nn.Linear(20, 4))
        self.distilled = nn.Linear(20, 4) if classifiers > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv_head(torch.relu(self.stem(x)))).mean((2, 3))
        return self.head(x) if self.distilled is None else self.head(x) + self.distilled(x)

    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        return self.head if self.distilled is None else (self.head, self.distilled)

    def reset_classifier(self, classes: int) -> None:
        self.head = nn.Linear(self.head_hidden_size, classes)


@pytest.mark.parametrize("classifiers", [1, 2])
@pytest.mark.parametrize(("last", "kept"), [(12, 3), (20, 5)], ids=["before", "behind"])
def test_kept_widths_of_heads_follow_the_layer_that_reads_them(last: int, kept: int, classifiers: int) -> None:
    """In a MobileNetV3 the features are what the last convolution reads; in an EfficientNet, what it gives."""
    model, images = Headed(last, classifiers).eval(), torch.randn(2, 3, 8, 8)
    couplings = oicsr.find_couplings(model, images, scope="all")
    plan = oicsr.PruningPlan.from_kept(couplings, {"stem": [0, 4, 7], "conv_head": [1, 2, 3, 8, 9]})
    small = oicsr.remove_channels(model, plan)
    assert small.num_features == kept and small.head_hidden_size == 5
    assert model.num_features == last and model.head_hidden_size == 20
    if classifiers == 1:
        small.reset_classifier(7)
        assert small(images).shape == (2, 7)


class Turned(nn.Module):
    """Two layers, and a table of angles that files do not hold."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)
        self.register_buffer("angles", torch.rand(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x * self.angles)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_file_gives_weights_back_in_their_types(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = Turned(), torch.randn(4, 3, dtype=dtype)
    couplings = oicsr.find_couplings(model, torch.zeros(1, 3))
    plan = oicsr.PruningPlan.from_kept(couplings, {"a": range(5)})
    small = oicsr.remove_channels(model, plan).to(dtype)
    oicsr.save_pruned(tmp_path / "small.safetensors", small, plan)
    again = oicsr.load_pruned(tmp_path / "small.safetensors", lambda: copy.deepcopy(model))
    assert again.a.weight.dtype == again.angles.dtype == dtype
    assert torch.equal(again(inputs), small(inputs))


def test_a_network_without_numbers_is_not_loaded(tmp_path: Path) -> None:
    model = Turned()
    plan = oicsr.PruningPlan.from_kept(oicsr.find_couplings(model, torch.zeros(1, 3)), {"a": range(5)})
    oicsr.save_pruned(tmp_path / "small.safetensors", oicsr.remove_channels(model, plan), plan)
    with pytest.raises(ValueError, match=r"'a\.weight' is on the meta device, which holds no numbers: build"):
        oicsr.load_pruned(tmp_path / "small.safetensors", lambda: Turned().to("meta"))


def test_the_memory_format_of_volumes_stays() -> None:
    model = nn.Sequential(nn.Conv3d(3, 8, 3), nn.ReLU(), nn.Conv3d(8, 4, 3)).to(memory_format=torch.channels_last_3d)
    small = oicsr.prune(model, torch.zeros(1, 3, 6, 6, 6), macs_kept=0.5).model
    assert all(small[i].weight.is_contiguous(memory_format=torch.channels_last_3d) for i in (0, 2))


@pytest.mark.parametrize(
    ("parameter", "dim", "slices"), [("nope", 0, (0,)), ("1.weight", 1, (0,)), ("1.weight", 0, (99,))]
)
def test_what_a_plan_multiplies_must_be_there(parameter: str, dim: int, slices: tuple[int, ...]) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.RMSNorm(8, eps=1e-6), nn.Linear(8, 3))
    plan = oicsr.PruningPlan.from_kept(oicsr.find_couplings(model, torch.zeros(1, 6)), {"0": [0, 2, 7]})
    wrong = replace(plan, scalings=(replace(plan.scalings[0], parameter=parameter, dim=dim, slices=slices),))
    with pytest.raises(ValueError, match=rf"multiplies slice {max(slices)} on axis {dim} of '{parameter}'"):
        oicsr.remove_channels(model, wrong)
