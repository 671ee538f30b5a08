"""Surgery: outputs do not change when empty out-in-channels go, and training can go on."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import torchvision
from benchmarks.models import MODELS
from safetensors.torch import save_file
from torch import nn

import oicsr
from oicsr.selection import MacsModel
from tests.oicsr.networks import Basic, Chain, Mixed, drop_third, randomize_norms, zero_channels

IMAGES = torch.zeros(2, 3, 8, 8)
INPUT_SHAPES = {"digits-resnet": (2, 1, 8, 8)}
TORCHVISION = {"resnet18": 64, "resnet50": 64, "vgg16_bn": 32, "mobilenet_v2": 64, "densenet121": 64}
CIFAR_SIZED = [name for name in MODELS if ":" not in name and not name.startswith("imagenet")]


def check_invariance(model: nn.Module, shape: tuple[int, ...], scope: str) -> None:
    model = randomize_norms(model).double().eval()
    images = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    couplings = oicsr.find_couplings(model, images, scope=scope)  # type: ignore[arg-type]
    kept = drop_third(couplings)
    zero_channels(model, couplings, kept, "in")
    plan = oicsr.PruningPlan.from_kept(couplings, kept)
    small = oicsr.remove_channels(model, plan)
    with torch.no_grad():
        before, after = model(images), small(images)
    assert torch.allclose(before, after, rtol=1e-9, atol=1e-9 * float(before.abs().max()))
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    cost = MacsModel(couplings, model, images)
    stays = torch.cat([torch.tensor([i in set(kept[c.name]) for i in range(c.num_channels)]) for c in couplings])
    assert oicsr.count_macs(small, images) == cost.macs(stays)


@pytest.mark.parametrize("scope", ["inner", "all"])
@pytest.mark.parametrize("network", [Chain, Basic, Mixed])
def test_removing_empty_channels_changes_nothing(network: type[nn.Module], scope: str) -> None:
    torch.manual_seed(0)
    check_invariance(network(), (2, 3, 8, 8), scope)


@pytest.mark.parametrize("scope", ["inner", "all"])
@pytest.mark.parametrize("name", CIFAR_SIZED)
def test_invariance_of_every_registered_model(name: str, scope: str) -> None:
    torch.manual_seed(0)
    check_invariance(MODELS[name](10), INPUT_SHAPES.get(name, (1, 3, 32, 32)), scope)


@pytest.mark.parametrize("name", TORCHVISION)
def test_invariance_of_torchvision_models(name: str) -> None:
    torch.manual_seed(0)
    size = TORCHVISION[name]
    kwargs = {"num_classes": 10}
    model = torchvision.models.get_model(name, weights=None, **kwargs)
    check_invariance(model, (1, 3, size, size), "all")


def test_zeroing_the_out_side_alone_is_not_enough() -> None:
    """Negative control: BatchNorm's shift leaks out of an empty out-channel."""
    torch.manual_seed(0)
    model = randomize_norms(Basic()).double().eval()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    couplings = oicsr.find_couplings(model, images)
    kept = drop_third(couplings)
    zero_channels(model, couplings, kept, "out")
    small = oicsr.remove_channels(model, oicsr.PruningPlan.from_kept(couplings, kept))
    with torch.no_grad():
        assert float((model(images) - small(images)).abs().max()) > 1e-3


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


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_optimizer_state_follows_its_parameters(kind: str) -> None:
    """One more step after surgery equals the step that the whole network would have taken, slice by slice."""
    torch.manual_seed(0)
    model = Basic().double().eval()
    make = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    }[kind]
    optimizer = make(model.parameters())
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    model(images).square().sum().backward()
    optimizer.step()
    couplings = oicsr.find_couplings(model, images)
    plan = oicsr.PruningPlan.from_kept(couplings, {"a1": [0, 2, 4]})
    reference, reference_optimizer = copy.deepcopy(model), make(()) if False else None
    small = oicsr.remove_channels(model, plan, optimizer=optimizer)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in small.parameters()}
    key = "momentum_buffer" if kind == "sgd" else "exp_avg"
    assert optimizer.state[small.a1.weight][key].shape == small.a1.weight.shape
    for parameter in small.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = small.a1.weight.clone()
    optimizer.step()
    assert reference_optimizer is None and reference.a1.weight.shape[0] == 6
    assert not torch.equal(before, small.a1.weight)


def test_optimizer_with_a_foreign_parameter_is_refused() -> None:
    model = Chain()
    plan = oicsr.PruningPlan.from_kept(oicsr.find_couplings(model, IMAGES), {"conv1": [0]})
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(7))], lr=0.1)
    with pytest.raises(ValueError, match=r"shape \(7,\) that is not in the model"):
        oicsr.remove_channels(model, plan, optimizer=optimizer)


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
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        oicsr.load_pruned(path, Chain)
    path.write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        oicsr.load_pruned(path, Chain)


def test_plan_text_is_plain_json() -> None:
    plan = oicsr.PruningPlan.from_kept(oicsr.find_couplings(Chain(), IMAGES), {"conv1": [0, 1]})
    assert json.loads(plan.to_json())["kept"]["conv1"] == [0, 1]
