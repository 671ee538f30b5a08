"""What a data set is: images, in memory or on disk, split into training, validation and test."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from dataclasses import dataclass, replace
from typing import Literal, Protocol, Self

import torch
from torch import Tensor

from benchmarks.distributed import ALONE, Rank
from benchmarks.loading import Batch, TrainingBatches, batches_in_order

Split = Literal["train", "validation", "test"]


class DataError(RuntimeError):
    """A data set is missing or damaged."""


class MissingDataError(DataError):
    """A data set is nowhere to be found: nothing can be run on it, and nothing is wrong with it."""


class EpochBatches(Protocol):
    """Training batches, epoch by epoch (see `benchmarks.training.Batches`)."""

    batch_size: int

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        ...

    def epoch(self, generator: torch.Generator) -> Iterator[Batch]:
        """Yield images and labels in the order, and augmented as the generator says."""
        ...


class Data(Protocol):
    """What runs need of a data set, wherever its images lie."""

    @property
    def train(self) -> Sized:
        """Training images, without the validation split."""
        ...

    @property
    def validation(self) -> Sized:
        """Fixed images of the training set that choose strengths."""
        ...

    @property
    def test(self) -> Sized:
        """Touched once per state, after the last epoch."""
        ...

    @property
    def num_classes(self) -> int:
        """Labels run from 0 to this, less one."""
        ...

    @property
    def checksum(self) -> str:
        """SHA-256 that tells one data set from another."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image, as networks see it."""
        ...

    def limited(
        self, train_images: int | None = None, validation_images: int | None = None, test_images: int | None = None
    ) -> Self:
        """Return the same data set with fewer images."""
        ...

    def training_batches(self, batch_size: int, device: torch.device, rank: Rank = ALONE) -> EpochBatches:
        """Return the training images, shuffled and augmented, in global batches of `batch_size`."""
        ...

    def evaluation_batches(
        self, split: Split, batch_size: int, device: torch.device, rank: Rank = ALONE
    ) -> Iterator[Batch]:
        """Yield the images of a split as they are, in order; each process its share of the batches."""
        ...


@dataclass(frozen=True, eq=False)
class Images:
    """Images with labels.

    Attributes:
        pixels: uint8 `(images, channels, height, width)`.
        labels: int64 `(images,)`.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Images:
        """Return the images at `indices`."""
        return Images(self.pixels[indices], self.labels[indices])

    def to(self, device: torch.device) -> Images:
        """Return the images on `device`."""
        return Images(self.pixels.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Augmentation:
    """Random shifts by up to `padding` pixels (zeros come in), and mirroring where `flip`."""

    padding: int
    flip: bool


@dataclass(frozen=True, eq=False)
class DataSplits:
    """A data set.

    Attributes:
        train: Training images, without the validation split.
        validation: Fixed images of the training set that choose strengths.
        test: Touched once per state, after the last epoch.
        num_classes: Labels run from 0 to this, less one.
        mean: Per channel, of pixels in [0, 1].
        std: Per channel, over all pixels.
        augmentation: What training may do to an image.
        checksum: SHA-256 over the files, or over the arrays.
    """

    train: Images
    validation: Images
    test: Images
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation
    checksum: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.train.pixels.shape[1:]
        return channels, height, width

    def training_batches(self, batch_size: int, device: torch.device, rank: Rank = ALONE) -> TrainingBatches:
        """Return the training images, shuffled and augmented, in global batches of `batch_size`."""
        return TrainingBatches(self, batch_size, device, rank)

    def evaluation_batches(
        self, split: Split, batch_size: int, device: torch.device, rank: Rank = ALONE
    ) -> Iterator[Batch]:
        """Yield the images of a split as they are, in order; each process its share of the batches."""
        return batches_in_order(getattr(self, split), self, batch_size, device, rank)

    def limited(
        self, train_images: int | None = None, validation_images: int | None = None, test_images: int | None = None
    ) -> DataSplits:
        """Return the same data set with fewer images: the first ones, of orders that never change.

        Raises:
            ValueError: There are not that many.
        """
        return replace(
            self,
            train=_first(self.train, train_images, "training"),
            validation=_first(self.validation, validation_images, "validation"),
            test=_first(self.test, test_images, "test"),
        )


def _first(images: Images, count: int | None, what: str) -> Images:
    if count is None:
        return images
    if not 0 < count <= len(images):
        raise ValueError(f"{count!r} {what} images were asked for; there are {len(images)}")
    return Images(images.pixels[:count], images.labels[:count])


def split_validation(images: Images, validation_images: int) -> tuple[Images, Images]:
    """Split into training and validation images by a permutation that is the same for everyone, always."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images.take(order[validation_images:]), images.take(order[:validation_images])
