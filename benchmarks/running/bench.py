"""Where runs happen: device, folders, checkpoints, observers, data and fresh networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from benchmarks.config import Cell
from benchmarks.datasets import FIXED, Data, load_dataset
from benchmarks.datasets.contract import DataError, MissingDataError
from benchmarks.models import build_model, input_shape
from benchmarks.records.record import Record
from benchmarks.records.rows import EpochRow
from benchmarks.records.strengths import tuning_folder
from benchmarks.running.checkpoints import CheckpointStore
from benchmarks.running.stages import Stage
from benchmarks.running.stopping import Control


class Observer(Protocol):
    """Something that is notified of a sweep's progress."""

    def run_started(self, cell: Cell, stages: Sequence[Stage]) -> None:
        """A run starts."""
        ...

    def epoch_done(self, cell: Cell, stage: Stage, row: EpochRow, *, cached: bool) -> None:
        """An epoch is over; `cached`: it was trained before, for this or another run."""
        ...

    def waiting(self, cell: Cell, reason: str) -> None:
        """A run waits for another process, for some seconds by now."""
        ...

    def run_finished(self, cell: Cell, record: Record, history: Sequence[EpochRow]) -> None:
        """A run is over, complete or failed."""
        ...


@dataclass
class Bench:
    """Where runs happen.

    Attributes:
        device: Where all training runs.
        results: Folder of the records.
        store: Checkpoints.
        tuning: Folder of the tuning records that strengths are read from.
        observers: Notified of every epoch and run.
        control: Decides between epochs whether to continue.
        graphs: Whether training steps are to be captured in CUDA graphs.
    """

    device: torch.device
    results: Path
    store: CheckpointStore
    tuning: Path
    observers: Sequence[Observer] = ()
    control: Control = field(default_factory=Control)
    graphs: bool = False


def bench_at(
    device: torch.device, results: Path, checkpoints: Path, *, control: Control | None = None, graphs: bool = False
) -> Bench:
    """Return the bench of a results folder, which reads the strengths that were tuned there."""
    store, tuning = CheckpointStore(checkpoints), tuning_folder(results)
    return Bench(device, results, store, tuning, control=control or Control(), graphs=graphs)


@cache
def load_splits(dataset: str, *limits: int | None) -> Data:
    """Return a data set, loaded once per process; limits: training, validation and test images."""
    return load_dataset(dataset).limited(*limits)


def splits_of(cell: Cell) -> Data:
    """Return the data of a run."""
    profile = cell.profile
    limits = profile.train_images, profile.validation_images, profile.test_images
    return load_splits(cell.experiment.dataset, *limits)


def data_checksum(cell: Cell) -> str | None:
    """Return the SHA-256 of a run's data where it may have changed; None where it cannot, or the data are not there.

    Nothing is downloaded.
    """
    if cell.experiment.dataset in FIXED:
        return None
    try:
        return splits_of(cell).checksum
    except (DataError, ValueError):  # missing, damaged or too few
        return None


def check_images(cell: Cell) -> None:
    """Make sure that the data set of a run holds as many images as the run is to use.

    Raises:
        ValueError: It holds fewer.
        MissingDataError: It is missing; a damaged one only fails its own runs.
    """
    try:
        splits_of(cell)
    except MissingDataError:
        raise
    except DataError:
        return


def check_network(cell: Cell) -> None:
    """Make sure that the network of a run takes the images of its data set, if these are there.

    Raises:
        ValueError: It does not, or it is unknown.
    """
    experiment = cell.experiment
    try:
        data = splits_of(cell)
    except DataError:  # said before the first run, or by each
        return
    if input_shape(experiment.model) == data.shape:
        return
    model = fresh_model(cell, data.num_classes, torch.device("cpu")).eval()
    try:
        with torch.no_grad():
            model(torch.zeros(1, *data.shape))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{experiment.name}: network {experiment.model!r} does not take the images of {data.shape} that data set "
            f"{experiment.dataset!r} has ({reason})"
        ) from error


def fresh_model(cell: Cell, num_classes: int, device: torch.device) -> nn.Module:
    """Build the network with weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cell.seed)
        model = build_model(cell.experiment.model, num_classes, cell.experiment.weights)
    return model.to(device).to(memory_format=torch.channels_last)
