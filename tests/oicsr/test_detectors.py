"""torchvision's detectors as wholes: their backbone is pruned, and what is left trains and detects as before."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import MultiScaleRoIAlign

import oicsr
from tests.oicsr.networks import randomize_norms

SIZE = 64
IMAGES = [torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(i)) for i in range(2)]
TARGETS = [{"boxes": torch.tensor([[4.0, 6.0, 40.0, 44.0]]), "labels": torch.tensor([1])} for _ in IMAGES]
ANCHORS = ((16,), (32,), (64,))


class Body(nn.Sequential):
    """Three stages that halve the image, with residual blocks of one inner width each."""

    def __init__(self) -> None:
        super().__init__()
        for i, (before, after) in enumerate([(3, 16), (16, 24), (24, 32)]):
            stage = nn.Sequential(
                nn.Conv2d(before, 20, 3, 2, 1, bias=False),
                nn.BatchNorm2d(20),
                nn.ReLU(),
                nn.Conv2d(20, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            )
            self.add_module(f"stage{i}", stage)


def backbone() -> nn.Module:
    return BackboneWithFPN(Body(), {f"stage{i}": str(i) for i in range(3)}, [16, 24, 32], 16)


def faster_rcnn() -> nn.Module:
    anchors = AnchorGenerator((*ANCHORS, (96,)), ((0.5, 1.0, 2.0),) * 4)
    pool = MultiScaleRoIAlign(["0", "1", "2"], 4, 2)
    sizes = {"min_size": SIZE, "max_size": SIZE, "rpn_post_nms_top_n_test": 50, "rpn_post_nms_top_n_train": 50}
    return FasterRCNN(backbone(), 3, rpn_anchor_generator=anchors, box_roi_pool=pool, **sizes)


def retinanet() -> nn.Module:
    anchors = AnchorGenerator((*ANCHORS, (96,)), ((0.5, 1.0, 2.0),) * 4)
    return RetinaNet(backbone(), 3, anchor_generator=anchors, min_size=SIZE, max_size=SIZE, score_thresh=0.0)


def detections(model: nn.Module) -> list[Tensor]:
    """Return what a copy of a network finds; in float64: rounding must not decide which of two boxes is left out."""
    with torch.no_grad():
        images = [image.double() for image in IMAGES]
        return [tensor for image in copy.deepcopy(model).double().eval()(images) for tensor in image.values()]


@pytest.mark.parametrize("build", [faster_rcnn, retinanet])
@pytest.mark.parametrize("whole", [True, False], ids=["as a whole", "by its backbone"])
def test_a_pruned_detector_trains_and_detects(build: Callable[[], nn.Module], whole: bool) -> None:
    torch.manual_seed(0)
    model = randomize_norms(build()).eval()
    part, inputs = (model, (IMAGES,)) if whole else (model.backbone, torch.stack(IMAGES))
    if whole:
        with pytest.warns(oicsr.UnprunedChannelsWarning, match=r"pruning model\.backbone yourself and putting it back"):
            couplings = oicsr.find_couplings(part, inputs, scope="all")
    else:
        couplings = oicsr.find_couplings(part, inputs, scope="all")
    assert len(couplings) >= 6 and all(c.name.startswith("backbone.") == whole for c in couplings)
    kept = {c.name: range(0, c.num_channels, 2) for c in couplings}
    _set_to_zero(part, couplings)
    expected = detections(model)
    small_part = oicsr.remove_channels(part, oicsr.PruningPlan.from_kept(couplings, kept))
    small = small_part if whole else copy.deepcopy(model)
    if not whole:
        small.backbone = small_part
    assert oicsr.count_params(small.backbone) < 0.6 * oicsr.count_params(model.backbone)
    found = detections(small)
    assert any(len(tensor) for tensor in found) and len(found) == len(expected)
    for after, before in zip(found, expected, strict=True):
        torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)
    _train_a_step(small)


@torch.no_grad()
def _set_to_zero(model: nn.Module, couplings: list[oicsr.Coupling]) -> None:
    """Set the odd channels of all couplings to zero."""
    parameters = dict(model.named_parameters())
    for coupling in couplings:
        for member in coupling.members:
            if member.parameter in parameters:
                odd = (member.channels % 2 == 1) & (member.channels >= 0)
                parameters[member.parameter].index_fill_(member.dim, odd.nonzero().flatten(), 0)


def _train_a_step(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = model.train()(IMAGES, TARGETS)
    loss = torch.stack(list(losses.values())).sum()
    loss.backward()
    before = [parameter.detach().clone() for parameter in model.backbone.parameters()]
    optimizer.step()
    assert bool(loss.isfinite())
    moved = [not torch.equal(a, b) for a, b in zip(before, model.backbone.parameters(), strict=True)]
    assert sum(moved) > len(moved) // 2
