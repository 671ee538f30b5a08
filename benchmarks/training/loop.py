"""The one training loop of the suite: every method of every experiment goes through it."""

from __future__ import annotations

import io
import logging
import math
import pickle
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.config import Phase, Precision
from benchmarks.datasets.contract import Batches
from benchmarks.machine.memory import keep_freed_memory
from benchmarks.machine.processes import current_rank, summed
from benchmarks.machine.weights_files import READ_ERRORS
from benchmarks.records.rows import EpochRow
from benchmarks.training.cuda_graphs import GraphRecorder, Recorder, ResidentBatches, StaticEpochs
from benchmarks.training.data_parallel import own_numbers, parallel
from benchmarks.training.part_epoch import PartEpoch
from benchmarks.training.step import OptimizationStep, autocast
from oicsr import Regularizer, ScheduledRegularizer

logger = logging.getLogger(__name__)

Snapshot = dict[str, Any]

EVALUATION_BATCH = 500


class DivergedError(RuntimeError):
    """The loss is not a finite number."""


@dataclass(frozen=True)
class Score:
    """What an evaluation gives: mean cross-entropy, and top-1 accuracy in [0, 1]."""

    loss: float
    top1: float


def check_finite(score: Score, of: str) -> Score:
    """Return a score whose loss is a number.

    Args:
        score: Of an evaluation.
        of: What was evaluated, for the message.

    Raises:
        DivergedError: The loss is no finite number.
    """
    if not math.isfinite(score.loss):
        raise DivergedError(f"{of}: the loss is {score.loss}. Lower the learning rate or the strength.")
    return score


def proceed() -> None:
    """Do nothing: training continues."""


@dataclass
class Training:
    """A training stage that can stop after any step and resume later.

    Attributes:
        model: Trained in place; on its device already.
        phase: Epochs, learning rate and so on.
        batches: The training images.
        generator: Draws order and augmentation, on the CPU.
        regularizer: Acts by what it offers (see `oicsr.Regularizer`).
        precision: Of forward and backward; weights and updates are float32.
        name: Of the phase, for the history.
        step: Number of removals before.
        epoch: Epochs done.
        rows: A row of history for each of them.
        graphs: Whether steps are to be captured in a CUDA graph, where that can be done (see `cuda_graphs`).
        recorder: Captures steps; None for CUDA's own on a CUDA device, and none elsewhere.
        eager_reason: Why the last epoch was not replayed from a graph; empty where it was, or before the first.
    """

    model: nn.Module
    phase: Phase
    batches: Batches
    generator: torch.Generator
    regularizer: Regularizer | None = None
    precision: Precision = "float32"
    name: str = "dense"
    step: int = 0
    epoch: int = 0
    rows: list[EpochRow] = field(default_factory=list)
    graphs: bool = False
    recorder: Recorder | None = None
    eager_reason: str = field(default="", init=False)

    def __post_init__(self) -> None:
        """Build the optimiser over the model as it is now."""
        self._device = next(self.model.parameters()).device
        if self._device.type == "cpu":
            keep_freed_memory()
        self._static: StaticEpochs | None = None
        self._part: PartEpoch | None = None
        self._step = OptimizationStep(self.model, self.phase, self.regularizer, self.precision)

    @property
    def step_mode(self) -> str:
        """How steps were taken in the last epoch that was trained here."""
        if self._static is not None and not self.eager_reason:
            return "CUDA graph" if self.recorder is None else "recorded"
        return f"one by one: {self.eager_reason}" if self.eager_reason else "none here: from a checkpoint"

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.epoch >= self.phase.epochs

    @property
    def steps_done(self) -> int:
        """Steps of the present epoch that are done; 0 between epochs."""
        return self._part.steps if self._part else 0

    def run_epoch(self, evaluate: Callable[[], Score], check: Callable[[], None] = proceed) -> EpochRow:
        """Train for one epoch, or what is left of it, and evaluate on the validation split.

        Args:
            evaluate: Scores the model.
            check: Called before each step; may raise to stop there. `snapshot` then holds the steps done so far, and
                the next call continues after them.

        Raises:
            DivergedError: The loss or the penalty is no longer finite, or the score's loss is not.
        """
        start = time.perf_counter()
        part = self._part = self._part or PartEpoch.new(self.generator, self._device)
        try:
            loss, penalty, top1 = self._train_epoch(part, check)
            if not math.isfinite(loss + penalty):
                raise DivergedError(
                    f"training diverged in epoch {self.epoch + 1} of phase {self.name!r}: loss {loss}, penalty "
                    f"{penalty}. Lower the learning rate ({self.phase.learning_rate:g}) or the strength."
                )
            name = f"training diverged in epoch {self.epoch + 1} of phase {self.name!r}, validation"
            score = check_finite(evaluate(), name)
        finally:
            part.seconds += time.perf_counter() - start
        self._part = None
        self.epoch += 1
        rate, seconds = self.phase.rate_at(self.epoch - 1), round(part.seconds, 3)
        row = EpochRow(self.name, self.step, self.epoch, rate, loss, penalty, top1, score.loss, score.top1, seconds)
        self.rows.append(row)
        return row

    def _train_epoch(
        self, part: PartEpoch | None = None, check: Callable[[], None] = proceed
    ) -> tuple[float, float, float]:
        """Return mean loss, mean penalty and accuracy on the augmented images."""
        part = part or PartEpoch.new(self.generator, self._device)
        self.model.train()
        self.generator.set_state(part.generator)
        reason = self._obstacle()
        with tuned(self._device):
            if reason:
                self._eager_epoch(part, check)
            else:
                self._static_epoch(part, check)
        totals, seen = part.totals, part.images
        reason = reason or (self._static.reason if self._static else "")
        if self.graphs and reason != self.eager_reason:
            logger.warning("phase %r is trained step by step, not from a CUDA graph: %s", self.name, reason)
        self.eager_reason = reason
        loss_sum, penalty_sum, correct_sum, count = summed(torch.cat([totals, totals.new_tensor([seen])])).tolist()
        return loss_sum / count, penalty_sum / count, correct_sum / count

    def _obstacle(self) -> str:
        """Return why steps cannot be captured; empty if they can."""
        if not self.graphs:
            return "not asked for"
        if self._static is not None and self._static.reason:
            return self._static.reason
        if self.recorder is None and self._device.type != "cuda":
            return "no CUDA device"
        if current_rank().count > 1:
            return "several processes share each batch"
        if not isinstance(self.batches, ResidentBatches):
            return "the images are not on the device"
        if isinstance(self.regularizer, ScheduledRegularizer):
            return f"the schedule of {type(self.regularizer).__name__} is kept on the host"
        return ""

    def _rates(self) -> list[float]:
        """Return the learning rate of each step of the current epoch."""
        steps = len(self.batches)
        return [self.phase.rate_at(self.epoch + position / steps) for position in range(steps)]

    def _eager_epoch(self, part: PartEpoch, check: Callable[[], None]) -> None:
        """Take the remaining steps of an epoch one by one."""
        rates, batches = self._rates()[part.steps :], self.batches.epoch(self.generator, part.steps)
        with parallel(self.model) as network:
            for rate, (images, labels) in zip(rates, batches, strict=True):
                check()
                self._step.set_rate(rate)
                with own_numbers():
                    part.totals += self._step.take(network, images, labels, rate)
                part.steps += 1
                part.images += len(labels)

    def _static_epoch(self, part: PartEpoch, check: Callable[[], None]) -> None:
        """Take the remaining steps of an epoch over static buffers, from a graph as soon as there is one."""
        assert isinstance(self.batches, ResidentBatches)
        if self._static is None:
            recorder = self.recorder or GraphRecorder(self._device)
            parameters = list(self.model.parameters())
            self._static = StaticEpochs(
                self.batches, self._static_step, parameters, self._step.changed, recorder, self._device
            )
        rates = self._rates()
        try:
            self._static.run(self.generator, rates, part, check)
        finally:
            self._step.set_rate(rates[max(part.steps, 1) - 1])  # a number again, as checkpoints hold it

    def _static_step(self, images: Tensor, labels: Tensor, rate: Tensor, *, keep_gradients: bool) -> Tensor:
        self._step.set_rate(rate.float())  # the type that fused optimisers read
        return self._step.take(self.model, images, labels, rate, static=True, keep_gradients=keep_gradients)

    def snapshot(self) -> Snapshot:
        """Return everything needed to resume after the last step.

        Raises:
            TypeError: The regulariser's state holds what could not be read again.
        """
        scheduled = self.regularizer if isinstance(self.regularizer, ScheduledRegularizer) else None
        part = self._part if self.steps_done else None
        return {
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "optimizer": self._step.state_dict(),
            "regularizer": _readable_state(scheduled) if scheduled else {},
            "generator": self.generator.get_state() if part is None else part.generator,
            "torch_generator": torch.get_rng_state(),
            "device_generator": torch.cuda.get_rng_state(self._device)
            if self._device.type == "cuda"
            else torch.empty(0),
            "history": [asdict(row) for row in self.rows],
            **({} if part is None else {"part": part.plain()}),
        }

    def restore(self, snapshot: Snapshot) -> None:
        """Restore a state that `snapshot` returned."""
        self.epoch = snapshot["epoch"]
        self.model.load_state_dict(snapshot["model"])
        self._step.load_state_dict(snapshot["optimizer"])
        self._static = None  # a graph would continue with the old momentum
        if isinstance(self.regularizer, ScheduledRegularizer):
            self.regularizer.load_state_dict(snapshot["regularizer"])
        self.generator.set_state(snapshot["generator"].cpu())
        part = snapshot.get("part")
        self._part = None if part is None else PartEpoch.from_plain(part, snapshot["generator"], self._device)
        torch.set_rng_state(snapshot["torch_generator"].cpu())
        if snapshot["device_generator"].numel():
            torch.cuda.set_rng_state(snapshot["device_generator"].cpu(), self._device)
        self.rows = [EpochRow(**row) for row in snapshot["history"]]


def _readable_state(regularizer: ScheduledRegularizer) -> dict[str, Any]:
    """Return the state of a regulariser, which a checkpoint can hold: otherwise the loss would show when resuming.

    Raises:
        TypeError: It has a value that is not read without executing code; the message names it.
    """
    state = dict(regularizer.state_dict())
    for name, value in state.items():
        if type(value) is Tensor:
            continue
        buffer = io.BytesIO()
        try:
            torch.save({name: value}, buffer)
            torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
        except (*READ_ERRORS, pickle.PicklingError) as error:
            raise TypeError(
                f"{type(regularizer).__name__}.state_dict() has {name!r}, a {type(value).__name__} that could not be "
                "read from a checkpoint; let it hold tensors, numbers, texts, and lists and dictionaries of them"
            ) from error
    return state


@contextmanager
def tuned(device: torch.device) -> Iterator[None]:
    """Let cuDNN try its kernels at the first step: all batches of a training have one shape."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = device.type == "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], precision: Precision = "float32") -> Score:
    """Return mean loss and accuracy of a model over batches of images and labels (of all processes together)."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    totals = torch.zeros(2, device=device, dtype=torch.float64)
    seen = 0
    for images, labels in batches:
        with autocast(device, precision):
            logits = model(images)
        loss = functional.cross_entropy(logits.float(), labels, reduction="sum")
        totals += torch.stack([loss.double(), (logits.argmax(1) == labels).sum().double()])
        seen += len(labels)
    model.train(was_training)
    loss_sum, correct, count = summed(torch.cat([totals, totals.new_tensor([seen])])).tolist()
    return Score(loss_sum / count, correct / count)
