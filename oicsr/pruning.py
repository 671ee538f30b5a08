"""The whole path in one call, for those who want no steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from oicsr.algorithm import Importance, MakeRegularizer, PruningResult, Schedule, Train, prune_iteratively
from oicsr.arguments import check_callable
from oicsr.coupling import Coupling
from oicsr.importance import out_in_energy
from oicsr.names import Names
from oicsr.networks.inputs import ExampleInputs
from oicsr.penalties import DEFAULT_STRENGTH, GroupLasso, Regularizer
from oicsr.reach import OutOfReachError
from oicsr.recalibration import check_batches, recalibrate, try_batches
from oicsr.selection import TOLERANCE, check_tolerance, select_channels
from oicsr.ties import Tie, tie_couplings
from oicsr.tracing.approximate import Approximate
from oicsr.tracing.attention import Granularity
from oicsr.tracing.trace import Scope, find_couplings


def prune(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    macs_kept: float | None = None,
    params_kept: float | None = None,
    cost: Callable[[nn.Module], float] | None = None,
    cost_kept: float | None = None,
    train: Train | None = None,
    strength: float | None = None,
    make_regularizer: MakeRegularizer | None = None,
    steps: int = 1,
    schedule: Schedule = "linear",
    importance: Importance = out_in_energy,
    batches: Iterable[Any] | None = None,
    scope: Scope | None = None,
    ignore: Names = (),
    max_removed: float | Mapping[str, float] | None = None,
    round_to: int | Mapping[str, int] = 1,
    tie: Sequence[Tie] = (),
    tolerance: float = TOLERANCE,
    absorb: bool = False,
    granularity: Granularity = "channel",
    approximate: Approximate = "none",
) -> PruningResult:
    """Prune a network in one call: trace, train with the penalty, score, select, remove, recalibrate.

    Each step is a function of its own (`find_couplings`, `GroupLasso`, `out_in_energy`, `select_channels`,
    `remove_channels`, `recalibrate`); this joins them as the paper does. Fine-tune the result afterwards.

    Args:
        model: The network. It stays as it is, unless `train` trains it.
        example_inputs: The arguments of one forward call (see `find_couplings`).
        macs_kept: The share of the MACs that remains, in (0, 1]. 0.5 where no target is given.
        params_kept: The share of the parameters, as a target in place of MACs.
        cost: Any cost of a model, as a target in place of MACs (see `select_channels`).
        cost_kept: The share of that cost.
        train: Called as `train(model, penalty, step)` before each removal, it trains in place with
            `loss + penalty(model)`. From the second step on the network comes without a wrapper that `model` has
            (see `prune_iteratively`). Without it, channels are removed from the network as it is.
        strength: The strength of the penalty, OICSR's Group Lasso (see `suggest_strength`); None: its default. For
            `train` only.
        make_regularizer: Builds another penalty from the couplings, for `train` only; `strength` has no effect then.
        steps: How many times to train and remove.
        schedule: How the target is spread over the steps (see `prune_iteratively`).
        importance: Scores the channels; called as `importance(model, couplings)`.
        batches: Batches that the normalisation statistics are estimated from in the end (see `recalibrate`). With
            `train`, a list or a loader and no iterator: the first one is tried before the training.
        scope: Which channels may go (see `find_couplings`). None: `"inner"`, or `"all"` where the target is beyond
            what `"inner"` can reach (not with `cost`); the summary says so.
        ignore: Layers whose own channels stay: names, patterns or modules.
        max_removed: The largest share of a layer's channels that may go (see `select_channels`).
        round_to: Leave widths a multiple of this.
        tie: Groups of couplings that keep the same channels; they are penalised as one, too.
        tolerance: How far the result may be from the target, as a share of it.
        absorb: Let readers absorb the constants of removed channels (see `remove_channels`).
        granularity: What goes of an attention, `"channel"` or `"head"` (see `find_couplings`).
        approximate: `"layer_norm"`: channels under a LayerNorm go too, and outputs change (see `find_couplings`).

    Returns:
        The pruned model, the plan and a summary (`print(result)`).

    Raises:
        TypeError: An argument is of another kind than it must be.
        OutOfReachError: The target is out of reach; the message says which argument to change to which value.
        ValueError: An argument is out of range, or of use with `train` only; the model cannot be traced, or no cut
            comes within the tolerance of the target. With `train`, all of this is found before the training, where
            scores have no say in it. What `batches` raise after it carries the pruned network: `error.result`.

    Example:
        >>> import torch, oicsr
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
        >>> result = oicsr.prune(network, torch.zeros(1, 4), macs_kept=0.5)
        >>> print(result)
        Sequential, pruned in one step
          MACs: 192 -> 96 (50.0% kept)
          parameters: 226 -> 114 (50.4% kept)
          channels: 32 -> 16 (50.0% kept)
    """
    target = {"macs_kept": macs_kept, "params_kept": params_kept, "cost": cost, "cost_kept": cost_kept}
    limits = {"max_removed": max_removed, "round_to": round_to}
    select = partial(select_channels, tolerance=tolerance)
    find = partial(_find, model, example_inputs, ignore, tie, granularity, approximate)
    check_tolerance(tolerance)
    _check_training(train, strength=strength, make_regularizer=make_regularizer)
    if batches is not None:
        check_batches(batches)
    couplings, notes = find("inner" if scope is None else scope), []
    beyond = partial(_beyond, model=model, inputs=example_inputs, select=select, target=target, limits=limits)
    error = beyond(couplings) if scope is None or train is not None else None
    if scope is None and cost is None and (not couplings or error):
        couplings = find("all")
        error = beyond(couplings) if train is not None else None
        notes.append("residual streams are pruned as well (scope 'all'): the target is out of reach otherwise")
    if train is not None:
        _refuse_early(model, example_inputs, couplings, error, batches)
    regularizer = make_regularizer or partial(_group_lasso, strength=DEFAULT_STRENGTH if strength is None else strength)
    result = prune_iteratively(
        model,
        example_inputs,
        train=train or _train_nothing,
        make_regularizer=regularizer if train is not None else _no_regularizer,
        importance=importance,
        steps=steps,
        schedule=schedule,
        absorb=absorb,
        select=select,
        couplings=couplings,
        **target,  # type: ignore[arg-type]
        **limits,  # type: ignore[arg-type]
    )
    if batches is not None:
        _recalibrate(result, batches)
        if any(name.endswith("running_mean") for name, _ in result.model.named_buffers()):
            notes.append("normalisation statistics are recalibrated")
    return replace(result, notes=tuple(notes))


def _recalibrate(result: PruningResult, batches: Iterable[Any]) -> None:
    """Recalibrate what came out; what goes wrong then must not lose the training."""
    try:
        recalibrate(result.model, batches)
    except Exception as error:
        error.result = result  # type: ignore[attr-defined]
        raise


def _check_training(train: object, **penalty: object) -> None:
    """Raise where the training is not a function, or is missing while there is an argument about its penalty.

    Raises:
        TypeError: `train` is not a function.
        ValueError: There is no `train`, and an argument would be ignored.
    """
    if train is not None:
        check_callable("train", train)
        return
    for name, value in penalty.items():
        if value is not None:
            raise ValueError(
                f"{name} is {str(value)[:80]!r}, but nothing is trained with a penalty: pass "
                f"train=lambda model, penalty, step: ..., or leave {name} out"
            )


def _find(
    model: nn.Module,
    inputs: ExampleInputs,
    ignore: Names,
    tie: Sequence[Tie],
    granularity: Granularity,
    approximate: Approximate,
    scope: Scope,
) -> list[Coupling]:
    found = find_couplings(model, inputs, scope=scope, ignore=ignore, granularity=granularity, approximate=approximate)
    return tie_couplings(found, tie)


def _beyond(
    couplings: Sequence[Coupling],
    *,
    model: nn.Module,
    inputs: ExampleInputs,
    select: Callable[..., object],
    target: Mapping[str, object],
    limits: Mapping[str, object],
) -> OutOfReachError | None:
    """Return why the target is out of reach of these couplings, whatever the scores will be; None if it is not.

    None, too, without couplings, and where a cost has to be measured.
    """
    if not couplings or target["cost"] is not None:
        return None
    try:
        select(out_in_energy(model, couplings), couplings, model, inputs, **target, **limits)
    except OutOfReachError as error:
        return error
    except ValueError:  # raised again, with what it says, by the selection itself
        return None
    return None


def _refuse_early(
    model: nn.Module,
    inputs: ExampleInputs,
    couplings: Sequence[Coupling],
    error: OutOfReachError | None,
    batches: Iterable[Any] | None,
) -> None:
    """Raise before the training what would be raised after it."""
    if not couplings:
        select_channels([], couplings, model, inputs)  # says so
    if error:
        raise error
    if batches is not None:
        try_batches(model, batches)


def _group_lasso(couplings: Sequence[Coupling], *, strength: float) -> Regularizer:
    return GroupLasso(couplings, strength=strength)


def _no_regularizer(couplings: Sequence[Coupling]) -> None:
    return None


def _train_nothing(model: nn.Module, regularizer: Regularizer | None, step: int) -> None:
    return None
