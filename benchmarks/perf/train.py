"""Training throughput of the suite's engine against the plain loop that users write."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
import torchvision.transforms as transforms
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.config import Phase, Precision
from benchmarks.datasets import Augmentation, DataSplits, Images
from benchmarks.datasets.in_memory import TrainingBatches
from benchmarks.machine.cores import available_cores
from benchmarks.machine.precision import has_bfloat16
from benchmarks.models import find_builder
from benchmarks.perf.measure import Candidate, Settings, in_turns, median_ms, median_ratio, quiet_couplings
from benchmarks.perf.roofline import Counted, count, peaks
from benchmarks.perf.workers import Workers
from benchmarks.training.loop import Training
from oicsr import GroupLasso

MODELS = ("resnet20", "resnet56")

SECONDS, SECONDS_ON_CPU = 15.0, 90.0  # of rounds per network and precision; large networks get fewer rounds

SHAPE = (3, 32, 32)

PLAIN_EACH, ENGINE_EACH = "plain, a run per core", "engine, a run per core"

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

NOTE = (
    "Images per second of one epoch with augmentation, on random images of CIFAR's shape. `plain` is a DataLoader over "
    "PIL images with torchvision's transforms, float32, on a CPU in a process of its own; `engine` is the suite's "
    "training, with OICSR-GL and without. "
    "`a run per core` is as many epochs at a time as there are threads, in processes of one thread each, as `--jobs` "
    "does runs, in the row's precision: all their images count. `rounds` says how many there were in their time. "
    "The roofline is of one step without the penalty: arithmetic (convolutions and products, forward and backward) and "
    "bytes (each input of an operation read once, each output written once) are counted, the peaks are those of a "
    "large matrix product and a large copy here, and the least time is the sum over operations of the larger of "
    "arithmetic over peak and bytes over bandwidth. A cache between operations can undercut it."
)


class PlainDataset(Dataset[tuple[Tensor, int]]):
    """Images as torchvision's CIFAR class holds them: an array, turned into a PIL image at each access."""

    def __init__(self, images: Images) -> None:
        self._pixels = images.pixels.permute(0, 2, 3, 1).contiguous().numpy()
        self._labels = images.labels.tolist()
        self._transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(Image.fromarray(self._pixels[index])), self._labels[index]


def run(settings: Settings) -> Iterator[dict[str, Any]]:
    """Yield a row per network and precision."""
    precisions: tuple[Precision, ...] = ("float32", "bfloat16") if has_bfloat16(settings.device.type) else ("float32",)
    for name in settings.models or MODELS:
        for precision in precisions:
            yield _row(name, precision, settings)


def synthetic(count: int) -> DataSplits:
    """Return random images of CIFAR's shape."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, *SHAPE), dtype=torch.uint8, generator=generator)
    images = Images(pixels, torch.randint(0, 10, (count,), generator=generator))
    return DataSplits(images, images, images, 10, MEAN, STD, Augmentation(4, True), "synthetic")


def plain_epoch(model: nn.Module, data: DataSplits, settings: Settings) -> Candidate:
    """Return one epoch of the loop that users write."""
    on_gpu = settings.device.type == "cuda"
    workers = min(4, available_cores()) if on_gpu else 0  # on a CPU, workers would take the model's cores
    loader = DataLoader(
        PlainDataset(data.train),
        settings.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        pin_memory=on_gpu,
        persistent_workers=workers > 0,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4, nesterov=True)

    def epoch() -> None:
        model.train()
        for images, labels in loader:
            images, labels = images.to(settings.device), labels.to(settings.device)
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()  # the running loss that plain loops keep

    return epoch


def engine(
    model: nn.Module,
    data: DataSplits,
    settings: Settings,
    precision: Precision,
    *,
    penalised: bool = False,
    graphs: bool = True,
) -> Training:
    """Return the suite's training."""
    model = model.to(memory_format=torch.channels_last)
    regularizer = None
    if penalised:
        couplings = quiet_couplings(model, torch.zeros(1, *SHAPE, device=settings.device))
        regularizer = GroupLasso(couplings, strength=1e-6)
    return Training(
        model,
        Phase(epochs=1, learning_rate=1e-3),
        TrainingBatches(data, settings.batch_size, settings.device),
        torch.Generator().manual_seed(0),
        regularizer=regularizer,
        precision=precision,
        graphs=graphs and settings.device.type == "cuda",
    )


def counted_step(name: str, data: DataSplits, settings: Settings, precision: Precision) -> Counted:
    """Return what one step of the engine does, its batch included (an epoch of one batch)."""
    one = data.limited(settings.batch_size)
    training = engine(_network(name, settings), one, settings, precision, graphs=False)
    training._train_epoch()  # makes the momentum
    return count(training._train_epoch)


def _row(name: str, precision: Precision, settings: Settings) -> dict[str, Any]:
    on_gpu = settings.device.type == "cuda"
    batches = 100 if on_gpu else 4
    total = batches * settings.batch_size
    data = synthetic(total)
    own = {
        "engine": engine(_network(name, settings), data, settings, precision),
        "penalised": engine(_network(name, settings), data, settings, precision, penalised=True),
    }
    if on_gpu:
        own["eager"] = engine(_network(name, settings), data, settings, precision, graphs=False)
    times = _times(name, total, settings, precision, own)
    row: dict[str, Any] = {
        "model": name,
        "precision": precision,
        "batch": settings.batch_size,
        "rounds": len(times["engine"]),
        "steps": own["engine"].step_mode,
        **_compared(times, total),
    }
    step = statistics.median(times["engine"]) / batches
    return row | against_roofline(counted_step(name, data, settings, precision), step, settings.device, precision)


def _times(
    name: str, total: int, settings: Settings, precision: Precision, own: Mapping[str, Training]
) -> dict[str, list[float]]:
    """Return the times of an epoch of the plain loop and of the engine, interleaved; on a CPU also a run per core."""
    on_gpu = settings.device.type == "cuda"
    cores = 1 if on_gpu else torch.get_num_threads()
    make_plain = partial(_plain, name, total, settings)
    make_engine = partial(_engine, name, total, settings, precision)
    with ExitStack() as stack:
        # on a CPU in its own process: settings of the engine must not speed up the plain loop
        plain = make_plain() if on_gpu else stack.enter_context(Workers(1, make_plain, cores))
        candidates = {"plain": plain} | {key: training._train_epoch for key, training in own.items()}
        if cores > 1:
            for key, make in ((PLAIN_EACH, make_plain), (ENGINE_EACH, make_engine)):
                candidates[key] = stack.enter_context(Workers(cores, make))
        seconds = SECONDS_ON_CPU if settings.device.type == "cpu" else SECONDS
        return in_turns(candidates, settings.repeats, settings.device, warmup=1, seconds=seconds)


def _compared(times: dict[str, list[float]], total: int) -> dict[str, float]:
    """Return images per second and the factors between the ways."""
    each = torch.get_num_threads() if ENGINE_EACH in times else 1
    images = {key: total * (each if key in (PLAIN_EACH, ENGINE_EACH) else 1) for key in times}
    rates = {key: round(images[key] / median_ms(times, key) * 1e3, 1) for key in times}
    row = {
        "plain images/s": rates["plain"],
        "engine images/s": rates["engine"],
        "engine with OICSR-GL images/s": rates["penalised"],
        "x plain": median_ratio(times, "plain", "engine"),
        "x plain, with OICSR-GL": median_ratio(times, "plain", "penalised"),
    }
    if "eager" in times:
        row["x without a graph"] = median_ratio(times, "eager", "engine")
    if ENGINE_EACH in times:
        row["plain, a run per core images/s"] = rates[PLAIN_EACH]
        row["engine, a run per core images/s"] = rates[ENGINE_EACH]
        row["x plain, a run per core"] = round(each * median_ratio(times, "plain", ENGINE_EACH), 4)
        row["x plain, both a run per core"] = median_ratio(times, PLAIN_EACH, ENGINE_EACH)
    return row


def _network(name: str, settings: Settings) -> nn.Module:
    torch.manual_seed(0)
    return find_builder(name)(10).to(settings.device)


def _plain(name: str, total: int, settings: Settings) -> Candidate:
    return plain_epoch(_network(name, settings), synthetic(total), settings)


def _engine(name: str, total: int, settings: Settings, precision: Precision) -> Candidate:
    return engine(_network(name, settings), synthetic(total), settings, precision)._train_epoch


def against_roofline(counted: Counted, seconds: float, device: torch.device, precision: Precision) -> dict[str, Any]:
    """Return what a step does and how near its time is to the least possible."""
    reached = peaks(device, precision)
    bound = counted.seconds(reached)
    return {
        "step ms": round(seconds * 1e3, 3),
        "G operations/step": round(counted.arithmetic / 1e9, 3),
        "MB/step": round(counted.bytes / 1e6, 1),
        "GFLOP/s": round(counted.arithmetic / seconds / 1e9, 1),
        "peak GFLOP/s": round(reached.arithmetic / 1e9, 1),
        "GB/s": round(counted.bytes / seconds / 1e9, 1),
        "peak GB/s": round(reached.bandwidth / 1e9, 1),
        "roofline ms": round(bound * 1e3, 3),
        "of roofline": round(bound / seconds, 3),
    }
