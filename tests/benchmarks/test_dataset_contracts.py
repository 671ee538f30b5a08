"""What every entry of `DATASETS` promises, where its files are at hand; and that names mean one data set each."""

from __future__ import annotations

import pytest
import torch

from benchmarks.datasets import DATASETS, load_dataset
from benchmarks.datasets.contract import MissingDataError


def test_no_two_names_mean_the_same_data_set() -> None:
    assert len(set(DATASETS.values())) == len(DATASETS)


@pytest.mark.parametrize("name", DATASETS)
def test_splits_labels_shapes_and_order_are_as_promised(name: str) -> None:
    try:
        data = load_dataset(name)
    except MissingDataError:
        pytest.skip(f"{name} is not on this machine")
    device = torch.device("cpu")
    assert len(data.train) > 0 and len(data.validation) > 0 and len(data.test) > 0 and len(data.checksum) == 64
    few = data.limited(64, 32, 32)
    assert (len(few.train), len(few.validation), len(few.test)) == (64, 32, 32) and few.shape == data.shape
    batches = few.training_batches(32, device)
    first, again = (list(batches.epoch(torch.Generator().manual_seed(0))) for _ in range(2))
    assert len(first) == len(batches) == 2
    for (images, labels), (images_again, labels_again) in zip(first, again, strict=True):
        assert images.shape == (32, *data.shape) and images.dtype == torch.float32
        assert labels.dtype == torch.int64 and 0 <= int(labels.min()) <= int(labels.max()) < data.num_classes
        assert torch.equal(images, images_again) and torch.equal(labels, labels_again)
    assert sum(len(labels) for _, labels in few.evaluation_batches("test", 20, device)) == 32
