"""CIFAR-10 and CIFAR-100 from their standard files: every file's MD5 is checked before it is unpickled.

Looked up in `$OICSR_DATA`, then in `./data`, otherwise downloaded there. Mean and standard deviation are those of all
pixels of the 50,000 training images (not the mean of the images' own deviations, a second convention in circulation).
"""

from __future__ import annotations

import hashlib
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError

import torch

from benchmarks.datasets.contract import DataError, MissingDataError
from benchmarks.datasets.in_memory import Augmentation, DataSplits, Images, split_validation

if TYPE_CHECKING:  # torchvision takes seconds to import: only when images are read
    from torchvision.datasets import CIFAR10


VALIDATION_IMAGES = 5_000

AUGMENTATION = Augmentation(padding=4, flip=True)


@dataclass(frozen=True)
class Source:
    """Where a CIFAR data set comes from, and what is in it."""

    name: str
    label_key: str
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def dataset(self) -> type[CIFAR10]:
        """Its class in torchvision, which knows the files and their checksums."""
        from torchvision import datasets

        result: type = {"CIFAR-10": datasets.CIFAR10, "CIFAR-100": datasets.CIFAR100}[self.name]
        return result

    @property
    def folder(self) -> str:
        """Name of the folder that holds the files."""
        return str(self.dataset.base_folder)


SOURCES = {
    "cifar10": Source("CIFAR-10", "labels", 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": Source("CIFAR-100", "fine_labels", 100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def load_cifar10() -> DataSplits:
    """Return CIFAR-10: 45,000 training, 5,000 validation and 10,000 test images of 3x32x32."""
    return _load(SOURCES["cifar10"])


def load_cifar100() -> DataSplits:
    """Return CIFAR-100 with its 100 fine labels, split as CIFAR-10."""
    return _load(SOURCES["cifar100"])


def _load(source: Source) -> DataSplits:
    root = find_root(source)
    train_files = [_read(root, source, file, md5) for file, md5 in source.dataset.train_list]
    test_files = [_read(root, source, file, md5) for file, md5 in source.dataset.test_list]
    train, validation = split_validation(_images(train_files, source), VALIDATION_IMAGES)
    sums = "".join(md5 for _, md5 in [*source.dataset.train_list, *source.dataset.test_list])
    return DataSplits(
        train=train,
        validation=validation,
        test=_images(test_files, source),
        num_classes=source.num_classes,
        mean=source.mean,
        std=source.std,
        augmentation=AUGMENTATION,
        checksum=hashlib.sha256(sums.encode()).hexdigest(),
    )


def data_folders() -> list[Path]:
    """Return the folders that are searched for data sets, in order."""
    named = os.environ.get("OICSR_DATA")
    return [*([Path(named)] if named else []), Path("data")]


def find_root(source: Source) -> Path:
    """Return the folder of the data set; if it is missing, download it to the first folder searched.

    Raises:
        MissingDataError: It was not found and cannot be downloaded.
    """
    for folder in data_folders():
        if (folder / source.folder).is_dir():
            return folder
    target = data_folders()[0]
    try:
        source.dataset(str(target), download=True)
    except (URLError, OSError, RuntimeError) as error:
        looked = ", ".join(str((folder / source.folder).absolute()) for folder in data_folders())
        raise MissingDataError(
            f"{source.name} was not found (looked in {looked}) and could not be downloaded ({error}). Put the "
            f"standard folder {source.folder!r} in one of these places or set OICSR_DATA to the folder that holds it. "
            "`make demo` needs no data."
        ) from error
    return target


def _read(root: Path, source: Source, file: str, md5: str) -> dict[str, Any]:
    path = root / source.folder / file
    if not path.is_file():
        raise DataError(
            f"{source.name} is incomplete: {path.absolute()} is missing. Remove the folder to download it again, or "
            "restore the file. `make demo` needs no data."
        )
    content = path.read_bytes()
    found = hashlib.md5(content).hexdigest()
    if found != md5:
        raise DataError(
            f"{source.name} is damaged: {path.absolute()} has MD5 {found}, expected {md5}. Remove it and download or "
            "copy it again. `make demo` needs no data."
        )
    return dict(pickle.loads(content, encoding="latin1"))


def _images(files: list[dict[str, Any]], source: Source) -> Images:
    pixels = torch.cat([torch.from_numpy(file["data"]) for file in files])
    labels = [label for file in files for label in file[source.label_key]]
    return Images(pixels.reshape(-1, 3, 32, 32), torch.tensor(labels))  # rows are channel-major
