"""The training stages of a run, and which of them runs share.

A stage is named by a hash of everything that determines its outcome. So the dense network of a seed is trained once for
all methods, methods with the same regulariser and strength share that training (unless the regulariser depends on what
will be removed), and an interrupted stage is found again. The random numbers of a stage depend on seed, phase
and step only: every method sees the same images in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from baselines.method import Method
from benchmarks.config import PROTOCOL, Cell, Phase, Profile, digest
from benchmarks.machine.precision import resolve_precision
from oicsr.algorithm import share_after

STAGE_FORMAT = 1  # increase it if the meaning of a stage's values changes


@dataclass(frozen=True)
class Stage:
    """One training stage.

    Attributes:
        key: Names its checkpoint.
        name: `"dense"`, `"regularized"` or `"finetune"`.
        step: Removals before it.
        phase: How it is trained.
        seed: Seed of its random numbers.
        share: Approximate share of the dense MACs that the network has then (for time estimates).
    """

    key: str
    name: str
    step: int
    phase: Phase
    seed: int
    share: float


def stages_of(cell: Cell, method: Method, strength: float, device_type: str) -> list[Stage]:
    """Return the stages of a run in order: dense, regularized (one per removal), finetune."""
    profile = cell.profile
    key = _dense_key(cell, device_type)
    stages = [Stage(key, "dense", 0, profile.dense, _seed(cell, "dense", 0), 1.0)]
    regularizer = method.regularizer
    phase = profile.regularized
    if regularizer.weight_decay is not None:  # required by the method's definition
        phase = replace(phase, weight_decay=regularizer.weight_decay)
    share = 1.0
    for step in range(profile.steps):
        removal = [profile.max_removed, profile.cap_of, profile.round_to, profile.steps, profile.pruning_schedule]
        target = [method.selection.name, cell.macs_kept, removal] if regularizer.uses_target else []
        removable = [profile.scope, *sorted({profile.granularity, profile.approximate} - {"channel", "none"})]
        key = digest([key, "regularized", step, phase.plain, regularizer.name, strength, *removable, *target])
        stages.append(Stage(key, "regularized", step, phase, _seed(cell, "regularized", step), share))
        share = share_after(step, profile.steps, cell.macs_kept, profile.pruning_schedule)
        absorb = ["absorb"] if method.absorb else []
        key = digest([key, "remove", method.importance.name, method.selection.name, cell.macs_kept, removal, *absorb])
    phase = last_phase(profile, method, cell.macs_kept)
    key = digest([key, method.ending, phase.plain, PROTOCOL, profile.rescale, profile.recalibration_images])
    finetune_seed = _seed(cell, "finetune", profile.steps)
    return [*stages, Stage(key, "finetune", profile.steps, phase, finetune_seed, share)]


def last_phase(profile: Profile, method: Method, macs_kept: float) -> Phase:
    """Return how the pruned network is trained: fine-tuned, or from scratch like the dense network.

    The budget of equal compute is Liu et al.'s ("Rethinking the Value of Network Pruning", 2019): the epochs of the
    full network, multiplied by how much cheaper the pruned one is, plus the fine-tuning epochs.
    """
    if method.ending == "finetune":
        return profile.finetune
    whole: float = profile.dense.epochs + profile.steps * profile.regularized.epochs
    if method.ending == "scratch-compute":
        whole /= macs_kept
    return replace(profile.dense, epochs=round(whole) + profile.finetune.epochs)


def _dense_key(cell: Cell, device_type: str) -> str:
    profile, experiment = cell.profile, cell.experiment
    limits = [profile.train_images, profile.validation_images, profile.test_images]
    data = [experiment.dataset, limits, profile.batch_size]
    how = [resolve_precision(profile.precision, device_type), device_type, profile.dense.plain]
    model = [experiment.model, experiment.weights] if experiment.weights else experiment.model
    return digest([STAGE_FORMAT, "dense", model, data, how, cell.seed])


def _seed(cell: Cell, name: str, step: int) -> int:
    return int(digest(["random numbers", cell.seed, name, step], length=12), 16)


def recalibration_seed(cell: Cell) -> int:
    """Return the seed of the recalibration images, which all methods of a seed share."""
    return _seed(cell, "recalibration", 0)


def unique_stages(stages: Iterable[Stage]) -> list[Stage]:
    """Return stages without repetition, in order."""
    return list({stage.key: stage for stage in stages}.values())
