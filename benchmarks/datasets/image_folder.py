"""ImageNet-1K, and any other images in class folders: decoded on demand by worker processes.

Layout, as torchvision's `ImageFolder`: `train/CLASS/IMAGE` and `val/CLASS/IMAGE` (or `test/`); a folder of classes
alone is split by a fixed permutation. Training: a random part of the image of 8 to 100 % of its area, resized, half of
them mirrored. Evaluation: the shorter side to 256/224 of the network's size, and the centre (256 and 224 for ImageNet).

Order and augmentation are drawn from one generator, image by image, so that they do not depend on the number of
workers (`OICSR_WORKERS`; the default is one per core, up to 16). Pixels travel as bytes through pinned memory and are
normalised on the device, in channels-last layout, while the network works on the batch before.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.datasets.cifar import data_folders
from benchmarks.datasets.contract import Batch, DataError, MissingDataError, Split
from benchmarks.datasets.in_memory import Normalize
from benchmarks.machine.cores import available_cores
from benchmarks.machine.processes import ALONE, Rank

if TYPE_CHECKING:  # torchvision takes seconds to import: only when images are read
    from torchvision.transforms import v2


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as torchvision's networks expect

IMAGE_SIZE, RESIZED = 224, 256

IMAGENET_CLASSES = 1_000

VALIDATION_SHARE, MOST_VALIDATION = 0.1, 10_000

TEST_SHARE = 0.2  # of a folder without its own test images

PREFETCH = 4  # batches per worker

PREFIX = "imagefolder:"

LAYOUT = "train/CLASS/*.JPEG and val/CLASS/*.JPEG (torchvision's ImageFolder layout)"

Item = tuple[int, int]  # index of the image, seed of its augmentation


@dataclass(frozen=True, eq=False)
class Files:
    """Images on disk: paths, and int64 labels `(images,)`."""

    paths: tuple[str, ...]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, indices: Sequence[int]) -> Files:
        """Return the files at `indices`."""
        return Files(tuple(self.paths[i] for i in indices), self.labels[list(indices)])


@dataclass(frozen=True, eq=False)
class FolderSplits:
    """A data set of images on disk (see `benchmarks.datasets.contract.Data`).

    Attributes:
        train: Training images, without the validation split.
        validation: Fixed images of the training set that choose strengths.
        test: Evaluated once per state.
        num_classes: Labels run from 0 to this minus 1.
        checksum: SHA-256 over the names and labels of all files (not over their contents).
        image_size: Height and width of what networks see.
        workers: Processes that decode; 0: the training process itself.
    """

    train: Files
    validation: Files
    test: Files
    num_classes: int
    checksum: str
    image_size: int = IMAGE_SIZE
    workers: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image, as networks see it."""
        return 3, self.image_size, self.image_size

    def limited(
        self, train_images: int | None = None, validation_images: int | None = None, test_images: int | None = None
    ) -> FolderSplits:
        """Return the same data set with fewer images, chosen by a fixed permutation (files are ordered by class).

        Raises:
            ValueError: There are fewer images than that.
        """
        return replace(
            self,
            train=_some(self.train, train_images, "training"),
            validation=_some(self.validation, validation_images, "validation"),
            test=_some(self.test, test_images, "test"),
        )

    def training_batches(self, batch_size: int, device: torch.device, rank: Rank = ALONE) -> StreamedBatches:
        """Return the training images, shuffled and augmented, in global batches of `batch_size`."""
        return StreamedBatches(self, batch_size, device, rank)

    def evaluation_batches(
        self, split: Split, batch_size: int, device: torch.device, rank: Rank = ALONE
    ) -> Iterator[Batch]:
        """Yield the images of a split, resized and cropped, in order; each process takes its share of the batches.

        The order of training images is random and fixed: importances read only the first ones, and files are by class.
        """
        files: Files = getattr(self, split)
        order = _order(len(files)) if split == "train" else torch.arange(len(files))
        batches = order.split(batch_size)[rank.index :: rank.count]
        items = [[(i, 0) for i in batch.tolist()] for batch in batches]
        return _load(files, evaluation_transform(self.image_size), items, self.workers, device)


def training_transform(size: int) -> v2.Transform:
    """Return the standard augmentation: a random resized crop, mirrored half of the time."""
    from torchvision.transforms import v2

    return v2.Compose([v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()])


def evaluation_transform(size: int) -> v2.Transform:
    """Return the standard evaluation: for 224 pixels resize to 256, then crop the centre."""
    from torchvision.transforms import v2

    return v2.Compose([v2.Resize(round(size * RESIZED / IMAGE_SIZE), antialias=True), v2.CenterCrop(size)])


class StreamedBatches:
    """The training images in a new order and newly augmented at each epoch, decoded by workers.

    As with images in memory, the last, smaller batch is dropped where there is a full one, and each of several
    processes yields its part of every batch.
    """

    def __init__(self, data: FolderSplits, batch_size: int, device: torch.device, rank: Rank = ALONE) -> None:
        self._data, self._device, self._rank = data, device, rank
        self.batch_size = min(batch_size, len(data.train))
        rank.check(self.batch_size)

    def __len__(self) -> int:
        return len(self._data.train) // self.batch_size

    def epoch(self, generator: torch.Generator, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch: float32 images `(batch, 3, height, width)` and int64 labels.

        Args:
            generator: Draws the random numbers of the whole epoch.
            start: Batches that are left out at its beginning; they are not decoded.
        """
        count = len(self._data.train)
        order = torch.randperm(count, generator=generator)
        seeds = torch.randint(0, 2**62, (count,), generator=generator)
        items = []
        for batch in order.split(self.batch_size)[start : len(self)]:
            index = self._rank.share(batch)
            items.append(list(zip(index.tolist(), seeds[index].tolist(), strict=True)))
        transform = training_transform(self._data.image_size)
        return _load(self._data.train, transform, items, self._data.workers, self._device)


class _Decoded(Dataset[tuple[Tensor, Tensor]]):
    """Files as uint8 tensors; the augmentation of each is drawn from its own seed."""

    def __init__(self, files: Files, transform: v2.Transform) -> None:
        from torchvision.datasets.folder import default_loader
        from torchvision.transforms import v2

        self._files, self._transform = files, transform
        self._read, self._to_tensor = default_loader, v2.PILToTensor()

    def __getitem__(self, item: Item) -> tuple[Tensor, Tensor]:
        index, seed = item
        path = self._files.paths[index]
        try:
            image = self._read(path)
        except (OSError, UnidentifiedImageError) as error:
            raise DataError(f"{path} is not a readable image: {error}. Restore it, or remove it.") from error
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pixels: Tensor = self._transform(self._to_tensor(image))
        return pixels, self._files.labels[index]


def _load(
    files: Files, transform: v2.Transform, items: list[list[Item]], workers: int, device: torch.device
) -> Iterator[Batch]:
    settings: dict[str, Any] = {"prefetch_factor": PREFETCH, "worker_init_fn": _one_thread} if workers else {}
    loader = DataLoader(
        _Decoded(files, transform),
        batch_sampler=items,  # an index may be anything that the data set accepts
        num_workers=workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # unused seed of the loader; the global generator would move dropout
        **settings,
    )
    normalize = Normalize(MEAN, STD, device)
    for pixels, labels in _ahead(iter(loader), device):
        yield normalize(pixels), labels


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


def _ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield batches on the device; on a GPU the next one is copied while the current one is worked on."""
    if device.type != "cuda":
        yield from ((pixels.to(device), labels.to(device)) for pixels, labels in batches)
        return
    stream = torch.cuda.Stream(device)

    def copy(batch: Batch | None) -> Batch | None:
        if batch is None:
            return None
        with torch.cuda.stream(stream):
            return batch[0].to(device, non_blocking=True), batch[1].to(device, non_blocking=True)

    following = copy(next(batches, None))
    while following is not None:
        current = following
        torch.cuda.current_stream(device).wait_stream(stream)
        for tensor in current:
            tensor.record_stream(torch.cuda.current_stream(device))
        following = copy(next(batches, None))
        yield current


def load_imagenet() -> FolderSplits:
    """Return ImageNet-1K: its validation images are the test split; 10,000 of its training images choose strengths.

    Raises:
        DataError: It is missing or has another layout.
    """
    looked = [folder / "imagenet" for folder in data_folders()]
    root = next((folder for folder in looked if (folder / "train").is_dir() and (folder / "val").is_dir()), None)
    if root is None:
        raise MissingDataError(
            f"ImageNet-1K was not found (looked in {', '.join(str(folder.absolute()) for folder in looked)}). It "
            f"cannot be downloaded without an account at image-net.org. Put it there as {LAYOUT}, or set OICSR_DATA to "
            "the folder that holds `imagenet`. `make demo` needs no data."
        )
    data = read_folder(root)
    if data.num_classes != IMAGENET_CLASSES:
        raise DataError(
            f"ImageNet-1K has 1,000 classes; {root.absolute()} has {data.num_classes}. Its layout is {LAYOUT}. Name "
            f"any other images `{PREFIX}PATH`. `make demo` needs no data."
        )
    return data


def load_image_folder(name: str) -> FolderSplits:
    """Return the images of a folder by name: `imagefolder:PATH`, or `imagefolder:PATH@SIZE` for other than 224 pixels.

    Raises:
        ValueError: The size is not a number, or no folder is named.
        DataError: The folder does not exist or has another layout.
    """
    return read_folder(*folder_and_size(name))


def folder_and_size(name: str) -> tuple[Path, int]:
    """Return the folder and the image size, in pixels, of `imagefolder:PATH[@SIZE]`.

    Raises:
        ValueError: The size is not a number, or no folder is named.
    """
    path, _, size = name.removeprefix(PREFIX).partition("@")
    if not path:
        raise ValueError(f"{name!r} names no folder; write {PREFIX}PATH or {PREFIX}PATH@SIZE")
    if size and not (size.isdigit() and int(size)):
        raise ValueError(f"the image size of {name!r} is {size!r}; it must be a number of pixels such as 224")
    return Path(path), int(size) if size else IMAGE_SIZE


def read_folder(root: Path, image_size: int = IMAGE_SIZE) -> FolderSplits:
    """Return the images under a folder.

    Raises:
        DataError: The folder does not exist or has another layout.
    """
    test_folder = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if (root / "train").is_dir() and test_folder is not None:
        train, classes = _files(root / "train")
        test, test_classes = _files(test_folder)
        if classes != test_classes:
            odd = sorted(set(classes) ^ set(test_classes))
            raise DataError(f"{root.absolute()}: train and {test_folder.name} have other classes, such as {odd[0]!r}")
    else:
        everything, classes = _files(root)
        train, test = _split(everything, round(TEST_SHARE * len(everything)))
    count = len(train) + len(test)
    checksum = _checksum(root, [*train.paths, *test.paths], [*train.labels.tolist(), *test.labels.tolist()])
    train, validation = _split(train, min(MOST_VALIDATION, round(VALIDATION_SHARE * len(train))))
    if not (len(test) and len(validation)):
        raise DataError(f"{root.absolute()} has too few images: of {count}, none are left for validation or testing")
    return FolderSplits(train, validation, test, len(classes), checksum, image_size, default_workers())


def default_workers() -> int:
    """Return the number of decoding processes: `OICSR_WORKERS`, or one per core, up to 16.

    Raises:
        ValueError: The variable is not a number.
    """
    named = os.environ.get("OICSR_WORKERS")
    if named is None:
        return min(16, available_cores())
    if not named.isdigit():
        raise ValueError(f"OICSR_WORKERS is {named!r}; it must be a number of processes such as 8, or 0")
    return int(named)


def _files(root: Path) -> tuple[Files, list[str]]:
    """Return the images under a folder of classes, in the order of their names, and the classes."""
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(str(root))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(
            f"no images in folders of classes under {root.absolute()} ({str(error).splitlines()[0]}). The layout is "
            f"{LAYOUT}, or folders of classes alone. `make demo` needs no data."
        ) from error
    paths, labels = zip(*found.samples, strict=True)
    return Files(paths, torch.tensor(labels)), found.classes


def _order(count: int) -> Tensor:
    """Return a fixed permutation."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


def _split(files: Files, count: int) -> tuple[Files, Files]:
    """Split off `count` files by a fixed permutation; both parts keep their order."""
    order = _order(len(files)).tolist()
    return files.take(sorted(order[count:])), files.take(sorted(order[:count]))


def _some(files: Files, count: int | None, what: str) -> Files:
    if count is None:
        return files
    if not 0 < count <= len(files):
        raise ValueError(f"{count!r} {what} images were asked for; there are {len(files)}")
    return _split(files, count)[1]


def _checksum(root: Path, paths: Sequence[str], labels: Sequence[int]) -> str:
    total = hashlib.sha256()
    for path, label in sorted(zip(paths, labels, strict=True)):
        total.update(f"{Path(path).relative_to(root).as_posix()}\t{label}\n".encode())
    return total.hexdigest()
