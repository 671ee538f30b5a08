"""Small trainings over static buffers, and a recorder that needs no GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from baselines.registry import REGULARIZERS
from benchmarks.config import Phase
from benchmarks.datasets import DataSplits, Images
from benchmarks.datasets.in_memory import TrainingBatches
from benchmarks.perf.measure import quiet_couplings
from benchmarks.perf.train import synthetic
from benchmarks.training.cuda_graphs import (
    Recorder,
)
from benchmarks.training.loop import Score, Training
from benchmarks.training.replay_check import Call
from oicsr import GroupLasso, ProximalGroupLasso, Regularizer
from tests.oicsr.networks import Chain

CPU = torch.device("cpu")
Make = Callable[..., Regularizer | None]
KINDS: dict[str, Make] = {
    "none": lambda couplings: None,
    "oicsr-gl": lambda couplings: GroupLasso(couplings, strength=1e-2),
    "proximal": lambda couplings: ProximalGroupLasso(couplings, strength=0.1),
    "greg1": lambda couplings: REGULARIZERS["greg1"].make(couplings, 1e-3),
    "growl-prox": lambda couplings: REGULARIZERS["growl-prox"].make(couplings, 0.1),
    "cges": lambda couplings: REGULARIZERS["cges"].make(couplings, 1e-3),
}


class Repeater:
    """Records nothing and calls the function itself: the static buffers without a graph, on any device."""

    def warm_up(self, call: Call) -> None:
        call()

    def watched(self, call: Call) -> str:
        call()
        return ""

    def record(self, call: Call) -> Call:
        return call


class Counting(Repeater):
    """Counts how often each way was taken."""

    def __init__(self, obstacle: str = "", error: str | None = None) -> None:
        self.obstacle, self.error = obstacle, error
        self.calls = {"warm_up": 0, "watched": 0, "record": 0, "replay": 0}

    def warm_up(self, call: Call) -> None:
        self.calls["warm_up"] += 1
        call()

    def watched(self, call: Call) -> str:
        self.calls["watched"] += 1
        call()
        return self.obstacle

    def record(self, call: Call) -> Call:
        self.calls["record"] += 1
        if self.error is not None:
            raise RuntimeError(self.error)

        def replay() -> None:
            self.calls["replay"] += 1
            call()

        return replay


def pictures(count: int = 5 * 8 + 3) -> DataSplits:
    """Five batches of eight images, and a few that are left over."""
    data = synthetic(count).limited(count)
    images = Images(data.train.pixels[..., :8, :8].contiguous(), data.train.labels % 5)
    return replace(data, train=images, num_classes=5)


class Network(Chain):
    """With dropout, and a parameter that no gradient ever comes to: weight decay must not come to it either."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(x, 0.2, self.training))


def training(
    kind: str, recorder: Recorder | None, device: torch.device = CPU, phase: Phase | None = None, **arguments: object
) -> Training:
    data = pictures()
    torch.manual_seed(0)
    model = Network().to(device).to(memory_format=torch.channels_last)
    regularizer = KINDS[kind](quiet_couplings(model, torch.zeros(2, *data.shape, device=device)))
    torch.manual_seed(2)
    return Training(
        model,
        phase or Phase(3, 0.1, warmup_epochs=0.5),
        TrainingBatches(data, 8, device),
        torch.Generator().manual_seed(1),
        regularizer,
        recorder=recorder,
        **{"graphs": recorder is not None or device.type == "cuda", **arguments},  # type: ignore[arg-type]
    )


def nothing() -> Score:
    return Score(0.0, 0.0)


def finish(run: Training) -> Training:
    while not run.finished:
        run.run_epoch(nothing)
    return run


def assert_same(one: Training, other: Training) -> None:
    for (name, a), b in zip(one.model.state_dict().items(), other.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    rows = [[(r.train_loss, r.penalty, r.train_top1, r.learning_rate) for r in run.rows] for run in (one, other)]
    assert rows[0] == rows[1]
