"""A method: regulariser x importance x selection, each with the text of its card.

The three are registered separately, so any combination is possible: `oicsr-gl+taylor+uniform` trains with OICSR-GL,
scores by first-order Taylor and removes the same share of every layer. A registered method has its
own name in the literature, or is a control.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from oicsr import Coupling, PruningPlan, Regularizer, select_channels
from oicsr.coupling import Side

Ending = Literal["finetune", "scratch-epochs", "scratch-compute"]
Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]
Reach = Literal["channels", "some channels", "whole tensors"]


@dataclass(frozen=True)
class Scoring:
    """What an importance may use besides the weights.

    Attributes:
        generator: Seeded, on the CPU.
        batches: Gives batches of training images and labels, on the model's device.
    """

    generator: torch.Generator
    batches: Batches


@dataclass(frozen=True)
class Target:
    """What is to be removed after training, for regularisers that prepare it.

    Attributes:
        macs_kept: Share of the dense MACs that remains after the next removal, in (0, 1].
        steps: Optimisation steps of the training before it.
        plan: `plan(model, scores)` gives the plan that the method's selection makes of scores at this target, with the
            cap and the rounding of the experiment. Scores are one tensor `(num_channels,)` per coupling.
    """

    macs_kept: float
    steps: int
    plan: Callable[[nn.Module, Sequence[Tensor]], PruningPlan]


MakeRegularizer = Callable[[Sequence[Coupling], float], Regularizer | None]
MakeForTarget = Callable[[Sequence[Coupling], float, Target], Regularizer | None]
Score = Callable[[nn.Module, Sequence[Coupling], Scoring], list[Tensor]]
Select = Callable[..., PruningPlan]


# A proximal step is not multiplied by momentum, as a gradient is (by 10 at a momentum of 0.9), so it takes a larger λ.
# GrOWL's authors, who step once per epoch, come to 0.007 to 0.028 per step.
PROXIMAL_STRENGTH = 2e-2
USUAL_GRID = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)  # for sums of norms that act through their sub-gradient


def grid_around(middle: float) -> tuple[float, ...]:
    """Return five strengths in factors of two around one."""
    return tuple(middle * factor for factor in (0.25, 0.5, 1.0, 2.0, 4.0))


@dataclass(frozen=True)
class RegularizerSpec:
    """A way to train before channels are removed.

    Attributes:
        name: Key on the command line; methods with the same regulariser and strength share that training run.
        title: Name in tables and plots.
        make: Builds the regulariser from the couplings and the strength; None trains without one.
        make_for_target: Builds it for a target too, where what it does depends on what will be removed; its training
            is then not shared between targets. None for the others.
        formula: The penalty, or what it does to the weights, in symbols.
        source: Where the definition comes from.
        penalised: Which parameters it acts on: convolutions, linear layers, depthwise, BatchNorm, biases.
        normalisation: What makes groups of different size or layers of different scale comparable.
        weight_decay_note: What its source does about weight decay while it is on.
        weight_decay: The weight decay to train with while it is on; None keeps the experiment's.
        has_strength: Whether there is a strength to choose.
        grid: The strengths to choose from, for training of the usual length; five, in factors of two, around what the
            source uses if that is known.
        sides: The sides of a channel whose weights it acts on.
        reach: Whether it acts on the weights of all channels of these sides, of some only, or on the whole tensors
            that a channel has a part in.
        degree: What power of a factor on all weights its value is multiplied by; None where there is no single one.
        signed: Whether the value may be negative.
        potential: Whether what it adds to the gradient is the gradient of its value. Not so where factors are held
            fixed while the gradient is taken.
        compared: The authors' code, or the text, that the entry was checked against; empty for controls.
        differs: What is done otherwise there, beyond what the page of cards says of all methods.
    """

    name: str
    title: str
    make: MakeRegularizer
    formula: str
    source: str
    penalised: str
    normalisation: str
    weight_decay_note: str = "the experiment's own"
    weight_decay: float | None = None
    has_strength: bool = True
    grid: tuple[float, ...] = USUAL_GRID
    sides: tuple[Side, ...] = ("out", "in")
    reach: Reach = "channels"
    degree: int | None = 1
    potential: bool = True
    signed: bool = False
    make_for_target: MakeForTarget | None = None
    compared: str = ""
    differs: str = ""

    @property
    def uses_target(self) -> bool:
        """Whether training depends on what will be removed."""
        return self.make_for_target is not None

    def build(self, couplings: Sequence[Coupling], strength: float, target: Target | None = None) -> Regularizer | None:
        """Build the regulariser, for a target where it is given and matters.

        Raises:
            ValueError: `strength` is negative or not finite.
        """
        if self.make_for_target is None or target is None:
            return self.make(couplings, strength)
        return self.make_for_target(couplings, strength, target)


@dataclass(frozen=True)
class ImportanceSpec:
    """A way to score channels.

    Attributes:
        name: Key on the command line.
        title: Name in tables and plots.
        score: Returns one tensor `(num_channels,)` per coupling: lowest scores are removed first.
        formula: The score of a channel, in symbols.
        source: Where the definition comes from.
        normalisation: What makes the scores of different layers comparable.
        sides: The sides of a channel that the score looks at.
        degree: What power of a factor on all weights (with those of normalisation layers) the score is multiplied by;
            None where there is no single one.
        compared: As for regularisers.
        differs: As for regularisers.
    """

    name: str
    title: str
    score: Score
    formula: str
    source: str
    normalisation: str
    sides: tuple[Side, ...]
    degree: int | None = 0
    compared: str = ""
    differs: str = ""


@dataclass(frozen=True)
class SelectionSpec:
    """A way to turn scores into a plan at a target of MACs.

    Attributes:
        name: Key on the command line.
        title: Name in tables and plots.
        select: Takes the arguments of `oicsr.select_channels` and returns a plan.
        formula: The rule, in words.
        source: Where the definition comes from.
        compared: As for regularisers.
        differs: As for regularisers.
    """

    name: str
    title: str
    select: Select
    formula: str
    source: str
    compared: str = ""
    differs: str = ""


GREEDY = SelectionSpec(
    name="greedy",
    title="global greedy",
    select=select_channels,
    formula="channels of all layers ranked together, least important removed first, up to the cap of each layer",
    source="Li et al. 2019 (OICSR), Algorithm 1",
)


@dataclass(frozen=True)
class Method:
    """A way to decide which channels are removed.

    Attributes:
        name: Key on the command line.
        title: Name in tables and plots.
        regularizer: How the network is trained first.
        importance: How channels are scored then.
        selection: How scores become a plan.
        source: Who combined the three in this way.
        ending: What follows the last removal: fine-tuning, or the weights are discarded and the pruned shape is
            trained from scratch, for as many epochs as all phases together (`"scratch-epochs"`) or with as much
            compute (`"scratch-compute"`).
        strength_of: Name of the method whose chosen strength this one takes over (a control of that method).
        unpruned: Nothing is removed, regardless of the target.
        absorb: Whether surgery adds the constants of removed channels (the shift after BatchNorm) to the next layer.
    """

    name: str
    title: str
    regularizer: RegularizerSpec
    importance: ImportanceSpec
    selection: SelectionSpec = GREEDY
    source: str = "a combination of this suite"
    ending: Ending = "finetune"
    strength_of: str | None = None
    unpruned: bool = False
    absorb: bool = False

    @property
    def has_strength(self) -> bool:
        """Whether the method has a strength to choose."""
        return self.regularizer.has_strength
