"""Data: splits, checksums, clear errors."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torchvision.datasets import CIFAR10

from benchmarks.datasets import load_dataset
from benchmarks.datasets.cifar import SOURCES, data_folders, find_root
from benchmarks.datasets.contract import DataError
from benchmarks.datasets.in_memory import Images, split_validation

HAVE_CIFAR10 = any((folder / SOURCES["cifar10"].folder).is_dir() for folder in data_folders())
needs_cifar10 = pytest.mark.skipif(not HAVE_CIFAR10, reason="CIFAR-10 is neither in OICSR_DATA nor in ./data")


def test_digits_are_split_without_overlap_and_normalised_right() -> None:
    data = load_dataset("digits")
    assert (len(data.train), len(data.validation), len(data.test)) == (1200, 200, 397)
    assert data.shape == (1, 8, 8) and data.num_classes == 10
    everything = torch.cat([data.train.pixels, data.validation.pixels, data.test.pixels]).double() / 255
    assert everything.mean().item() == pytest.approx(data.mean[0], abs=1e-3)
    assert everything.std().item() == pytest.approx(data.std[0], abs=1e-3)
    assert load_dataset("digits").checksum == data.checksum


@pytest.mark.real_data
@needs_cifar10
def test_cifar10_is_the_real_one() -> None:
    data = load_dataset("cifar10")
    assert (len(data.train), len(data.validation), len(data.test)) == (45_000, 5_000, 10_000)
    assert torch.bincount(data.test.labels).tolist() == [1000] * 10
    pixels = torch.cat([data.train.pixels, data.validation.pixels]).double() / 255
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx(data.mean, abs=5e-5)
    assert pixels.std((0, 2, 3)).tolist() == pytest.approx(data.std, abs=5e-5)


def test_validation_split_is_fixed_and_disjoint() -> None:
    images = Images(torch.arange(100, dtype=torch.uint8).reshape(100, 1, 1, 1), torch.arange(100))
    train, validation = split_validation(images, 20)
    again, _ = split_validation(images, 20)
    assert torch.equal(train.labels, again.labels)
    assert sorted([*train.labels.tolist(), *validation.labels.tolist()]) == list(range(100))
    assert torch.equal(train.pixels.flatten().long(), train.labels)  # images keep their labels


def test_limits_take_the_first_images_and_refuse_more_than_there_are() -> None:
    data = load_dataset("digits")
    small = data.limited(100, None, 50)
    assert torch.equal(small.train.labels, data.train.labels[:100]) and len(small.test) == 50
    assert len(small.validation) == 200
    with pytest.raises(ValueError, match="5000 training images were asked for; there are 1200"):
        data.limited(5000, None)


def test_missing_data_names_path_fix_and_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OICSR_DATA", str(tmp_path / "nowhere"))
    monkeypatch.chdir(tmp_path)

    def no_network(self: CIFAR10) -> None:
        raise OSError("no network")

    monkeypatch.setattr(CIFAR10, "download", no_network)
    with pytest.raises(DataError, match=r"nowhere.*OICSR_DATA.*make demo"):
        find_root(SOURCES["cifar10"])


def test_damaged_and_missing_files_are_refused_before_they_are_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    monkeypatch.setenv("OICSR_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"data_batch_1 is missing.*make demo"):
        load_dataset("cifar10")
    harm = tmp_path / "harm"
    (folder / "data_batch_1").write_bytes(f"cos\nmkdir\n(S'{harm}'\ntR.".encode())  # a pickle that acts when loaded
    with pytest.raises(DataError, match=r"is damaged.*data_batch_1.* has MD5 .*make demo"):
        load_dataset("cifar10")
    assert not harm.exists()


def test_unknown_data_set_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no data set 'cifar_10'\. Did you mean 'cifar10'"):
        load_dataset("cifar_10")


def test_environment_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OICSR_DATA", f"{os.sep}somewhere")
    assert data_folders() == [Path("/somewhere"), Path("data")]
    monkeypatch.delenv("OICSR_DATA")
    assert data_folders() == [Path("data")]
