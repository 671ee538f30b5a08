"""Training throughput of the suite's engine against the plain loop that users write."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
import torchvision.transforms as transforms
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.config import Phase, Precision
from benchmarks.datasets import Augmentation, DataSplits, Images
from benchmarks.loading import TrainingBatches
from benchmarks.models import find_builder
from benchmarks.perf.measure import Candidate, Settings, in_turns, median_ms, median_ratio, quiet_couplings, timed
from benchmarks.training import Training
from oicsr import GroupLasso, count_macs

MODELS = ("resnet20", "resnet56")
SHAPE = (3, 32, 32)
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
NOTE = (
    "Images per second of one epoch with augmentation, on random images of CIFAR's shape. `plain` is a DataLoader over "
    "PIL images with torchvision's transforms, float32; `engine` is the suite's training, with OICSR-GL and without. "
    "`of peak` is the engine's arithmetic (three times the forward MACs, two operations each) over what a large matrix "
    "product reaches on the same device and precision."
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
    precisions: tuple[Precision, ...] = ("float32", "bfloat16") if has_bfloat16(settings.device) else ("float32",)
    for name in settings.models or MODELS:
        for precision in precisions:
            yield _row(name, precision, settings)


def has_bfloat16(device: torch.device) -> bool:
    """Return whether the device multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def synthetic(count: int) -> DataSplits:
    """Return random images of CIFAR's shape."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, *SHAPE), dtype=torch.uint8, generator=generator)
    images = Images(pixels, torch.randint(0, 10, (count,), generator=generator))
    return DataSplits(images, images, images, 10, MEAN, STD, Augmentation(4, True), "synthetic")


def plain_epoch(model: nn.Module, data: DataSplits, settings: Settings) -> Candidate:
    """Return one epoch of the loop that users write."""
    on_gpu = settings.device.type == "cuda"
    workers = min(4, os.cpu_count() or 1) if on_gpu else 0  # on a CPU the workers would take the model's cores
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


def engine_epoch(
    model: nn.Module, data: DataSplits, settings: Settings, precision: Precision, *, penalised: bool
) -> Candidate:
    """Return one epoch of the suite's training."""
    model = model.to(memory_format=torch.channels_last)
    regularizer = None
    if penalised:
        couplings = quiet_couplings(model, torch.zeros(1, *SHAPE, device=settings.device))
        regularizer = GroupLasso(couplings, strength=1e-6)
    training = Training(
        model,
        Phase(epochs=1, learning_rate=1e-3),
        TrainingBatches(data, settings.batch_size, settings.device),
        torch.Generator().manual_seed(0),
        regularizer=regularizer,
        precision=precision,
    )
    return training._train_epoch


def _row(name: str, precision: Precision, settings: Settings) -> dict[str, Any]:
    batches = 100 if settings.device.type == "cuda" else 4
    count = batches * settings.batch_size
    data = synthetic(count)
    torch.manual_seed(0)
    models = [find_builder(name)(10).to(settings.device) for _ in range(3)]
    candidates = {
        "plain": plain_epoch(models[0], data, settings),
        "engine": engine_epoch(models[1], data, settings, precision, penalised=False),
        "penalised": engine_epoch(models[2], data, settings, precision, penalised=True),
    }
    times = in_turns(candidates, max(3, settings.repeats // 4), settings.device, warmup=1)
    operations = 6 * count_macs(models[0], torch.zeros(1, *SHAPE, device=settings.device)) * count
    achieved = operations / statistics.median(times["engine"])
    rates = {key: round(count / median_ms(times, key) * 1e3, 1) for key in times}
    return {
        "model": name,
        "precision": precision,
        "batch": settings.batch_size,
        "plain images/s": rates["plain"],
        "engine images/s": rates["engine"],
        "engine with OICSR-GL images/s": rates["penalised"],
        "x plain": median_ratio(times, "plain", "engine"),
        "x plain, with OICSR-GL": median_ratio(times, "plain", "penalised"),
        "GFLOP/s": round(achieved / 1e9, 1),
        "of peak": round(achieved / matmul_peak(settings.device, precision), 3),
    }


def matmul_peak(device: torch.device, precision: Precision, seconds: float = 0.5) -> float:
    """Return the operations per second of a large matrix product: the best of many."""
    size = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a = torch.randn(size, size, device=device, dtype=dtype)
    torch.mm(a, a)
    stop = time.perf_counter() + seconds
    best = timed(lambda: torch.mm(a, a), device)
    while time.perf_counter() < stop:
        best = min(best, timed(lambda: torch.mm(a, a), device))
    return 2 * size**3 / best
