"""The one training loop of the suite: every method of every experiment goes through it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.config import Phase, Precision
from benchmarks.distributed import parallel, summed
from oicsr import GradientRegularizer, ProximalRegularizer, Regularizer, ScheduledRegularizer

Snapshot = dict[str, Any]
EVALUATION_BATCH = 500


class Batches(Protocol):
    """Where training batches come from."""

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        ...

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images and labels, on the model's device."""
        ...


class DivergedError(RuntimeError):
    """The loss is not a finite number."""


@dataclass(frozen=True)
class Score:
    """What an evaluation gives: mean cross-entropy, and top-1 accuracy in [0, 1]."""

    loss: float
    top1: float


@dataclass(frozen=True)
class EpochRow:
    """One line of `history.csv`."""

    phase: str
    step: int
    epoch: int
    learning_rate: float
    train_loss: float
    penalty: float
    train_top1: float
    val_loss: float
    val_top1: float
    seconds: float


@dataclass
class Training:
    """A stretch of training that can stop after any epoch and go on later.

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

    def __post_init__(self) -> None:
        """Build the optimiser over the model as it is now."""
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=self.phase.learning_rate,
            momentum=self.phase.momentum,
            weight_decay=self.phase.weight_decay,
            nesterov=self.phase.momentum > 0,
        )

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.epoch >= self.phase.epochs

    def run_epoch(self, evaluate: Callable[[], Score]) -> EpochRow:
        """Train for one epoch and evaluate on the validation split.

        Raises:
            DivergedError: The loss or the penalty is no longer finite.
        """
        start = time.perf_counter()
        loss, penalty, top1 = self._train_epoch()
        if not math.isfinite(loss + penalty):
            raise DivergedError(
                f"training diverged in epoch {self.epoch + 1} of phase {self.name!r}: loss {loss}, penalty {penalty}. "
                f"Lower the learning rate ({self.phase.learning_rate:g}) or the strength."
            )
        self.epoch += 1
        score = evaluate()
        seconds = time.perf_counter() - start
        rate = self.phase.rate_at(self.epoch - 1)
        row = EpochRow(
            self.name, self.step, self.epoch, rate, loss, penalty, top1, score.loss, score.top1, round(seconds, 3)
        )
        self.rows.append(row)
        return row

    def _train_epoch(self) -> tuple[float, float, float]:
        """Return mean loss, mean penalty and accuracy on the augmented images."""
        self.model.train()
        steps = len(self.batches)
        device = next(self.model.parameters()).device
        totals = torch.zeros(3, device=device, dtype=torch.float64)  # summed on the device: no wait inside an epoch
        seen = 0
        with parallel(self.model) as network:
            for position, (images, labels) in enumerate(self.batches.epoch(self.generator)):
                rate = self.phase.rate_at(self.epoch + position / steps)
                for group in self.optimizer.param_groups:
                    group["lr"] = rate
                loss, penalty, correct = self._train_step(network, images, labels, rate)
                totals += torch.stack([loss.double() * len(labels), penalty.double() * len(labels), correct.double()])
                seen += len(labels)
        loss_sum, penalty_sum, correct_sum, count = summed(torch.cat([totals, totals.new_tensor([seen])])).tolist()
        return loss_sum / count, penalty_sum / count, correct_sum / count

    def _train_step(
        self, network: nn.Module, images: Tensor, labels: Tensor, rate: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Take one optimisation step; return loss, penalty and the number of right answers.

        `network` is the model, or what stands for it where several processes share a batch; the penalty is of the
        model's own weights, which are the same on all.
        """
        regularizer = self.regularizer
        if isinstance(regularizer, ScheduledRegularizer):
            regularizer.advance(self.model)
        with autocast(images.device, self.precision):
            logits = network(images)
            loss = functional.cross_entropy(logits.float(), labels)
        self.optimizer.zero_grad(set_to_none=True)
        penalty = torch.zeros((), device=images.device)
        if isinstance(regularizer, ProximalRegularizer):
            penalty = self._value(regularizer)
            loss.backward()
            self.optimizer.step()
            regularizer.proximal_step(self.model, rate)
        elif isinstance(regularizer, GradientRegularizer):
            loss.backward()
            regularizer.add_gradient(self.model)
            known = getattr(regularizer, "last_value", None)  # of the same weights, from the same pass
            penalty = self._value(regularizer) if known is None else known
            self.optimizer.step()
        else:
            penalty = penalty if regularizer is None else regularizer(self.model)
            (loss + penalty).backward()
            self.optimizer.step()
        return loss.detach(), penalty.detach(), (logits.detach().argmax(1) == labels).sum()

    @torch.no_grad()
    def _value(self, regularizer: Regularizer) -> Tensor:
        """Return the penalty, for the history alone."""
        return regularizer(self.model)

    def snapshot(self) -> Snapshot:
        """Return everything that is needed to go on after the last epoch."""
        scheduled = self.regularizer if isinstance(self.regularizer, ScheduledRegularizer) else None
        device = next(self.model.parameters()).device
        return {
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "regularizer": dict(scheduled.state_dict()) if scheduled else {},
            "generator": self.generator.get_state(),
            "torch_generator": torch.get_rng_state(),
            "device_generator": torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.empty(0),
            "history": [asdict(row) for row in self.rows],
        }

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a state that `snapshot` returned."""
        self.epoch = snapshot["epoch"]
        self.model.load_state_dict(snapshot["model"])
        self.optimizer.load_state_dict(snapshot["optimizer"])
        if isinstance(self.regularizer, ScheduledRegularizer):
            self.regularizer.load_state_dict(snapshot["regularizer"])
        self.generator.set_state(snapshot["generator"].cpu())
        torch.set_rng_state(snapshot["torch_generator"].cpu())
        if snapshot["device_generator"].numel():
            torch.cuda.set_rng_state(snapshot["device_generator"].cpu())
        self.rows = [EpochRow(**row) for row in snapshot["history"]]


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Return the context in which the forward pass runs."""
    if precision == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


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
