"""Handwritten digits (Alpaydin and Kaynak, 1998), 1,797 images of 8x8 that scikit-learn ships: no download."""

from __future__ import annotations

import hashlib

import torch

from benchmarks.datasets.in_memory import Augmentation, DataSplits, Images, split_validation

TEST_IMAGES = 397

VALIDATION_IMAGES = 200


def load_digits() -> DataSplits:
    """Return the digits: 1,200 training, 200 validation and 397 test images of 1x8x8, in a fixed order."""
    from sklearn.datasets import load_digits as load_sklearn_digits  # seconds, for commands that only read records

    bunch = load_sklearn_digits()
    pixels = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8)[:, None]  # values were 0 to 16
    everything = Images(pixels, torch.from_numpy(bunch.target).long())
    rest, test = split_validation(everything, TEST_IMAGES)
    train, validation = split_validation(rest, VALIDATION_IMAGES)
    return DataSplits(
        train=train,
        validation=validation,
        test=test,
        num_classes=10,
        mean=(0.305,),
        std=(0.376,),
        augmentation=Augmentation(padding=1, flip=False),
        checksum=hashlib.sha256(pixels.numpy().tobytes() + everything.labels.numpy().tobytes()).hexdigest(),
    )
