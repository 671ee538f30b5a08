"""Images in memory: splits, and batches shuffled, augmented and normalised on the device, no loop per image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.datasets.contract import Batch, Split
from benchmarks.machine.processes import ALONE, Rank


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
    """Random shifts by up to `padding` pixels (filled with zeros), and mirroring if `flip`."""

    padding: int
    flip: bool


@dataclass(frozen=True, eq=False)
class DataSplits:
    """A data set.

    Attributes:
        train: Training images, without the validation split; in a fixed random order, as often only the first are used.
        validation: Fixed images of the training set that choose strengths.
        test: Evaluated once per state, after the last epoch.
        num_classes: Labels run from 0 to this minus 1.
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
        """Yield the images of a split as they are, in order; each process takes its share of the batches."""
        return batches_in_order(getattr(self, split), self, batch_size, device, rank)

    def limited(
        self, train_images: int | None = None, validation_images: int | None = None, test_images: int | None = None
    ) -> DataSplits:
        """Return the same data set with fewer images: the first ones of fixed permutations.

        Raises:
            ValueError: There are fewer images than that.
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
    """Split into training and validation images by a fixed permutation."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images.take(order[validation_images:]), images.take(order[:validation_images])


class Normalize:
    """Pixels in 0 to 255 to float32 of mean 0 and deviation 1, in channels-last layout."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        deviation = torch.tensor(std, device=device).reshape(1, -1, 1, 1)
        middle = torch.tensor(mean, device=device).reshape(1, -1, 1, 1)
        self._scale, self._shift = 1 / (255 * deviation), -middle / deviation

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return `(images, channels, height, width)` as float32."""
        images = pixels.contiguous(memory_format=torch.channels_last).float()
        return images.mul_(self._scale).add_(self._shift)


@dataclass(frozen=True, eq=False)
class Draws:
    """The random numbers of one epoch.

    Attributes:
        order: Which images make up each batch, int64 `(batches, batch size)`.
        shifts: Rows and columns by which each image is shifted, int64 `(2, images)`.
        flips: Which images may be mirrored, bool `(images,)`.
    """

    order: Tensor
    shifts: Tensor
    flips: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """All of them."""
        return self.order, self.shifts, self.flips

    def to(self, device: torch.device) -> Draws:
        """Return the numbers on `device`."""
        return Draws(*(tensor.to(device) for tensor in self.tensors))

    def like(self, device: torch.device) -> Draws:
        """Return room for such numbers on `device`."""
        return Draws(*(torch.empty_like(tensor, device=device) for tensor in self.tensors))


class TrainingBatches:
    """The training images of one data set, in a new order and newly augmented at each epoch.

    The random numbers of an epoch are drawn on the CPU from one generator, so that the order and the augmentation are
    the same on every device, for every method, and after every resume. The last, smaller batch is dropped where
    there is at least one full one (BatchNorm). Where several processes share a run, each yields its part of every
    batch.
    """

    def __init__(self, data: DataSplits, batch_size: int, device: torch.device, rank: Rank = ALONE) -> None:
        self._images = data.train.to(device)
        self._augmentation = data.augmentation
        self._normalize = Normalize(data.mean, data.std, device)
        self._device = device
        self._windows: Tensor | None = None
        self.batch_size = min(batch_size, len(data.train))
        self._rank = rank
        rank.check(self.batch_size)

    def __len__(self) -> int:
        return len(self._images) // self.batch_size

    def draw(self, generator: torch.Generator) -> Draws:
        """Return the random numbers of the next epoch, on the CPU."""
        count = len(self._images)
        order = torch.randperm(count, generator=generator)[: len(self) * self.batch_size]
        shifts = torch.randint(0, 2 * self._augmentation.padding + 1, (2, count), generator=generator)
        flips = torch.rand(count, generator=generator) < 0.5
        return Draws(order.reshape(len(self), self.batch_size), shifts, flips)

    def batch(self, draws: Draws, index: Tensor) -> Batch:
        """Return the images at `index`, augmented: float32 `(batch, channels, height, width)`, and int64 labels."""
        if self._windows is None:  # padded once, at the first batch
            self._windows = shifted_windows(self._images.pixels, self._augmentation)
        pixels = self._windows[index, :, draws.shifts[0, index], draws.shifts[1, index]]
        if self._augmentation.flip:
            pixels = torch.where(draws.flips[index, None, None, None], pixels.flip(3), pixels)
        return self._normalize(pixels), self._images.labels[index]

    def epoch(self, generator: torch.Generator, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch: float32 images `(batch, channels, height, width)` and int64 labels.

        Args:
            generator: Draws the random numbers of the whole epoch.
            start: Batches that are left out at its beginning.
        """
        draws = self.draw(generator).to(self._device)
        for index in draws.order[start:]:
            yield self.batch(draws, self._rank.share(index))


def shifted_windows(pixels: Tensor, augmentation: Augmentation) -> Tensor:
    """Return all shifts of all images as a view, `(images, channels, shifts, shifts, height, width)`."""
    height, width = pixels.shape[2:]
    padded = torch.nn.functional.pad(pixels, [augmentation.padding] * 4)
    return padded.unfold(2, height, 1).unfold(3, width, 1)


def batches_in_order(
    images: Images, data: DataSplits, batch_size: int, device: torch.device, rank: Rank = ALONE
) -> Iterator[Batch]:
    """Yield images unaugmented and in order, the last batch smaller; processes take the batches in turn."""
    normalize = Normalize(data.mean, data.std, device)
    for start in range(rank.index * batch_size, len(images), rank.count * batch_size):
        stop = start + batch_size
        yield normalize(images.pixels[start:stop].to(device)), images.labels[start:stop].to(device)
