"""A stage of a run: from its checkpoint, or trained by one process while others wait."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.config import Cell, digest
from benchmarks.datasets import Split
from benchmarks.datasets.contract import arrangement_of
from benchmarks.machine.leases import PAUSE, Owner
from benchmarks.machine.precision import resolve_precision
from benchmarks.machine.processes import current_rank, from_first
from benchmarks.machine.provenance import device_name, weights_sha256
from benchmarks.records.rows import EpochRow
from benchmarks.running.bench import Bench, splits_of
from benchmarks.running.checkpoints import CheckpointWarning
from benchmarks.running.fingerprints import Numbers, differences, network_numbers
from benchmarks.running.outcome import Progress
from benchmarks.running.stages import Stage
from benchmarks.running.stopping import Stopped
from benchmarks.training.loop import EVALUATION_BATCH, Score, Snapshot, Training, check_finite, evaluate
from oicsr import Regularizer, count_macs

# Steps of the epoch that a checkpoint is in the middle of. It stands with the stage's origin, so that versions of this
# suite that know only whole epochs skip such a checkpoint instead of training the epoch twice.
PART = "steps"

FACTS = "made_with"  # a checkpoint's data, network code and regulariser; earlier versions neither write nor read it

PASSES = 3  # forward, input gradient, weight gradient: the same number of multiply-accumulates each


@dataclass
class StageResult:
    """The result of a stage: scores on the validation split and (if measured) the test split, history and times."""

    test: Score | None
    validation: Score
    history: list[EpochRow]

    @property
    def seconds(self) -> float:
        """Time of all epochs."""
        return sum(row.seconds for row in self.history)


class StageTrainer:
    """Trains the stages of one run and notes their times in its progress."""

    def __init__(self, bench: Bench, cell: Cell, progress: Progress) -> None:
        self.bench, self.cell, self.progress = bench, cell, progress
        self.precision = resolve_precision(cell.profile.precision, bench.device.type)
        self.data = splits_of(cell)
        self.inputs = torch.zeros(1, *self.data.shape, device=bench.device)
        self._network: Numbers = {}

    def train(
        self,
        stage: Stage,
        model: nn.Module,
        regularizer: Regularizer | None,
        *,
        measure: bool,
        plan: str = "",
        weights: str = "",
        regularizer_numbers: Numbers | None = None,
    ) -> StageResult:
        """Complete a stage, from its checkpoint if there is one; `model` then holds its weights.

        No other process trains the same stage meanwhile.

        Args:
            stage: What to train.
            model: The network that the stage starts from; changed in place.
            regularizer: Regulariser of the stage.
            measure: Whether the test set is evaluated at the end.
            plan: The removals that led to `model`, as JSON; with it the checkpoint is enough to build the network
                again (`export`).
            weights: Digest of the network that the stage originates from, if `model` was derived from it by arithmetic
                that rounds differently on other machines; by default that of `model`.
            regularizer_numbers: What tells the regulariser from others of its name (see `fingerprints`).

        Raises:
            DivergedError: Training diverged.
            Stopped: The control asked to stop; a checkpoint holds all work done so far.
        """
        batches = self.data.training_batches(self.cell.profile.batch_size, self.bench.device, current_rank())
        images = len(batches) * batches.batch_size * stage.phase.epochs
        compute = self.progress.compute
        compute[stage.name] = compute.get(stage.name, 0) + PASSES * images * count_macs(model, self.inputs)
        training = Training(
            model,
            stage.phase,
            batches,
            torch.Generator().manual_seed(stage.seed),
            regularizer,
            self.precision,
            stage.name,
            stage.step,
            graphs=self.bench.graphs,
        )
        facts = self._facts(stage, model, regularizer_numbers or {})
        torch.manual_seed(stage.seed)  # dropout
        weights = weights or origin_digest(model)
        origin = {"weights": weights, "plan": hashlib.sha256(plan.encode()).hexdigest() if plan else ""}
        saved = self._load(stage, origin, facts)
        if saved is None or not _has_scores(saved, measure):
            with self.bench.store.lease(stage.key, self._pause, partial(self._say, stage)) as lease:
                saved = self._load(stage, origin, facts)  # another run may have trained it while this one waited
                made = {"origin": origin, FACTS: facts}
                scores = self._advance(stage, training, saved, made, lease.check, measure=measure, plan=plan)
        else:
            scores = saved["scores"]
            self._restore(stage, training, saved)
        self.progress.graphs[stage.name] = training.step_mode
        test = Score(**scores["test"]) if scores["test"] else None
        validation = check_finite(Score(**scores["validation"]), f"checkpoint {stage.key}")  # as earlier versions left
        result = StageResult(test, validation, training.rows)
        timing, name = self.progress.timing, f"{stage.name}_seconds"
        timing[name] = round(timing.get(name, 0.0) + result.seconds, 3)
        return result

    def _facts(self, stage: Stage, model: nn.Module, regularizer: Numbers) -> dict[str, Any]:
        """Return what this stage is trained with; the network's code is told by the network before any training."""
        if stage.name == "dense":
            self._network = network_numbers(model, self.data.shape)
        facts = {
            "data": self.data.checksum,
            "split": arrangement_of(self.data),
            "network": self._network,
            "regularizer": regularizer,
        }
        return from_first(lambda: facts)

    def _load(self, stage: Stage, origin: dict[str, str], facts: Mapping[str, Any]) -> Snapshot | None:
        """Return the checkpoint of a stage, unless it started from other weights or removals, or on other code."""
        saved = self.bench.store.load(stage.key)
        if saved is None:
            return None
        found = {name: value for name, value in saved.get("origin", origin).items() if name != PART}
        reason = "starts from another network" if found != origin else ""
        if not reason and (others := differences(saved.get(FACTS), facts)):
            reason = f"was trained with other {' and other '.join(others)}"
        if reason:
            message = f"checkpoint {stage.key} of {self.cell.label} {reason} and is skipped"
            warnings.warn(f"{message}: phase {stage.name} is trained again", CheckpointWarning, stacklevel=2)
            return None
        return saved

    def _pause(self) -> None:
        """Wait briefly for another process to finish training a stage."""
        self.bench.control.check()
        self.bench.control.waited()
        time.sleep(PAUSE)

    def _say(self, stage: Stage, owner: Owner) -> None:
        for observer in self.bench.observers:
            observer.waiting(self.cell, f"stage {stage.name} is trained by {owner}")

    def _restore(self, stage: Stage, training: Training, saved: Snapshot) -> None:
        training.restore(saved)
        for row in training.rows:
            self._notify(stage, row, cached=True)

    def _advance(
        self,
        stage: Stage,
        training: Training,
        saved: Snapshot | None,
        made: dict[str, Any],
        still_mine: Callable[[], None],
        *,
        measure: bool,
        plan: str,
    ) -> dict[str, Any]:
        """Train the missing epochs, with a checkpoint after each, and evaluate at the end; the test set just once.

        Where the control asks to stop, the last checkpoint holds all steps done so far.
        """
        if saved is not None:
            self._restore(stage, training, saved)
        control = self.bench.control
        while not training.finished:
            control.before_epoch(stage.key)
            try:
                row = training.run_epoch(lambda: self._score(training.model, "validation"), control.before_step)
            except Stopped:
                if training.steps_done:
                    still_mine()
                    self._save(stage, training, {**made, "origin": {**made["origin"], PART: training.steps_done}})
                raise
            still_mine()
            self._save(stage, training, made)
            control.after_epoch(stage.key, row.seconds)
            self._notify(stage, row, cached=False)
        if saved is not None and _has_scores(saved, measure):
            return dict(saved["scores"])
        validation = self.evaluate(training.model, "validation")
        test = self.evaluate(training.model, "test") if measure else None
        scores = {"validation": asdict(validation), "test": asdict(test) if test else {}}
        network = {"plan": plan, "num_classes": self.data.num_classes, "input_shape": list(self.data.shape)}
        self._save(stage, training, {**made, "scores": scores, "network": network if plan else None})
        return scores

    def _save(self, stage: Stage, training: Training, extra: dict[str, Any]) -> None:
        progress = {
            "epoch": training.epoch,
            "finished": "scores" in extra,
            "seconds": [row.seconds for row in training.rows],
            "machine": device_name(self.bench.device),
        }
        self.bench.store.save(stage.key, {**training.snapshot(), **extra}, progress)

    def _notify(self, stage: Stage, row: EpochRow, *, cached: bool) -> None:
        self.progress.history.append(row)
        for observer in self.bench.observers:
            observer.epoch_done(self.cell, stage, row, cached=cached)

    def evaluate(self, model: nn.Module, split: Split) -> Score:
        """Evaluate a model on the unaugmented images of a split.

        Raises:
            DivergedError: The loss is no finite number.
        """
        return check_finite(self._score(model, split), f"evaluated on the {split} split")

    def _score(self, model: nn.Module, split: Split) -> Score:
        batches = self.data.evaluation_batches(split, EVALUATION_BATCH, self.bench.device, current_rank())
        return evaluate(model, self.bench.control.through(batches), self.precision)


def origin_digest(model: nn.Module) -> str:
    """Return a digest of names, shapes and values of a network's state."""
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    return digest([weights_sha256(model), shapes])


def _has_scores(saved: Snapshot, measure: bool) -> bool:
    """Return whether a stage is complete, and evaluated on the test set if requested."""
    return "scores" in saved and bool(saved["scores"]["test"] or not measure)
