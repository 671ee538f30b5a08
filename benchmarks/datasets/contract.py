"""What a run needs of a data set, wherever its images are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sized
from typing import Literal, Protocol, Self, get_args

import torch
from torch import Tensor

from benchmarks.machine.processes import ALONE, Rank

Split = Literal["train", "validation", "test"]


class DataError(RuntimeError):
    """A data set is missing or damaged."""


class MissingDataError(DataError):
    """A data set was not found: it is missing, not damaged."""


class Batches(Protocol):
    """Where training batches come from, epoch by epoch."""

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        ...

    def epoch(self, generator: torch.Generator, start: int = 0) -> Iterator[Batch]:
        """Yield images and labels, on the model's device, from the batch number `start` on.

        Order and augmentation are as the generator says; the random numbers of the complete epoch are drawn for any
        `start`.
        """
        ...


class EpochBatches(Batches, Protocol):
    """Training batches of one size."""

    batch_size: int


class Data(Protocol):
    """What runs need of a data set, wherever its images are stored."""

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
        """Evaluated once per state, after the last epoch."""
        ...

    @property
    def num_classes(self) -> int:
        """Labels run from 0 to this minus 1."""
        ...

    @property
    def checksum(self) -> str:
        """SHA-256 that identifies the data set."""
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
        """Yield the images of a split as they are, in order; each process takes its share of the batches.

        Training images come in a fixed random order: importances that use data read only the first of them.
        """
        ...


Batch = tuple[Tensor, Tensor]


def arrangement_of(data: Data) -> str:
    """Return a SHA-256 of what is made of a data set's images: which are in which split, and how they are changed.

    Images count by their labels, in order; the normalisation, the augmentation and the size where they have one.
    """
    changes = {name: getattr(data, name, None) for name in ("mean", "std", "augmentation", "shape")}
    found = hashlib.sha256(repr(changes).encode())
    for split in get_args(Split):
        labels = torch.as_tensor(getattr(getattr(data, split), "labels", ()), dtype=torch.int64)
        found.update(len(labels).to_bytes(8, "big") + labels.cpu().numpy().tobytes())
    return found.hexdigest()
