"""What a method is: a regulariser, an importance, and the words for its card. Everything else is shared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from oicsr import Coupling, Regularizer

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Scoring:
    """What an importance may use beside the weights.

    Attributes:
        generator: Seeded, on the CPU.
        batches: Gives batches of training images and labels, on the model's device.
    """

    generator: torch.Generator
    batches: Batches


MakeRegularizer = Callable[[Sequence[Coupling], float], Regularizer | None]
Importance = Callable[[nn.Module, Sequence[Coupling], Scoring], list[Tensor]]


@dataclass(frozen=True)
class Method:
    """A way to decide which channels go.

    Attributes:
        name: Key on the command line.
        title: Name in tables and plots.
        regularizer: What is added to the loss while training; methods with the same key and strength share that
            training run.
        make_regularizer: Builds the regulariser from the couplings and the strength; None trains without one.
        importance: One tensor `(num_channels,)` per coupling: the lower, the sooner a channel goes.
        formula: Penalty and importance, in words or symbols.
        source: Where the definition comes from.
    """

    name: str
    title: str
    regularizer: str
    make_regularizer: MakeRegularizer
    importance: Importance
    formula: str
    source: str

    @property
    def has_strength(self) -> bool:
        """Whether the method has a strength to choose."""
        return self.regularizer != "none"


def no_regularizer(couplings: Sequence[Coupling], strength: float) -> Regularizer | None:
    """Return None: training without a penalty."""
    return None
