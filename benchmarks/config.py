"""Experiments as frozen dataclasses: every value that affects a result is here, and none is hidden in code."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

# repeats oicsr's own type: importing it would import PyTorch, which experiments do not need (mypy checks both)
PruningSchedule = Literal["linear", "geometric"]

LARGEST = 2**63 - 1  # larger integers fit no table column

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")

LONGEST = {
    "experiment": 100,
    "profile": 30,
    "method": 60,
    "device": 100,
}  # characters; together they are one name of a file

Scope = Literal["inner", "all"]

Granularity = Literal["channel", "head"]

Approximate = Literal["none", "layer_norm"]

Precision = Literal["float32", "bfloat16"]

PROTOCOL = 2  # version of what is measured and how; raise it with a change after which results do not compare

Rescale = Literal["dense-norm", "none"]

SearchState = Literal["recalibrated", "finetuned"]

WantedPrecision = Literal["float32", "bfloat16", "auto"]

CapOf = Literal["original", "current"]

Schedule = Literal["cosine", "step"]

# values of a profile that are one of a few names
CHOICES: dict[str, Any] = {
    "scope": Scope,
    "granularity": Granularity,
    "approximate": Approximate,
    "cap_of": CapOf,
    "pruning_schedule": PruningSchedule,
    "precision": WantedPrecision,
    "rescale": Rescale,
    "search_state": SearchState,
}


class ExperimentFileError(ValueError):
    """The file of an experiment defines none, or one that cannot be."""


@dataclass(frozen=True)
class Phase:
    """One training phase: SGD with momentum.

    Attributes:
        epochs: Number of epochs.
        learning_rate: The peak learning rate.
        schedule: `"cosine"` down to zero, or `"step"`: times `decay` at each of `milestones`.
        milestones: Shares of what follows the warm-up, in (0, 1).
        decay: Factor at each milestone.
        warmup_epochs: Epochs of linear warm-up from zero.
        weight_decay: L2 coefficient, on every parameter.
        momentum: Nesterov momentum.
    """

    epochs: int
    learning_rate: float
    schedule: Schedule = "cosine"
    milestones: tuple[float, ...] = (0.5, 0.75)
    decay: float = 0.1
    warmup_epochs: float = 0.0
    weight_decay: float = 5e-4
    momentum: float = 0.9

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        _need("epochs", self.epochs, _whole(self.epochs, 0), "a whole number, 0 or more")
        _need("learning_rate", self.learning_rate, 0 < _number(self.learning_rate) < math.inf, "a number above 0")
        _need("schedule", self.schedule, self.schedule in get_args(Schedule), "'cosine' or 'step'")
        for name in ("warmup_epochs", "weight_decay"):
            value = getattr(self, name)
            _need(name, value, 0 <= _number(value) < math.inf, "a number, 0 or more")
        _need("momentum", self.momentum, 0 <= _number(self.momentum) < 1, "a number, 0 or more and below 1")
        _need("decay", self.decay, 0 < _number(self.decay) <= 1, "in (0, 1]")
        within = isinstance(self.milestones, tuple) and all(0 < _number(share) < 1 for share in self.milestones)
        _need("milestones", self.milestones, within, "a tuple of shares of what follows the warm-up, in (0, 1)")

    @cached_property
    def plain(self) -> Mapping[str, Any]:
        """All values by name; do not modify."""
        return asdict(self)

    def rate_at(self, epoch: float) -> float:
        """Return the learning rate after `epoch` epochs (a fraction inside an epoch)."""
        if epoch < self.warmup_epochs:
            return self.learning_rate * epoch / self.warmup_epochs
        done = (epoch - self.warmup_epochs) / max(self.epochs - self.warmup_epochs, 1e-12)
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        return self.learning_rate * self.decay ** sum(done >= share for share in self.milestones)


def _need(name: str, value: object, holds: bool, what: str) -> None:
    """Raise ValueError unless a value is what it must be."""
    if not holds:
        raise ValueError(f"{name} is {value!r}; it must be {what}")


def _number(value: object) -> float:
    """Return a number as it is, and anything else as NaN, which lies in no range."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def _whole(value: object, least: int) -> bool:
    return type(value) is int and value >= least


def check_shares(macs_kept: Sequence[float]) -> None:
    """Raise ValueError unless all targets are in (0, 1], and each has a name of its own."""
    named: dict[str, float] = {}
    for share in macs_kept:
        if not 0 < _number(share) <= 1:
            raise ValueError(f"macs_kept is {share!r}; it is the share of MACs that remains and must be in (0, 1]")
        other = named.setdefault(target_name(share), share)
        if other != share:
            name = target_name(share)
            raise ValueError(f"macs_kept names {other!r} and {share!r}; runs of both would be called {name!r}")


@dataclass(frozen=True)
class Profile:
    """All values of one way to run an experiment.

    Attributes:
        dense: Training of the dense network, once per seed, for all methods.
        regularized: Training with the regulariser, before each removal, from the dense network on.
        finetune: Training without regulariser after the last removal.
        methods: Names as `benchmarks.methods.registry.find_method` takes them.
        macs_kept: Targets, shares of the dense MACs.
        seeds: One dense network, data order and run of each method per seed.
        batch_size: Images per optimisation step.
        train_images: How many of the training images are used (None: all but the validation split).
        validation_images: How many of the validation images are used (None: all).
        test_images: How many of the test images are used (None: all).
        scope: Which channels may be removed.
        granularity: What goes of an attention: channels of its heads, or heads.
        approximate: `"layer_norm"`: channels under a LayerNorm go too, though outputs change.
        max_removed: Largest share of a coupling's channels that may be removed (PAPER.md, D3).
        cap_of: Whether this is a share of the original or the current width.
        round_to: Remaining widths are multiples of this.
        steps: Removals; the regulariser trains before each.
        pruning_schedule: How the target is spread over the steps.
        precision: Of the forward and backward pass; `"auto"` is bfloat16 if the machine multiplies it in hardware,
            otherwise float32 (records say which).
        rescale: Before fine-tuning, filters in front of BatchNorm are rescaled to the mean norm of their layer in the
            dense network, without changing the function (`"dense-norm"`), or left as they are (`"none"`).
        recalibration_images: Augmented training images that re-estimate the normalisation statistics of a pruned
            network, rounded up to full batches; at most one epoch.
        tries: Number of strengths that the search tries for each method and target.
        grid_scale: Factor on the grid of each regulariser. A penalty acts in proportion to learning rate times steps,
            so short training needs larger strengths.
        grids: Grids that replace those of some regularisers; all of the same length.
        strengths_of: Experiment whose tuned strengths all methods use instead of this profile's own; None for those of
            the experiment.
        search_state: State whose validation loss the search for strengths compares: `"recalibrated"`, before
            fine-tuning, or `"finetuned"`, for which each try is fine-tuned as a run is.
    """

    dense: Phase
    regularized: Phase
    finetune: Phase
    methods: tuple[str, ...]
    macs_kept: tuple[float, ...]
    seeds: tuple[int, ...]
    batch_size: int = 128
    train_images: int | None = None
    validation_images: int | None = None
    test_images: int | None = None
    scope: Scope = "inner"
    granularity: Granularity = "channel"
    approximate: Approximate = "none"
    max_removed: float = 0.9
    cap_of: CapOf = "original"
    round_to: int = 1
    steps: int = 1
    pruning_schedule: PruningSchedule = "linear"
    precision: WantedPrecision = "float32"
    rescale: Rescale = "dense-norm"
    recalibration_images: int = 4096
    tries: int = 7
    grid_scale: float = 1.0
    grids: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    strengths_of: str | None = None
    search_state: SearchState = "recalibrated"

    def __post_init__(self) -> None:
        """Refuse impossible values, and grids of unequal length: no method may be tuned harder than another."""
        for name in ("methods", "macs_kept", "seeds"):
            self._check_list(name)
        for seed in self.seeds:
            _need("seed", seed, _whole(seed, 0), "a whole number, 0 or more")
        check_shares(self.macs_kept)
        for name, choice in CHOICES.items():
            value = getattr(self, name)
            _need(name, value, value in get_args(choice), f"one of {get_args(choice)}")
        for name in ("batch_size", "round_to", "steps", "recalibration_images"):
            value = getattr(self, name)
            _need(name, value, _whole(value, 1), "1 or more, a whole number")
        for name in ("train_images", "validation_images", "test_images"):
            value = getattr(self, name)
            _need(name, value, value is None or _whole(value, 1), "None, for all, or a whole number, 1 or more")
        _need("max_removed", self.max_removed, 0 <= _number(self.max_removed) <= 1, "in [0, 1]")
        _need("grid_scale", self.grid_scale, 0 < _number(self.grid_scale) < math.inf, "a number above 0")
        _need("tries", self.tries, _whole(self.tries, 3), "3 or more: the best and one on each side")
        for name, grid in self.grids.items():
            ascending = all(0 < _number(low) < _number(high) < math.inf for low, high in itertools.pairwise(grid))
            _need(f"grids[{name!r}]", grid, len(grid) > 1 and ascending, "several strengths above 0, in rising order")
        sizes = {name: len(grid) for name, grid in self.grids.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"every regulariser needs a grid of the same length, not {sizes}")

    def _check_list(self, name: str) -> None:
        """Refuse a single value, and one that is named twice: its runs would have one name."""
        value = getattr(self, name)
        several = isinstance(value, Sequence) and not isinstance(value, str)
        _need(name, value, several, "a tuple; one of a single value ends with a comma, as in ('none',)")
        twice = [each for each in dict.fromkeys(value) if value.count(each) > 1]
        _need(name, value, not twice, f"without repetition, and names {twice[0]!r} twice" if twice else "")

    @cached_property
    def shared(self) -> Mapping[str, Any]:
        """The values that each of its runs depends on, by name; do not modify."""
        # these decide what else is run, not how one run is done
        others = {"methods", "macs_kept", "seeds", "tries", "grid_scale", "grids", "strengths_of", "search_state"}
        # older records, all of networks without attention, do not name these
        usual = {"granularity": "channel", "approximate": "none"}
        others |= {name for name, value in usual.items() if getattr(self, name) == value}
        return {name: value for name, value in asdict(self).items() if name not in others}

    @property
    def epochs(self) -> int:
        """All epochs of a run: the dense network's, those before each removal, and those of fine-tuning."""
        return self.dense.epochs + self.steps * self.regularized.epochs + self.finetune.epochs


@dataclass(frozen=True)
class Experiment:
    """An experiment: what is compared, and on what.

    Attributes:
        name: Name on the command line, and a Make target.
        title: Title in tables and plots.
        claim: What the comparison tests.
        model: Key of `benchmarks.models.MODELS`, `torchvision:NAME` or `timm:NAME`.
        dataset: Key of `benchmarks.datasets.DATASETS`, or `imagefolder:PATH[@SIZE]`.
        profiles: By name: `quick` (minutes on two cores), `cpu` (hours on them), `paper` (a GPU).
        priority: Order in `run --pending`: lower runs sooner.
        strengths_of: Experiment whose tuned strengths this one uses, profile by profile; None for its own.
        weights: Initial weights: a local file, `"pretrained"` (the hub's), or None (random).
    """

    name: str
    title: str
    claim: str
    model: str
    dataset: str
    profiles: Mapping[str, Profile]
    priority: int = 50
    weights: str | None = None
    strengths_of: str | None = None

    def __post_init__(self) -> None:
        """Refuse names that cannot be file names."""
        check_name("experiment", self.name)
        for name in self.profiles:
            check_name("profile", name)

    def profile(self, name: str) -> Profile:
        """Return a profile by name.

        Raises:
            ValueError: The experiment has no such profile.
        """
        if name not in self.profiles:
            known = ", ".join(map(repr, self.profiles))
            raise ValueError(f"experiment {self.name!r} has no profile {name!r}; it has {known}")
        return self.profiles[name]


@dataclass(frozen=True)
class Cell:
    """One run: one method, one seed, one target of one experiment."""

    experiment: Experiment
    profile_name: str
    method: str
    seed: int
    macs_kept: float

    def __post_init__(self) -> None:
        """Refuse names that cannot be file names."""
        check_name("profile", self.profile_name)
        check_name("method", self.method)

    @property
    def profile(self) -> Profile:
        """The profile's values."""
        return self.experiment.profile(self.profile_name)

    @property
    def run_id(self) -> str:
        """The name of the run's folder; unique in a results folder, and sortable."""
        return run_name(self.profile_name, self.method, self.macs_kept, self.seed)

    @property
    def label(self) -> str:
        """The run's name in messages."""
        return f"{self.experiment.name}/{self.run_id}"


def run_name(profile: str, method: str, macs_kept: float, seed: int) -> str:
    """Return the name of a run, on disk and in messages."""
    return f"{profile}-{method}-{target_name(macs_kept)}-seed{seed}"


def target_name(macs_kept: float) -> str:
    """Return the part of a run's name that says its target, to six digits."""
    return f"keep{100 * macs_kept:g}"


def check_name(kind: str, name: str) -> None:
    """Refuse a name that could lead outside the folder it is meant for.

    Args:
        kind: A key of `LONGEST`.
        name: From a file, or from the command line.

    Raises:
        ValueError: It contains more than letters, digits, '.', '_', '+' and '-', begins with a sign, or is too long.
    """
    if not NAME.fullmatch(name) or len(name) > LONGEST[kind]:
        raise ValueError(
            f"the {kind} is called {name[:100]!r}; a name has letters, digits, '.', '_', '+' and '-', begins with a "
            f"letter or digit, and is at most {LONGEST[kind]} characters long"
        )


def canonical(values: Any) -> str:
    """Return a JSON text that is equal for equal values."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), default=_plain)


def digest(values: Any, length: int = 16) -> str:
    """Return a short hash of plain values or dataclasses."""
    return hashlib.sha256(canonical(values).encode()).hexdigest()[:length]


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
