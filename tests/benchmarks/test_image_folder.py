"""Images in folders: found, split, decoded and augmented alike for any number of workers, and trained on end to end."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import cli
from benchmarks.config import Cell, Experiment
from benchmarks.datasets import load_dataset
from benchmarks.datasets.contract import DataError
from benchmarks.datasets.image_folder import FolderSplits, evaluation_transform, read_folder
from benchmarks.experiments import EXPERIMENTS
from benchmarks.machine.processes import Rank
from benchmarks.models import build_model
from benchmarks.running.adhoc import find_any, make_experiments, save_experiment
from benchmarks.running.export import export
from benchmarks.running.run import run_cell
from oicsr import count_macs, load_pruned
from tests.benchmarks.small import PROFILE, small_bench

CPU = torch.device("cpu")
CLASSES, PER_CLASS = 10, 24


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes of 24 training and 6 test images, each a colour of its class with noise, of various sizes."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split, count in (("train", PER_CLASS), ("val", 6)):
        for label in range(CLASSES):
            (root / split / f"class{label}").mkdir(parents=True)
            colour = np.array([25 * label, 255 - 25 * label, 128 * (label % 2)])
            for number in range(count):
                height, width = generator.integers(36, 60, 2)
                pixels = np.clip(colour + generator.normal(0, 25, (height, width, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / f"class{label}" / f"{number:03d}.jpg")
    return root


@pytest.fixture
def data(folder: Path, monkeypatch: pytest.MonkeyPatch) -> FolderSplits:
    monkeypatch.setenv("OICSR_WORKERS", "0")
    found = load_dataset(f"imagefolder:{folder}@32")
    assert isinstance(found, FolderSplits)
    return found


def test_splits_are_fixed_and_disjoint(data: FolderSplits, folder: Path) -> None:
    assert (len(data.train), len(data.validation), len(data.test)) == (216, 24, 60)
    assert set(data.train.paths).isdisjoint(data.validation.paths)
    assert data.shape == (3, 32, 32) and data.num_classes == CLASSES
    assert read_folder(folder).validation.paths == data.validation.paths
    assert all(f"class{label}" in path for path, label in zip(data.train.paths, data.train.labels, strict=True))
    few = data.limited(50, 10, 20)
    assert (len(few.train), len(few.validation), len(few.test)) == (50, 10, 20)
    assert len(few.train.labels.unique()) > 5  # not the first ones, which are all of one class
    with pytest.raises(ValueError, match="1000 training images were asked for; there are 216"):
        data.limited(1000)


def test_importances_read_training_images_of_all_classes(data: FolderSplits) -> None:
    """They read the first few batches only, and the files are in the order of their classes."""
    shares = [list(data.evaluation_batches("train", 24, CPU, Rank(index, 2))) for index in range(2)]
    (_, first), *_ = data.evaluation_batches("train", 24, CPU)
    assert len(first.unique()) > 5 and torch.equal(first, shares[0][0][1])
    everything = torch.cat([labels for share in shares for _, labels in share])
    assert torch.equal(everything.sort().values, data.train.labels.sort().values)
    (_, tested), *_ = data.evaluation_batches("test", 24, CPU)
    assert torch.equal(tested, data.test.labels[:24])


def test_checksum_is_of_the_list_of_files(folder: Path, tmp_path: Path) -> None:
    first = read_folder(folder).checksum
    assert read_folder(folder, 64).checksum == first
    (tmp_path / "copy").symlink_to(folder)
    assert read_folder(tmp_path / "copy").checksum == first
    assert read_folder(folder / "train").checksum != first


def test_workers_change_nothing(data: FolderSplits) -> None:
    epochs = []
    for workers in (0, 2):
        generator = torch.Generator().manual_seed(5)
        batches = replace(data, workers=workers).training_batches(64, CPU)
        epochs.append([*batches.epoch(generator), *batches.epoch(generator)])
    assert len(epochs[0]) == 2 * len(batches) == 6
    for (images, labels), (same_images, same_labels) in zip(*epochs, strict=True):
        assert torch.equal(images, same_images) and torch.equal(labels, same_labels)
    assert not torch.equal(epochs[0][0][0], epochs[0][3][0])  # the second epoch is another one
    assert images.shape == (64, 3, 32, 32) and images.is_contiguous(memory_format=torch.channels_last)


def test_loading_draws_nothing_from_the_global_generator(data: FolderSplits) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    next(data.training_batches(16, CPU).epoch(torch.Generator().manual_seed(0)))
    list(data.evaluation_batches("test", 30, CPU))
    assert torch.equal(torch.rand(1), expected)


def test_processes_share_every_batch(data: FolderSplits) -> None:
    whole = list(data.training_batches(32, CPU).epoch(torch.Generator().manual_seed(1)))
    parts = [list(data.training_batches(32, CPU, Rank(i, 2)).epoch(torch.Generator().manual_seed(1))) for i in (0, 1)]
    for (images, labels), first, second in zip(whole, *parts, strict=True):
        assert torch.equal(images, torch.cat([first[0], second[0]]))
        assert torch.equal(labels, torch.cat([first[1], second[1]]))
    with pytest.raises(ValueError, match="33 images cannot be shared equally by 2 processes"):
        data.training_batches(33, CPU, Rank(0, 2))
    seen = [y for i in (0, 1) for _, y in data.evaluation_batches("test", 7, CPU, Rank(i, 2))]
    assert torch.cat(seen).sort().values.equal(data.test.labels)


def test_evaluation_is_resize_and_centre_crop(data: FolderSplits) -> None:
    ((images, labels),) = data.evaluation_batches("test", 60, CPU)
    assert torch.equal(labels, data.test.labels)
    image = Image.open(data.test.paths[7]).convert("RGB")
    scale = 37 / min(image.size)  # 32 * 256 / 224 is 36.57
    pixels = np.asarray(image.resize((int(image.width * scale), int(image.height * scale)), Image.BILINEAR))
    top, left = round((pixels.shape[0] - 32) / 2), round((pixels.shape[1] - 32) / 2)
    crop = torch.from_numpy(pixels[top : top + 32, left : left + 32].copy()).permute(2, 0, 1) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(images[7], (crop - mean[:, None, None]) / std[:, None, None], atol=0.15)
    at_224 = evaluation_transform(224)(torch.zeros(3, 300, 500, dtype=torch.uint8))
    assert at_224.shape == (3, 224, 224)
    assert evaluation_transform(224).transforms[0].size == [256]


def test_a_run_goes_end_to_end_and_learns(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OICSR_WORKERS", "1")
    profile = replace(PROFILE, batch_size=24, train_images=None, validation_images=None, test_images=None)
    profile = replace(profile, dense=replace(profile.dense, epochs=4))
    experiment = Experiment("own", "Own", "It works.", "resnet20", f"imagefolder:{folder}@16", {"quick": profile})
    record = run_cell(small_bench(tmp_path), Cell(experiment, "quick", "oicsr-gl", 0, 0.5))
    assert record.complete, record.failure
    assert record.states["dense"]["top1"] > 0.3  # chance is 0.1
    assert record.states["pruned"]["macs"] == pytest.approx(0.5 * record.states["dense"]["macs"], rel=0.01)
    assert record.provenance["data_sha256"] == read_folder(folder).checksum


def test_a_sweep_takes_a_folder_from_anywhere_with_all_its_images(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OICSR_WORKERS", "0")
    monkeypatch.setitem(EXPERIMENTS, "small", Experiment("small", "S", "C", "resnet20", "cifar10", {"quick": PROFILE}))
    monkeypatch.chdir(folder.parent)
    data = f"imagefolder:../{folder.parent.name}/{folder.name}@16"
    words = f"sweep --models resnet20 --datasets {data} --methods none --template small --plan"
    places = ["--results", str(tmp_path / "r"), "--checkpoints", str(tmp_path / "c")]
    assert cli.main([*words.split(), *places]) == 0
    assert f"sweep-imagefolder-{folder.name}-16-resnet20 (quick): 1 run" in capsys.readouterr().out
    (made,) = make_experiments(cli.build_parser("sweep").parse_args([*words.split(), *places]), CPU)
    assert made.dataset == f"imagefolder:{folder.resolve()}@16"
    assert made.title == f"imagefolder:{folder.name}@16, resnet20"
    assert made.profile("quick").train_images is None  # the template's 128 are of another data set
    assert save_experiment(made, tmp_path / "r").is_file() and find_any(made.name, tmp_path / "r") == made


def test_folders_of_one_name_are_not_one_experiment(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(folder, tmp_path / "elsewhere" / folder.name)
    both = f"imagefolder:{folder}@32,imagefolder:{tmp_path / 'elsewhere' / folder.name}@32"
    options = cli.build_parser("sweep").parse_args(["sweep", "--models", "resnet20", "--datasets", both])
    with pytest.raises(ValueError, match=r"would both be called .*: rename a folder"):
        make_experiments(options, CPU)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("imagefoldr:pictures", "Did you mean 'imagefolder:PATH'"),
        ("imagefolder:", "'imagefolder:' names no folder; write imagefolder:PATH"),
        ("imagefolder:pictures@big", "it must be a number of pixels"),
        ("imagefolder:pictures", r"takes images of \(1, 8, 8\), data set 'imagefolder:pictures' has \(3, 224, 224\)"),
    ],
)
def test_a_folder_that_a_sweep_cannot_use_is_said(
    dataset: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sweep", "--models", "digits-resnet", "--datasets", dataset, "--plan"]) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("model", ["torchvision:mobilenet_v3_small", "timm:test_resnet"])
def test_networks_of_the_hubs_run_as_experiments(
    model: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a local file of weights to a pruned network that its constructor and a file build again."""
    monkeypatch.setenv("OICSR_WORKERS", "0")
    weights, images = tmp_path / "weights.pt", torch.zeros(1, 3, 32, 32)
    torch.save(build_model(model, 5).state_dict(), weights)  # another number of classes, as weights of a hub have
    profile = replace(PROFILE, batch_size=24, train_images=48, validation_images=None, test_images=20)
    data, profiles = f"imagefolder:{folder}@32", {"quick": profile}
    experiment = Experiment("own", "Own", "It works.", model, data, profiles, weights=str(weights))
    record = run_cell(small_bench(tmp_path), Cell(experiment, "quick", "oicsr-gl", 0, 0.5))
    assert record.complete, record.failure
    assert record.states["dense"]["macs"] == count_macs(build_model(model, CLASSES), images)
    assert record.states["pruned"]["macs"] == pytest.approx(0.5 * record.states["dense"]["macs"], rel=0.01)
    run = f"{record.experiment}/{record.run_id}"
    places = tmp_path / "results", tmp_path / "checkpoints", tmp_path / "small.safetensors"
    small = load_pruned(export(run, "safetensors", *places), lambda: build_model(model, CLASSES))
    assert count_macs(small, images) == record.states["finetuned"]["macs"] and small(images).shape == (1, CLASSES)


def test_a_folder_without_test_images_is_split(folder: Path) -> None:
    data = read_folder(folder / "train")
    assert len(data.test) == 48 and len(data.train) + len(data.validation) == 192
    assert set(data.test.paths).isdisjoint(data.train.paths + data.validation.paths)


@pytest.mark.parametrize("count", [2, 5])
def test_a_folder_of_too_few_images_is_named(count: int, tmp_path: Path) -> None:
    (tmp_path / "class").mkdir()
    for number in range(count):
        Image.new("RGB", (8, 8)).save(tmp_path / "class" / f"{number}.png")
    with pytest.raises(DataError, match=f"too few images: of {count}, none are left for validation or testing"):
        read_folder(tmp_path)


def test_what_is_missing_or_wrong_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OICSR_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"{tmp_path}/imagenet.*train/CLASS.*val/CLASS.*`make demo`"):
        load_dataset("imagenet")
    (tmp_path / "imagenet").symlink_to(folder)
    with pytest.raises(DataError, match=r"1,000 classes.*has 10.*imagefolder:PATH"):
        load_dataset("imagenet")
    with pytest.raises(DataError, match=r"no images in folders of classes under .*nowhere"):
        load_dataset(f"imagefolder:{tmp_path}/nowhere")
    with pytest.raises(ValueError, match=r"image size of .* is 'big'"):
        load_dataset(f"imagefolder:{folder}@big")
    monkeypatch.setenv("OICSR_WORKERS", "many")
    with pytest.raises(ValueError, match="OICSR_WORKERS is 'many'"):
        load_dataset(f"imagefolder:{folder}")


def test_test_counts_where_there_is_val_as_well(tmp_path: Path) -> None:
    for split, count in (("train", 20), ("val", 2), ("test", 3)):
        for label in ("cat", "dog"):
            (tmp_path / split / label).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (40, 40)).save(tmp_path / split / label / f"{number}.png")
    found = read_folder(tmp_path)
    assert {Path(path).parent.parent.name for path in found.test.paths} == {"test"} and len(found.test) == 6


def test_classes_must_agree_and_damaged_images_are_named(tmp_path: Path) -> None:
    for path in ("train/cat", "train/dog", "val/cat", "val/cow"):
        (tmp_path / path).mkdir(parents=True)
        for name in "abc":
            Image.new("RGB", (40, 40)).save(tmp_path / path / f"{name}.png")
    with pytest.raises(DataError, match="other classes, such as 'cow'"):
        read_folder(tmp_path)
    (tmp_path / "val/cow").rename(tmp_path / "val/dog")
    (tmp_path / "val/dog/a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"val/dog/a\.png is not a readable image"):
        list(replace(read_folder(tmp_path), workers=0).evaluation_batches("test", 6, CPU))
