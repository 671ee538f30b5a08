"""MACs and parameters against closed forms and published values."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

import oicsr
from tests.oicsr.networks import Chain


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


class _LastStep(nn.Module):
    """`(steps, batch, 6)` to `(batch, 3)`: the batch lies on axis 1."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.out = nn.LSTM(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.recurrent(x)[0][-1])


class _Packed(nn.LSTM):
    """Sequences that are packed, all of one length."""

    def __init__(self) -> None:
        super().__init__(6, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        lengths = torch.full((x.shape[0],), x.shape[1])
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        return super().forward(packed)[0].data  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_the_batch_of_a_recurrence_need_not_lie_on_axis_0(batch: int) -> None:
    each = 5 * 4 * (8 * 6 + 8 * 8) + 8 * 3  # five steps of four gates
    assert oicsr.count_macs(_LastStep(), torch.zeros(5, batch, 6)) == each
    assert oicsr.count_macs(nn.LSTM(6, 8), torch.zeros(5, batch, 6)) == each - 8 * 3
    assert oicsr.count_macs(nn.GRU(6, 8, batch_first=True), torch.zeros(batch, 5, 6)) == 3 * (each - 8 * 3) // 4
    assert oicsr.count_macs(_Packed(), torch.zeros(batch, 5, 6)) == each - 8 * 3
    assert oicsr.count_macs(nn.LSTMCell(6, 8), torch.zeros(batch, 6)) == (each - 8 * 3) // 5


class _Queries(nn.Module):
    """Nine queries without a batch, and images with one: what the queries alone cost is counted once."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.conv = nn.Linear(6, 8), nn.Linear(8, 2), nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, queries: Tensor, images: Tensor) -> Tensor:
        return self.last(self.first(queries).mean(0)) + self.conv(images).sum((1, 2, 3))[:, None]


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_an_input_without_a_batch_that_the_first_layer_reads(batch: int) -> None:
    inputs = torch.zeros(9, 6), torch.zeros(batch, 3, 8, 8)
    assert oicsr.count_macs(_Queries(), inputs) == 9 * 6 * 8 + 8 * 2 + 64 * 4 * 27


class _Frames(nn.Module):
    """`(batch, frames, 3, 8, 8)`: frames are put into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Chain()

    def forward(self, clips: Tensor) -> Tensor:
        return self.network(clips.flatten(0, 1)).unflatten(0, clips.shape[:2]).mean(1)


def test_frames_count_one_by_one() -> None:
    once = oicsr.count_macs(Chain(), torch.zeros(1, 3, 8, 8))
    for batch in (1, 2, 3):
        assert oicsr.count_macs(_Frames(), torch.zeros(batch, 4, 3, 8, 8)) == 4 * once
