"""Batches: every image once, shifted and mirrored as said, the same again for the same generator."""

from __future__ import annotations

import torch

from benchmarks.datasets import Augmentation, DataSplits, Images, load_dataset
from benchmarks.datasets.in_memory import Normalize, TrainingBatches, batches_in_order, shifted_windows

CPU = torch.device("cpu")


def numbered(count: int, augmentation: Augmentation) -> DataSplits:
    """Images whose pixels all hold their own number."""
    pixels = torch.arange(count, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    images = Images(pixels, torch.arange(count))
    return DataSplits(images, images, images, count, (0.0,), (1 / 255,), augmentation, "")


def test_every_image_comes_once_with_its_label() -> None:
    batches = TrainingBatches(numbered(20, Augmentation(0, False)), 5, CPU)
    seen = [(x, y) for x, y in batches.epoch(torch.Generator().manual_seed(0))]
    assert len(seen) == len(batches) == 4
    labels = torch.cat([y for _, y in seen])
    assert sorted(labels.tolist()) == list(range(20)) and labels.tolist() != list(range(20))
    assert all(torch.allclose(x[:, 0, 0, 0], y.float(), atol=1e-4) for x, y in seen)


def test_incomplete_last_batch_is_dropped_but_a_small_set_is_used() -> None:
    assert len(TrainingBatches(numbered(23, Augmentation(0, False)), 5, CPU)) == 4
    assert len(TrainingBatches(numbered(3, Augmentation(0, False)), 5, CPU)) == 1


def test_shifts_and_mirrors_are_those_of_a_loop_over_images() -> None:
    data = load_dataset("digits").limited(64)
    batches = TrainingBatches(data, 64, CPU)
    ((images, labels),) = batches.epoch(torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    order = torch.randperm(64, generator=generator)
    shifts = torch.randint(0, 3, (2, 64), generator=generator)
    padded = torch.nn.functional.pad(data.train.pixels, [1] * 4)
    for place, index in enumerate(order.tolist()):
        dy, dx = shifts[:, index].tolist()
        expected = (padded[index, :, dy : dy + 8, dx : dx + 8].float() / 255 - data.mean[0]) / data.std[0]
        assert torch.allclose(images[place], expected, atol=1e-5)
        assert labels[place] == data.train.labels[index]


def test_half_of_the_images_are_mirrored_where_asked() -> None:
    pixels = torch.tensor([[0, 255]], dtype=torch.uint8).expand(400, 1, 2, 2).contiguous()
    images = Images(pixels, torch.zeros(400, dtype=torch.int64))
    data = DataSplits(images, images, images, 1, (0.0,), (1.0,), Augmentation(0, True), "")
    ((batch, _),) = TrainingBatches(data, 400, CPU).epoch(torch.Generator().manual_seed(0))
    assert 150 < int((batch[:, 0, 0, 0] == 1).sum()) < 250


def test_same_generator_same_batches() -> None:
    data = load_dataset("digits").limited(128)
    first, second = (
        [x for x, _ in TrainingBatches(data, 32, CPU).epoch(torch.Generator().manual_seed(7))] for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_windows_are_views() -> None:
    pixels = torch.arange(2 * 9, dtype=torch.uint8).reshape(2, 1, 3, 3)
    windows = shifted_windows(pixels, Augmentation(1, False))
    assert windows.shape == (2, 1, 3, 3, 3, 3)
    assert torch.equal(windows[:, :, 1, 1], pixels)


def test_evaluation_sees_all_images_in_order() -> None:
    data = numbered(7, Augmentation(2, True))
    labels = torch.cat([y for _, y in batches_in_order(data.test, data, 3, CPU)])
    assert labels.tolist() == list(range(7))
    x = Normalize(data.mean, data.std, CPU)(data.test.pixels)
    assert x.is_contiguous(memory_format=torch.channels_last) and x.dtype == torch.float32
