"""The paper's loop (Fig. 2): train with the regulariser, remove the least channels, again, until the target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from oicsr.complexity import count_macs
from oicsr.coupling import Coupling
from oicsr.penalties import Regularizer
from oicsr.plan import PruningPlan, shrink_couplings
from oicsr.selection import select_channels
from oicsr.surgery import remove_channels
from oicsr.tracing import Scope, find_couplings

Train = Callable[[nn.Module, Regularizer | None, int], None]
MakeRegularizer = Callable[[Sequence[Coupling]], Regularizer | None]
Importance = Callable[[nn.Module, Sequence[Coupling]], Sequence[Tensor]]
Select = Callable[..., PruningPlan]
Schedule = Literal["linear", "geometric"]


@dataclass(frozen=True)
class PruningResult:
    """What the loop leaves.

    Attributes:
        model: The pruned network, not fine-tuned since the last removal.
        plan: One plan from the network given to the loop to `model`.
        couplings: The couplings of `model`.
        macs: MACs before the loop and after each removal.
    """

    model: nn.Module
    plan: PruningPlan
    couplings: list[Coupling]
    macs: list[int]


def prune_iteratively(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor],
    *,
    train: Train,
    make_regularizer: MakeRegularizer,
    importance: Importance,
    macs_kept: float,
    steps: int = 1,
    schedule: Schedule = "linear",
    scope: Scope = "inner",
    max_removed: float = 0.5,
    cap_of: Literal["original", "current"] = "original",
    round_to: int = 1,
    select: Select = select_channels,
    couplings: Sequence[Coupling] | None = None,
) -> PruningResult:
    """Train with a regulariser and remove the least important channels, `steps` times, down to a target of MACs.

    How many iterations the authors take, and how the target is spread over them, is not known (PAPER.md).

    Args:
        model: The network to start from. `train` changes its weights; its widths stay.
        example_inputs: Inputs of one forward call.
        train: Called as `train(model, regularizer, step)` before each removal; trains in place.
        make_regularizer: Builds the regulariser for the couplings of the network as it is at each step; may return
            None for training without one.
        importance: Scores the channels at each step: the lower, the sooner they go.
        macs_kept: The share of the MACs that remains in the end, in (0, 1].
        steps: How many times to train and remove.
        schedule: `"linear"`: each step removes the same number of MACs. `"geometric"`: the same share.
        scope: Which channels may go (see `find_couplings`).
        max_removed: The largest share of a coupling's channels that may go, per `cap_of`.
        cap_of: Whether that is a share of the width before the loop, or at each step.
        round_to: Leave widths a multiple of this.
        select: Turns scores into a plan; takes the arguments of `select_channels`.
        couplings: What `find_couplings(model, example_inputs, scope=scope)` gives, where it is known already.

    Raises:
        ValueError: An argument is out of range or the target out of reach; what was trained so far is in `model`
            only when the first step fails.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps!r}; it must be 1 or more")
    current = list(couplings) if couplings is not None else find_couplings(model, example_inputs, scope=scope)
    original = {c.name: c.num_channels for c in current}
    macs = [count_macs(model, example_inputs)]
    plan = PruningPlan.from_kept(current, {})
    for step in range(steps):
        train(model, make_regularizer(current), step)
        following = select(
            importance(model, current),
            current,
            model,
            example_inputs,
            macs_kept=share_after(step, steps, macs_kept, schedule),
            max_removed=max_removed,
            original_widths=original if cap_of == "original" else None,
            dense_macs=macs[0],
            round_to=round_to,
        )
        model = remove_channels(model, following)
        current = shrink_couplings(current, following)
        plan = plan.then(following)
        macs.append(count_macs(model, example_inputs))
    return PruningResult(model, plan, current, macs)


def share_after(step: int, steps: int, macs_kept: float, schedule: Schedule) -> float:
    """Return the share of the MACs that remains after step `step` (from 0) of `steps`.

    Raises:
        ValueError: `schedule` is unknown.
    """
    done = (step + 1) / steps
    if schedule == "linear":
        return 1 - done * (1 - macs_kept)
    if schedule == "geometric":
        return float(macs_kept**done)
    raise ValueError(f"schedule is {schedule!r}; it must be 'linear' or 'geometric'")
