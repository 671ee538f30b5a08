"""Data sets by name. Adding one is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.datasets.cifar import load_cifar10, load_cifar100
from benchmarks.datasets.contract import Data, Split
from benchmarks.datasets.digits import load_digits
from benchmarks.datasets.image_folder import PREFIX, folder_and_size, load_image_folder, load_imagenet
from benchmarks.datasets.in_memory import Augmentation, DataSplits, Images
from benchmarks.suggest import unknown_name

DATASETS: dict[str, Callable[[], Data]] = {
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "digits": load_digits,
    "imagenet": load_imagenet,
}

FIXED = {"cifar10", "cifar100"}  # nothing but files of known checksums is loaded under these names

FOLDER = f"{PREFIX}PATH"  # how any images in class folders are named


def load_dataset(name: str) -> Data:
    """Return a data set by name; `imagefolder:PATH[@SIZE]` names any images in class folders.

    Raises:
        ValueError: No data set has that name.
        DataError: Its files are missing or damaged; the message says which, and what to do.
    """
    check_dataset(name)
    return load_image_folder(name) if name.startswith(PREFIX) else DATASETS[name]()


def check_dataset(name: str) -> None:
    """Raise ValueError unless a data set has that name, or it names a folder of images, be it there or not."""
    if name.startswith(PREFIX):
        folder_and_size(name)
    elif name not in DATASETS:
        raise ValueError(unknown_name("data set", name, [*DATASETS, FOLDER]))


__all__ = [
    "DATASETS",
    "FIXED",
    "FOLDER",
    "Augmentation",
    "Data",
    "DataSplits",
    "Images",
    "Split",
    "check_dataset",
    "load_dataset",
]
