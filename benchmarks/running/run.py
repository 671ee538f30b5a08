"""One run: dense -> regularized -> pruned -> recalibrated -> finetuned, every state measured, all resumable."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from baselines.method import Method, Scoring, Target
from benchmarks.config import Cell
from benchmarks.machine.processes import agreed, current_rank
from benchmarks.machine.provenance import weights_sha256
from benchmarks.methods.registry import find_method
from benchmarks.models.mac_conventions import count_macs_with_norm_pool
from benchmarks.records.recalibrations import KINDS, Recalibrations
from benchmarks.records.record import Record, write_record
from benchmarks.records.rows import EpochRow
from benchmarks.records.strengths import Strength, choose_strength
from benchmarks.running.bench import Bench, fresh_model
from benchmarks.running.channel_energies import channel_rows, describe_structure, imbalance, mark_kept
from benchmarks.running.fingerprints import regularizer_numbers
from benchmarks.running.outcome import Outcome, Progress, describe_failure, last_good_epoch, outcome_of, widths
from benchmarks.running.reach import cell_out_of_reach, couplings_of
from benchmarks.running.stage_training import StageResult, StageTrainer, origin_digest
from benchmarks.running.stages import Stage, recalibration_seed, stages_of
from benchmarks.running.stopping import Stopped
from benchmarks.training.loop import DivergedError, Score
from benchmarks.training.step import autocast
from oicsr import (
    Coupling,
    OutOfReachError,
    PruningPlan,
    Regularizer,
    count_macs,
    count_params,
    recalibrate,
    remove_channels,
    rescale,
    row_norms,
    shrink_couplings,
)
from oicsr.algorithm import share_after
from oicsr.recalibration import NotFiniteError

SCORING_BATCHES = 8


def run_cell(bench: Bench, cell: Cell) -> Record:
    """Do one run and write its record, complete or failed.

    Raises:
        Stopped: The control asked to stop; a checkpoint holds all work done so far.
        OSError: The machine has a problem (a full disk).
    """
    outcome = execute(bench, cell, strength_of(bench, cell))
    write_record(bench.results, outcome.record, outcome.history, outcome.channels)
    for observer in bench.observers:
        observer.run_finished(cell, outcome.record, outcome.history)
    return outcome.record


def strength_of(bench: Bench, cell: Cell) -> Strength:
    """Return the strength of a run."""
    return choose_strength(bench.tuning, cell, find_method(cell.method))


def execute(bench: Bench, cell: Cell, strength: Strength) -> Outcome:
    """Do one run; return its record, complete or failed, and its other results, without writing anything.

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
    except (OSError, Stopped):  # the machine's trouble (a lost lease is one), or a request: no property of the run
        raise
    except Exception as error:  # a method may raise anything, and the other runs are none the worse for it
        failure = describe_failure(error, progress)
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()  # memory that was too little for this run may suffice for the next
    return outcome_of(bench, cell, method, strength, progress, failure)


def lost_worker_record(bench: Bench, cell: Cell, strength: Strength, reason: str) -> Outcome:
    """Return the record of a run whose process died repeatedly; its checkpoints show how far it got."""
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


def validate(bench: Bench, cell: Cell, strength: float) -> Score:
    """Return the validation score of the pruned network, recalibrated or also fine-tuned as the profile says.

    The test set is not used.

    Raises:
        DivergedError: Training diverged.
    """
    run = _trial(bench, cell, strength, bench.device.type)
    pruned = run.to_pruned()
    run.recalibrate(pruned.model)
    if cell.profile.search_state == "recalibrated":
        return run.trainer.evaluate(pruned.model, "validation")
    return run.finetune(pruned).validation


def _trial(bench: Bench, cell: Cell, strength: float, trained_on: str) -> _Run:
    """Return a run that does not use the test set."""
    method = find_method(cell.method)
    stages = stages_of(cell, method, strength, trained_on)
    return _Run(bench, cell, method, Strength(strength, "tried"), stages, Progress(), on_test=False)


def validate_recalibrations(
    bench: Bench, cell: Cell, strength: float, counts: Sequence[int], trained_on: str
) -> Recalibrations:
    """Return validation accuracies of a pruned network, recalibrated on different numbers of images.

    Args:
        bench: Where to compute; training that its checkpoints hold is not repeated.
        cell: The run.
        strength: Of its regulariser.
        counts: Numbers of images, rounded up to batches. Those above what an epoch holds are left out.
        trained_on: Type of the device that checkpoints were trained on.

    Raises:
        DivergedError: Training diverged.
    """
    run = _trial(bench, cell, strength, trained_on)
    model = run.to_pruned().model

    def top1(images: int | None = None, *, augmented: bool = True) -> float:
        network = copy.deepcopy(model)
        if images != 0:
            run.recalibrate(network, images, augmented=augmented)
        return round(run.trainer.evaluate(network, "validation").top1, 6)

    batches = run.data.training_batches(cell.profile.batch_size, bench.device)
    whole = len(batches) * batches.batch_size
    used = [count for count in counts if count <= whole]
    by_kind = {kind: {count: top1(count, augmented=kind == "augmented") for count in used} for kind in KINDS}
    return Recalibrations(cell.method, cell.macs_kept, cell.seed, strength, top1(0), top1(), **by_kind)


@dataclass(frozen=True)
class _Pruned:
    """A network after its last removal.

    Attributes:
        model: The network, from the dense one's weights or, for a control from scratch, new.
        plan: All removals together.
        removal: The last one, without the accuracy after it; only whole ones join a record.
        norms: Of the rows of the dense network.
        digest: Of the network right after the removal; what is done to `model` later does not change it.
    """

    model: nn.Module
    plan: PruningPlan
    removal: dict[str, Any]
    norms: dict[str, float]
    digest: str


class _Run:
    """One run in progress."""

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
        self.trainer = StageTrainer(bench, cell, progress)
        self.data, self.inputs = self.trainer.data, self.trainer.inputs

    def go(self) -> None:
        """Run all stages."""
        pruned = self.to_pruned()
        self.measure_now("pruned", pruned.model)
        after = self.progress.states["pruned"]["val_top1"]
        self.progress.removals.append({**pruned.removal, "val_top1_after": after})
        self.recalibrate(pruned.model)
        self.measure_now("recalibrated", pruned.model)
        finetuned = self.finetune(pruned)
        self.measure("finetuned", pruned.model, finetuned)
        self.progress.states["finetuned"]["weights_sha256"] = weights_sha256(pruned.model)

    def to_pruned(self) -> _Pruned:
        """Train, and remove channels.

        Raises:
            OutOfReachError: No removal can reach the target; nothing was trained.
        """
        self.check_reach()
        model = self.fresh()
        dense = self.trainer.train(self.stages[0], model, None, measure=self.on_test)
        if self.on_test:
            self.measure("dense", model, dense)
        norms = row_norms(model)
        model, plan, removal = self.prune(model)
        if self.method.ending != "finetune":  # a control from scratch: only the shape is kept
            model = remove_channels(self.fresh(untrained=True), plan)
        return _Pruned(model, plan, removal, norms, origin_digest(model))

    def check_reach(self) -> None:
        """Refuse a target that the first removal, or all together where caps refer to the dense network, cannot reach.

        Raises:
            OutOfReachError: The message says what is within reach.
        """
        reason = cell_out_of_reach(self.cell, self.data.num_classes, self.data.shape)
        if reason:
            raise OutOfReachError(reason)

    def finetune(self, pruned: _Pruned) -> StageResult:
        """Train the pruned network, which is recalibrated already, to its end."""
        model, plan = pruned.model, pruned.plan.to_json()
        if self.cell.profile.rescale == "dense-norm" and self.method.ending == "finetune":
            rescale(model, self.inputs, {name: norm for name, norm in pruned.norms.items() if norm > 0})
        return self.trainer.train(self.stages[-1], model, None, measure=self.on_test, plan=plan, weights=pruned.digest)

    def fresh(self, *, untrained: bool = False) -> nn.Module:
        """Return the network before any training; `untrained`: with random weights, whatever the experiment says."""
        cell = self.cell
        if untrained:
            cell = replace(cell, experiment=replace(cell.experiment, weights=None))
        return fresh_model(cell, self.data.num_classes, self.bench.device)

    def prune(self, model: nn.Module) -> tuple[nn.Module, PruningPlan, dict[str, Any]]:
        """Train with the regulariser and remove channels, as often as the profile says (the paper's Fig. 2).

        Returns:
            The pruned network, one plan for all removals together, and what is known of the last removal: the pruned
            network is measured later.
        """
        profile, progress = self.cell.profile, self.progress
        what = profile.scope, profile.granularity, profile.approximate
        current = couplings_of(self.cell.experiment.model, self.data.num_classes, self.data.shape, *what)
        dense, dense_macs = current, count_macs(model, self.inputs)
        plan = PruningPlan.from_kept(current, {})
        for step in range(profile.steps):
            select = self.selection(step, dense, dense_macs)
            build = partial(self.build_regularizer, current, step, select)
            regularizer = build()
            if step == 0 and self.on_test:
                progress.structure["dense"] = describe_structure(model, dense)
            trained = self.trainer.train(
                self.stages[1 + step],
                model,
                regularizer,
                measure=step == 0 and self.on_test,
                regularizer_numbers=regularizer_numbers(build, model),
            )
            if step == 0 and self.on_test:
                self.measure("regularized", model, trained)
                progress.structure["regularized"] = describe_structure(model, dense)
                progress.channels = channel_rows(model, dense)
            next_plan = select(self.score(model, current), current, model, self.inputs)
            if step == 0 and self.on_test:
                progress.structure["regularized"] |= imbalance(model, dense, next_plan)
            model = remove_channels(model, next_plan, absorb=self.method.absorb, example_inputs=self.inputs)
            current, plan = shrink_couplings(current, next_plan), plan.then(next_plan)
            removal = {"step": step, "val_top1_before": trained.validation.top1, "macs": count_macs(model, self.inputs)}
            if self.on_test and step + 1 < profile.steps:  # the pruned network is measured after the last one anyway
                after = self.trainer.evaluate(model, "validation").top1
                progress.removals.append({**removal, "val_top1_after": after})
        progress.widths = widths(dense, plan)
        progress.channels = mark_kept(progress.channels, plan)
        return model, plan, removal

    def selection(self, step: int, dense: Sequence[Coupling], dense_macs: int) -> Callable[..., PruningPlan]:
        """Return how channels are chosen at a step: `select(scores, couplings, model, inputs)`."""
        profile = self.cell.profile
        original = {c.name: c.num_channels for c in dense} if profile.cap_of == "original" else None
        return partial(
            self.method.selection.select,
            macs_kept=share_after(step, profile.steps, self.cell.macs_kept, profile.pruning_schedule),
            max_removed=profile.max_removed,
            original_widths=original,
            dense_macs=dense_macs,
            round_to=profile.round_to,
        )

    def build_regularizer(
        self, couplings: Sequence[Coupling], step: int, select: Callable[..., PruningPlan]
    ) -> Regularizer | None:
        """Build the method's regulariser, for the next removal if it depends on that."""
        profile = self.cell.profile
        macs_kept = share_after(step, profile.steps, self.cell.macs_kept, profile.pruning_schedule)
        batches = self.data.training_batches(profile.batch_size, self.bench.device, current_rank())
        steps = len(batches) * self.stages[1 + step].phase.epochs
        target = Target(macs_kept, steps, lambda model, scores: select(scores, couplings, model, self.inputs))
        return self.method.regularizer.build(couplings, self.strength.value, target)

    def score(self, model: nn.Module, couplings: Sequence[Coupling]) -> list[Tensor]:
        """Score the channels by the method's importance."""
        generator = torch.Generator().manual_seed(self.stages[-1].seed)
        return agreed(self.method.importance.score(model, couplings, Scoring(generator, self.scoring_batches)))

    def scoring_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the first training images, not augmented, for importances that use data."""
        batch = self.cell.profile.batch_size
        batches = self.data.evaluation_batches("train", batch, self.bench.device)
        return self.bench.control.through(islice(batches, SCORING_BATCHES))

    def recalibrate(self, model: nn.Module, images: int | None = None, *, augmented: bool = True) -> None:
        """Re-estimate the normalisation statistics, on training images that are the same for every method.

        Args:
            model: Changed in place.
            images: Their number, rounded up to batches; one epoch at most (default: the profile's).
            augmented: As in training; otherwise the images as they are.

        Raises:
            DivergedError: The network gives NaN or infinite statistics.
        """
        generator = torch.Generator().manual_seed(recalibration_seed(self.cell))
        profile, device = self.cell.profile, self.bench.device
        # each process draws all batches, not its share alone
        batches = self.data.training_batches(profile.batch_size, device)
        count = -(-(images or profile.recalibration_images) // batches.batch_size)  # rounded up
        if not any(name.endswith("running_mean") for name, _ in model.named_buffers()):
            return
        drawn = batches.epoch(generator) if augmented else self.clean_batches(batches.batch_size)
        with autocast(device, self.trainer.precision):
            try:
                recalibrate(model, self.bench.control.through(islice(drawn, count)))
            except NotFiniteError as error:  # to a search the same as a loss that is not finite: this strength diverged
                raise DivergedError(f"recalibration: {error}") from error

    def clean_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the training images as they are, in their fixed random order."""
        return self.data.evaluation_batches("train", batch_size, self.bench.device)

    def measure_now(self, state: str, model: nn.Module) -> None:
        """Evaluate a network and record the result."""
        scores = self.trainer.evaluate(model, "test"), self.trainer.evaluate(model, "validation")
        self.measure(state, model, StageResult(*scores, []))

    def measure(self, state: str, model: nn.Module, result: StageResult) -> None:
        """Record one of the states."""
        assert result.test is not None
        self.progress.states[state] = {
            "top1": result.test.top1,  # first, as in all records
            **asdict(result.test),
            "val_top1": result.validation.top1,
            "macs": count_macs(model, self.inputs),
            "macs_with_norm_pool": count_macs_with_norm_pool(model, self.inputs),
            "params": count_params(model),
        }
