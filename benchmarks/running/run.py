"""The runner: dense -> regularized -> pruned -> finetuned, all four states measured, everything resumable."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from baselines.method import Method, Scoring, Target
from benchmarks.config import Cell, digest
from benchmarks.datasets import Split
from benchmarks.machine.leases import PAUSE
from benchmarks.machine.precision import resolve_precision
from benchmarks.machine.processes import agreed, current_rank
from benchmarks.machine.provenance import device_name, weights_sha256
from benchmarks.methods.registry import find_method
from benchmarks.models import build_model
from benchmarks.models.mac_conventions import count_macs_with_norm_pool
from benchmarks.records.record import Record, write_record
from benchmarks.records.rows import EpochRow
from benchmarks.records.strengths import Strength, choose_strength
from benchmarks.running.bench import Bench, fresh_model, splits_of
from benchmarks.running.channel_energies import channel_rows, describe_structure, mark_kept
from benchmarks.running.checkpoints import CheckpointWarning
from benchmarks.running.outcome import Outcome, Progress, describe_failure, last_good_epoch, outcome_of, widths
from benchmarks.running.stages import Stage, stages_of
from benchmarks.training.loop import EVALUATION_BATCH, Score, Snapshot, Training, evaluate
from oicsr import (
    Coupling,
    PruningResult,
    Regularizer,
    count_macs,
    count_params,
    find_couplings,
    prune_iteratively,
    remove_channels,
)
from oicsr.algorithm import share_after
from oicsr.tracing import Scope

SCORING_BATCHES = 8

PASSES = 3  # forward, gradient of the inputs, gradient of the weights: as many multiply-accumulates each

# What makes a run a failed one: all that its training, its data and its method may raise. Trouble of the machine
# (OSError: a full disk) is no property of the run: it ends the sweep, and the run goes on another time.
RUN_FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, MemoryError)


@dataclass
class StageResult:
    """What a stage leaves: scores on test (where measured) and validation split, the history, and how long it took."""

    test: Score | None
    validation: Score
    history: list[EpochRow]

    @property
    def seconds(self) -> float:
        """Time of all epochs."""
        return sum(row.seconds for row in self.history)


def run_cell(bench: Bench, cell: Cell) -> Record:
    """Do one run and write its record, complete or failed.

    Raises:
        Stopped: The control asked to stop; a checkpoint holds all that was done.
        OSError: The machine is in trouble (a full disk).
    """
    left = execute(bench, cell, strength_of(bench, cell))
    write_record(bench.results, left.record, left.history, left.channels)
    for observer in bench.observers:
        observer.run_finished(cell, left.record, left.history)
    return left.record


def strength_of(bench: Bench, cell: Cell) -> Strength:
    """Return the strength that a run has here."""
    return choose_strength(bench.tuning, cell, find_method(cell.method))


def execute(bench: Bench, cell: Cell, strength: Strength) -> Outcome:
    """Do one run; return its record, complete or failed, and what goes with it, without writing any of it.

    Raises:
        Stopped: See `run_cell`.
        OSError: See `run_cell`.
    """
    method = find_method(cell.method)
    stages = stages_of(cell, method, strength.value, bench.device.type)
    for observer in bench.observers:
        observer.run_started(cell, stages)
    progress, failure = Progress(), None
    try:
        _Run(bench, cell, method, strength, stages, progress).go()
    except RUN_FAILURES as error:
        failure = describe_failure(error, progress)
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()  # what was too much for this run is room for the next
    return outcome_of(bench, cell, method, strength, progress, failure)


def lost_worker_record(bench: Bench, cell: Cell, strength: Strength, reason: str) -> Outcome:
    """Return the record of a run whose process died again and again; its checkpoints say how far it came."""
    method, progress = find_method(cell.method), Progress()
    for stage in stages_of(cell, method, strength.value, bench.device.type):
        state = bench.store.load(stage.key)
        if state is None:
            break
        progress.history += [EpochRow(**row) for row in state["history"]]
    failure = {
        "reason": reason,
        "kind": "WorkerDied",
        "last_good_epoch": last_good_epoch(progress),
        "traceback": f"none: the process that did this run was killed ({reason})",
    }
    return outcome_of(bench, cell, method, strength, progress, failure)


def validate_pruned(bench: Bench, cell: Cell, strength: float) -> float:
    """Return the validation accuracy of the pruned network, before fine-tuning; the test set is not looked at.

    Raises:
        DivergedError: Training diverged.
    """
    method = find_method(cell.method)
    stages = stages_of(cell, method, strength, bench.device.type)
    run = _Run(bench, cell, method, Strength(strength, "tried"), stages, Progress(), on_test=False)
    model = fresh_model(cell, run.data.num_classes, bench.device)
    run.train(stages[0], model, None, measure=False)
    return run.evaluate(run.prune(model).model, "validation").top1


@lru_cache(maxsize=8)
def _couplings(model: str, num_classes: int, shape: tuple[int, int, int], scope: Scope) -> list[Coupling]:
    """Return the couplings of a network, which many runs share: they depend on its architecture alone."""
    with torch.random.fork_rng(devices=[]):
        network = build_model(model, num_classes)
    return find_couplings(network, torch.zeros(1, *shape), scope=scope)


class _Run:
    """One run on its way."""

    def __init__(
        self,
        bench: Bench,
        cell: Cell,
        method: Method,
        strength: Strength,
        stages: Sequence[Stage],
        progress: Progress,
        *,
        on_test: bool = True,
    ) -> None:
        self.bench, self.cell, self.method = bench, cell, method
        self.strength, self.stages, self.progress = strength, stages, progress
        self.on_test = on_test
        self.precision = resolve_precision(cell.profile.precision, bench.device.type)
        self.data = splits_of(cell)
        self.inputs = torch.zeros(1, *self.data.shape, device=bench.device)

    def go(self) -> None:
        """Go through all stages."""
        model = fresh_model(self.cell, self.data.num_classes, self.bench.device)
        dense = self.train(self.stages[0], model, None, measure=True)
        self.measure("dense", model, dense)
        result = self.prune(model)
        small = self.shape_and_weights(result)
        plan = result.plan.to_json()
        pruned = self.evaluate(small, "test"), self.evaluate(small, "validation")
        self.measure("pruned", small, StageResult(*pruned, []))
        self._note_after_removal(small, pruned[1].top1)
        finetuned = self.train(self.stages[-1], small, None, measure=True, plan=plan)
        self.measure("finetuned", small, finetuned)
        self.progress.states["finetuned"]["weights_sha256"] = weights_sha256(small)

    def shape_and_weights(self, result: PruningResult) -> nn.Module:
        """Return the pruned network; for a control from scratch, its shape with fresh weights."""
        if self.method.ending == "finetune":
            return result.model
        fresh = fresh_model(self.cell, self.data.num_classes, self.bench.device)
        return remove_channels(fresh, result.plan)

    def prune(self, model: nn.Module) -> PruningResult:
        """Train with the regulariser and remove channels, as often as the profile says."""
        profile = self.cell.profile
        couplings_seen: list[Sequence[Coupling]] = []
        dense_macs = count_macs(model, self.inputs)

        def train(network: nn.Module, regularizer: Regularizer | None, step: int) -> None:
            first = step == 0 and self.on_test
            if first:
                self.progress.structure["dense"] = describe_structure(network, couplings_seen[0])
            elif self.on_test:
                self._note_after_removal(network, self.evaluate(network, "validation").top1)
            result = self.train(self.stages[1 + step], network, regularizer, measure=first)
            self.progress.removals.append({"step": step, "val_top1_before": result.validation.top1})
            if first:
                self.measure("regularized", network, result)
                self.progress.structure["regularized"] = describe_structure(network, couplings_seen[0])
                self.progress.channels = channel_rows(network, couplings_seen[0])

        def make_regularizer(couplings: Sequence[Coupling]) -> Regularizer | None:
            couplings_seen.append(couplings)
            target = self._target(couplings_seen, dense_macs)
            return self.method.regularizer.build(couplings, self.strength.value, target)

        result = prune_iteratively(
            model,
            self.inputs,
            train=train,
            make_regularizer=make_regularizer,
            importance=self.score,
            macs_kept=self.cell.macs_kept,
            steps=profile.steps,
            schedule=profile.pruning_schedule,
            scope=profile.scope,
            max_removed=profile.max_removed,
            cap_of=profile.cap_of,
            round_to=profile.round_to,
            select=self.method.selection.select,
            couplings=_couplings(self.cell.experiment.model, self.data.num_classes, self.data.shape, profile.scope),
        )
        self.progress.widths = widths(couplings_seen[0], result.plan)
        self.progress.channels = mark_kept(self.progress.channels, result.plan)
        return result

    def _target(self, couplings_seen: Sequence[Sequence[Coupling]], dense_macs: int) -> Target:
        """Return what the next removal will come to, for regularisers that prepare it."""
        profile, step = self.cell.profile, len(couplings_seen) - 1
        macs_kept = share_after(step, profile.steps, self.cell.macs_kept, profile.pruning_schedule)
        widths_before = {c.name: c.num_channels for c in couplings_seen[0]}
        select = partial(
            self.method.selection.select,
            macs_kept=macs_kept,
            max_removed=profile.max_removed,
            original_widths=widths_before if profile.cap_of == "original" else None,
            dense_macs=dense_macs,
            round_to=profile.round_to,
        )
        batches = self.data.training_batches(profile.batch_size, self.bench.device, current_rank())
        steps = len(batches) * self.stages[1 + step].phase.epochs
        return Target(macs_kept, steps, lambda model, scores: select(scores, couplings_seen[step], model, self.inputs))

    def _note_after_removal(self, model: nn.Module, val_top1: float) -> None:
        self.progress.removals[-1] |= {"macs": count_macs(model, self.inputs), "val_top1_after": val_top1}

    def score(self, model: nn.Module, couplings: Sequence[Coupling]) -> list[Tensor]:
        """Score the channels by the method's importance."""
        generator = torch.Generator().manual_seed(self.stages[-1].seed)
        return agreed(self.method.importance.score(model, couplings, Scoring(generator, self.scoring_batches)))

    def scoring_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the first training images, not augmented, for importances that look at data."""
        batch = self.cell.profile.batch_size
        return islice(self.data.evaluation_batches("train", batch, self.bench.device), SCORING_BATCHES)

    def train(
        self, stage: Stage, model: nn.Module, regularizer: Regularizer | None, *, measure: bool, plan: str = ""
    ) -> StageResult:
        """Bring a stage to its end, from its checkpoint where there is one; `model` then holds its weights.

        Nobody else trains the same stage meanwhile. `plan` tells, as JSON, of the removals that led to `model`; with it
        the checkpoint is enough to build the network again (`export`).
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
        torch.manual_seed(stage.seed)  # dropout
        origin = {"weights": origin_digest(model), "plan": hashlib.sha256(plan.encode()).hexdigest() if plan else ""}
        saved = self._load(stage, origin)
        if saved is None or not _has_scores(saved, measure):
            with self.bench.store.lease(stage.key, self._pause) as lease:
                saved = self._load(stage, origin)  # another run may have trained it while this one waited
                scores = self._advance(stage, training, saved, origin, lease.check, measure=measure, plan=plan)
        else:
            scores = saved["scores"]
            self._restore(stage, training, saved)
        self.progress.graphs[stage.name] = training.way
        test = Score(**scores["test"]) if scores["test"] else None
        result = StageResult(test, Score(**scores["validation"]), training.rows)
        timing, name = self.progress.timing, f"{stage.name}_seconds"
        timing[name] = round(timing.get(name, 0.0) + result.seconds, 3)
        return result

    def _load(self, stage: Stage, origin: dict[str, str]) -> Snapshot | None:
        """Return the checkpoint of a stage, unless it goes on from other weights or other removals than these."""
        saved = self.bench.store.load(stage.key)
        if saved is not None and saved.get("origin", origin) != origin:
            message = f"checkpoint {stage.key} of {self.cell.label} begins at another network; it is passed over"
            warnings.warn(message, CheckpointWarning, stacklevel=2)
            return None
        return saved

    def _pause(self) -> None:
        """Wait a little for another process to end its training of a stage."""
        self.bench.control.check()
        time.sleep(PAUSE)

    def _restore(self, stage: Stage, training: Training, saved: Snapshot) -> None:
        training.restore(saved)
        for row in training.rows:
            self._tell(stage, row, cached=True)

    def _advance(
        self,
        stage: Stage,
        training: Training,
        saved: Snapshot | None,
        origin: dict[str, str],
        still_mine: Callable[[], None],
        *,
        measure: bool,
        plan: str,
    ) -> dict[str, Any]:
        """Train the epochs that are missing, a checkpoint after each; measure the end, the test set once, ever."""
        if saved is not None:
            self._restore(stage, training, saved)
        control = self.bench.control
        while not training.finished:
            control.before_epoch(stage.key)
            row = training.run_epoch(lambda: self.evaluate(training.model, "validation"))
            still_mine()
            self._save(stage, training, {"origin": origin})
            control.after_epoch(stage.key, row.seconds)
            self._tell(stage, row, cached=False)
        if saved is not None and _has_scores(saved, measure):
            return dict(saved["scores"])
        validation = self.evaluate(training.model, "validation")
        test = self.evaluate(training.model, "test") if measure else None
        scores = {"validation": asdict(validation), "test": asdict(test) if test else {}}
        network = {"plan": plan, "num_classes": self.data.num_classes, "input_shape": list(self.data.shape)}
        self._save(stage, training, {"origin": origin, "scores": scores, "network": network if plan else None})
        return scores

    def _save(self, stage: Stage, training: Training, extra: dict[str, Any]) -> None:
        progress = {
            "epoch": training.epoch,
            "finished": "scores" in extra,
            "seconds": [row.seconds for row in training.rows],
            "machine": device_name(self.bench.device),
        }
        self.bench.store.save(stage.key, {**training.snapshot(), **extra}, progress)

    def _tell(self, stage: Stage, row: EpochRow, *, cached: bool) -> None:
        self.progress.history.append(row)
        for observer in self.bench.observers:
            observer.epoch_done(self.cell, stage, row, cached=cached)

    def evaluate(self, model: nn.Module, split: Split) -> Score:
        """Evaluate a model on the images of a split as they are."""
        batches = self.data.evaluation_batches(split, EVALUATION_BATCH, self.bench.device, current_rank())
        return evaluate(model, batches, self.precision)

    def measure(self, state: str, model: nn.Module, result: StageResult) -> None:
        """Write down one of the four states."""
        assert result.test is not None
        self.progress.states[state] = {
            "top1": result.test.top1,
            "loss": result.test.loss,
            "val_top1": result.validation.top1,
            "macs": count_macs(model, self.inputs),
            "macs_with_norm_pool": count_macs_with_norm_pool(model, self.inputs),
            "params": count_params(model),
        }


def origin_digest(model: nn.Module) -> str:
    """Return a digest of names, shapes and values of a network's state."""
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    return digest([weights_sha256(model), shapes])


def _has_scores(saved: Snapshot, measure: bool) -> bool:
    """Return whether a stage is at its end, and was measured on the test set where that is asked for."""
    return "scores" in saved and bool(saved["scores"]["test"] or not measure)
