"""MACs and parameters against closed forms and published values."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

import oicsr


def test_golden_resnet50() -> None:
    model = torchvision.models.resnet50(weights=None)
    assert oicsr.count_macs(model, torch.zeros(1, 3, 224, 224)) == 4_089_184_256
    assert oicsr.count_params(model) == 25_557_032


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Conv2d(4, 6, 3, padding=1), (4, 8, 8), 8 * 8 * 6 * 4 * 9),
        (nn.Conv2d(4, 6, 3, stride=2, bias=False), (4, 9, 9), 4 * 4 * 6 * 4 * 9),
        (nn.Conv2d(4, 8, 3, padding=1, groups=4), (4, 8, 8), 8 * 8 * 8 * 1 * 9),
        (nn.Conv1d(2, 3, 5), (2, 9), 5 * 3 * 2 * 5),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (4, 8, 8), 8 * 8 * 4 * 6 * 4),
        (nn.Linear(7, 5), (7,), 35),
        (nn.Linear(7, 5), (3, 7), 3 * 35),
        (nn.BatchNorm2d(4), (4, 8, 8), 0),
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_closed_forms_for_any_batch(layer: nn.Module, shape: tuple[int, ...], expected: int, batch: int) -> None:
    model = nn.Sequential(layer)
    assert oicsr.count_macs(model, torch.zeros(batch, *shape)) == expected


def test_shared_layer_counts_each_time() -> None:
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    assert oicsr.count_macs(model, torch.zeros(1, 4)) == 32
    assert oicsr.count_params(model) == 20


def test_counting_leaves_mode_and_statistics() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    oicsr.count_macs(model, torch.randn(2, 3, 4, 4))
    assert model.training and model[1].num_batches_tracked.item() == 0


def test_empty_batch_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match="at least one input"):
        oicsr.count_macs(nn.Linear(2, 2), torch.zeros(0, 2))
