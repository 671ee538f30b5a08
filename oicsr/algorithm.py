"""The paper's loop (Fig. 2): train with the regulariser, remove the least channels, again, until the target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import Tensor, nn

from oicsr.arguments import check_callable, check_choice, check_count, check_fit
from oicsr.complexity import count_macs, count_params
from oicsr.coupling import Coupling
from oicsr.limits import Limits
from oicsr.names import Names
from oicsr.networks.inputs import ExampleInputs
from oicsr.networks.wrapping import unwrap
from oicsr.penalties import Regularizer
from oicsr.plan import PruningPlan, shrink_couplings
from oicsr.selection import select_channels
from oicsr.surgery import remove_channels
from oicsr.targets import asked_share, measured
from oicsr.tracing.trace import Scope, find_couplings

Train = Callable[[nn.Module, Regularizer | None, int], None]
MakeRegularizer = Callable[[Sequence[Coupling]], Regularizer | None]
Importance = Callable[[nn.Module, Sequence[Coupling]], Sequence[Tensor]]
Select = Callable[..., PruningPlan]
Schedule = Literal["linear", "geometric"]
CapOf = Literal["original", "current"]


@dataclass(frozen=True)
class PruningResult:
    """What the loop leaves. `print(result)` sums it up.

    Attributes:
        model: The pruned network, not fine-tuned since the last removal.
        plan: One plan from the network given to the loop to `model`.
        couplings: The couplings of `model`.
        macs: MACs before the loop and after each removal.
        params: Parameters, likewise.
        channels: Channels of all couplings, likewise.
        notes: What else a reader of the result should know.
    """

    model: nn.Module
    plan: PruningPlan
    couplings: list[Coupling]
    macs: list[int]
    params: list[int] = field(default_factory=list)
    channels: list[int] = field(default_factory=list)
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """Return a few lines that say what is left of the network."""
        steps = len(self.macs) - 1
        lines = [f"{type(self.model).__name__}, pruned in {'one step' if steps == 1 else f'{steps} steps'}"]
        counts = {"MACs": self.macs, "parameters": self.params, "channels": self.channels}
        for name, values in counts.items():
            if values and values[0]:
                lines.append(f"  {name}: {values[0]:,} -> {values[-1]:,} ({values[-1] / values[0]:.1%} kept)")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        return f"PruningResult({type(self.model).__name__}, MACs {self.macs[0]:,} -> {self.macs[-1]:,}, {self.plan!r})"


def prune_iteratively(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    train: Train,
    make_regularizer: MakeRegularizer,
    importance: Importance,
    macs_kept: float | None = None,
    params_kept: float | None = None,
    cost: Callable[[nn.Module], float] | None = None,
    cost_kept: float | None = None,
    steps: int = 1,
    schedule: Schedule = "linear",
    scope: Scope = "inner",
    ignore: Names = (),
    max_removed: float | Mapping[str, float] | None = None,
    cap_of: CapOf = "original",
    round_to: int | Mapping[str, int] = 1,
    absorb: bool = False,
    select: Select = select_channels,
    couplings: Sequence[Coupling] | None = None,
) -> PruningResult:
    """Train with a regulariser and remove the least important channels, `steps` times, down to a target.

    How many iterations the authors take, and how the target is spread over them, is not known (PAPER.md).

    Args:
        model: The network to start from. `train` changes its weights; its widths stay.
        example_inputs: Inputs of one forward call.
        train: Called as `train(model, regularizer, step)` before each removal; trains in place. From
            the second step on the network comes without a wrapper that `model` has: wrap it again there (without
            `DistributedDataParallel`, processes train apart and prune other channels).
        make_regularizer: Builds the regulariser for the couplings of the network as it is at each step; may return
            None for training without one.
        importance: Scores the channels at each step: the lower, the sooner they go.
        macs_kept: The share of the MACs that remains in the end, in (0, 1]. 0.5 where no target is given.
        params_kept: The share of the parameters, in place of MACs.
        cost: A cost of the caller's (see `select_channels`), in place of MACs.
        cost_kept: The share of that cost.
        steps: How many times to train and remove.
        schedule: `"linear"`: each step removes the same number of MACs. `"geometric"`: the same share.
        scope: Which channels may go (see `find_couplings`).
        ignore: Layers whose own channels stay (see `find_couplings`).
        max_removed: The largest share of a coupling's channels that may go, per `cap_of` (see `select_channels`).
        cap_of: Whether that is a share of the width before the loop, or at each step.
        round_to: Leave widths a multiple of this.
        absorb: Let readers absorb the constants of removed channels (see `remove_channels`).
        select: Turns scores into a plan; takes the arguments of `select_channels`.
        couplings: What `find_couplings(model, example_inputs, scope=scope, ignore=ignore)` gives, where it is known.

    Returns:
        The smaller network, the plan that leads to it from `model`, and the MACs and parameters before and after each
        removal.

    Raises:
        TypeError: An argument is of another kind than it must be.
        OutOfReachError: The target is out of reach of a step.
        ValueError: An argument is out of range, or `couplings` are another network's: found before any training. Or no
            cut comes within the tolerance of the target.

    An error that `select` raises after training carries the network so far, trained and not yet cut again, as a
    `PruningResult`: `error.result`.
    """
    steps = check_count("steps", steps)
    _check_callables(train=train, make_regularizer=make_regularizer, importance=importance, select=select)
    check_choice("schedule", schedule, get_args(Schedule))
    check_choice("cap_of", cap_of, get_args(CapOf))
    target = _Goal.of(model, macs_kept, params_kept, cost, cost_kept)
    if couplings is None:
        couplings = find_couplings(model, example_inputs, scope=scope, ignore=ignore)
    check_fit(model, couplings)
    Limits.of(couplings, max_removed, round_to, {})
    current = list(couplings)
    original = {c.name: c.num_channels for c in current}
    macs, params, channels = [count_macs(model, example_inputs)], [count_params(model)], [sum(original.values())]
    plan = PruningPlan.from_kept(current, {})
    for step in range(steps):
        train(model, make_regularizer(current), step)
        try:
            following = select(
                importance(model, current),
                current,
                model,
                example_inputs,
                max_removed=max_removed,
                original_widths=original if cap_of == "original" else None,
                dense_macs=macs[0],
                round_to=round_to,
                **target.after(step, steps, schedule),
            )
        except ValueError as error:  # the training is not lost
            error.result = PruningResult(model, plan, current, macs, params, channels)  # type: ignore[attr-defined]
            raise
        model = remove_channels(model, following, absorb=absorb, example_inputs=example_inputs)
        current = shrink_couplings(current, following)
        plan = plan.then(following)
        macs.append(count_macs(model, example_inputs))
        params.append(count_params(model))
        channels.append(sum(c.num_channels for c in current))
    return PruningResult(model, plan, current, macs, params, channels)


@dataclass(frozen=True)
class _Goal:
    """The share that remains in the end, and what `select` is told beside it; plain where MACs are the target."""

    argument: str
    share: float
    others: Mapping[str, Any]

    @staticmethod
    def of(
        model: nn.Module,
        macs_kept: float | None,
        params_kept: float | None,
        cost: Callable[[nn.Module], float] | None,
        cost_kept: float | None,
    ) -> _Goal:
        """Read the arguments of `prune_iteratively`."""
        argument, share = asked_share(macs_kept, params_kept, cost, cost_kept)
        if params_kept is not None:
            return _Goal(argument, share, {"dense_cost": count_params(model)})
        return _Goal(
            argument, share, {} if cost is None else {"cost": cost, "dense_cost": measured(cost, unwrap(model))}
        )

    def after(self, step: int, steps: int, schedule: Schedule) -> dict[str, Any]:
        """Return the arguments of `select` at a step."""
        return {self.argument: share_after(step, steps, self.share, schedule), **self.others}


def share_after(step: int, steps: int, macs_kept: float, schedule: Schedule) -> float:
    """Return the share of the MACs that remains after step `step` (from 0) of `steps`.

    Raises:
        ValueError: `schedule` is unknown.
    """
    done = (step + 1) / steps
    check_choice("schedule", schedule, get_args(Schedule))
    return 1 - done * (1 - macs_kept) if schedule == "linear" else float(macs_kept**done)


def _check_callables(**functions: object) -> None:
    for name, function in functions.items():
        check_callable(name, function)
