"""What a data set is: images in memory, split into training, validation and test."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


class DataError(RuntimeError):
    """A data set is missing or damaged."""


class MissingDataError(DataError):
    """A data set is nowhere to be found: nothing can be run on it, and nothing is wrong with it."""


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
