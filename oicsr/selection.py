"""Selection: Algorithm 1 of Li et al. 2019, global greedy to a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from oicsr.arguments import check_call, check_couplings, check_fit, check_no_nan, check_number, check_scores
from oicsr.complexity import count_macs
from oicsr.coupling import Coupling
from oicsr.limits import DEFAULT_CAP, Limits
from oicsr.names import check_names
from oicsr.networks.copying import MODEL_ERRORS, copy_model, shared
from oicsr.networks.inputs import ExampleInputs
from oicsr.networks.wrapping import unwrap
from oicsr.plan import PruningPlan
from oicsr.proving.ways import check_way
from oicsr.reach import reaches, refuse_distance, refuse_reach, widened
from oicsr.search import find_cut
from oicsr.surgery import apply_plan
from oicsr.targets import Channels, MacsModel, Target, make_target
from oicsr.ties import Tie, tie_couplings, tie_groups
from oicsr.tracing.none import said_of_none

__all__ = ["TOLERANCE", "MacsModel", "select_channels"]

TOLERANCE = 0.01  # of the target


def select_channels(
    scores: Sequence[Tensor],
    couplings: Sequence[Coupling],
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    macs_kept: float | None = None,
    params_kept: float | None = None,
    cost: Callable[[nn.Module], float] | None = None,
    cost_kept: float | None = None,
    max_removed: float | Mapping[str, float] | None = None,
    round_to: int | Mapping[str, int] = 1,
    tie: Sequence[Tie] = (),
    tolerance: float = TOLERANCE,
    original_widths: Mapping[str, int] | None = None,
    dense_macs: float | None = None,
    dense_cost: float | None = None,
) -> PruningPlan:
    """Remove the least important channels of the whole network until a target is reached (Algorithm 1).

    All channels are sorted by score, over all layers, and removed from the least on; a layer at its cap is passed
    over. The first cut at or below the target is taken. Where one step leaps over the target by more than the
    tolerance, the channels that overshoot are passed over as well. Where that does not help either (a small network
    whose cheap layers are at their caps), one layer gets back the best channel that it lost and another gives up its
    next one; then other combinations of widths are tried, and at last channels are brought back to the cut below the
    target, the most important first.

    Args:
        scores: One tensor `(num_channels,)` per coupling: the lower, the sooner a channel goes. Equal scores go in the
            order of the couplings, those of the first one first.
        couplings: The couplings of the model.
        model: The network; left as it is.
        example_inputs: Inputs of one forward call, for counting MACs.
        macs_kept: The share of the dense MACs that remains, in (0, 1]. 0.5 where no target is given.
        params_kept: The share of the parameters that remains, as a target in place of MACs.
        cost: Any cost as a target: called as `cost(pruned_model)`, it returns a latency, an energy or the like. About
            20 networks are pruned and measured. The cost is expected to fall with every channel; give noisy ones
            (latency) a larger `tolerance`.
        cost_kept: The share of `cost(model)` that remains.
        max_removed: The largest share of a coupling's channels that may go, in [0, 1]; at least one always stays.
            A number, or a mapping from names or patterns of layers to numbers (`{"layer4*": 0.3, "*": 0.8}`).
            None: 0.9, or more where the target needs more. The paper's value is `oicsr.PAPER_CAP`, 0.5.
        round_to: Leave each width a multiple of this (a width that is none to begin with may stay as it is). A
            number, or a mapping as for `max_removed`.
        tie: Groups of couplings that keep the same channels (see `tie_couplings`); the mean of their scores counts.
        tolerance: How far the result may be from the target, as a share of the target.
        original_widths: Channels per coupling, by name, that `max_removed` refers to, where the model was pruned before;
            without it, the current widths.
        dense_macs: The MACs that `macs_kept` refers to; without it, those of `model`.
        dense_cost: The parameters or the cost that `params_kept` or `cost_kept` refers to; without it, those of
            `model`.

    Returns:
        The plan.

    Raises:
        TypeError: An argument is of another kind than it must be; the message names it.
        OutOfReachError: The target is below what can be reached with these caps and rounding, and this scope; the
            message says what is within reach, and which argument to change to which value. A `ValueError`, too.
        ValueError: An argument is out of range, the couplings are not the model's, a score is NaN, or no cut comes
            within the tolerance of the target; the message names the nearest. Or the code asks how wide a value is, and
            the network would be another one at these widths.

    Example:
        >>> import torch, oicsr
        >>> model, images = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 4, 3)), torch.zeros(1, 3, 8, 8)
        >>> couplings = oicsr.find_couplings(model, images)
        >>> scores = oicsr.out_in_energy(model, couplings)
        >>> plan = oicsr.select_channels(scores, couplings, model, images, macs_kept=0.5)
        >>> len(plan.kept["0"])
        4
    """  # noqa: E501
    check_tolerance(tolerance)
    check_couplings(couplings)
    check_call(model, example_inputs)
    if not couplings:
        raise ValueError(f"there are no couplings: {said_of_none(model, example_inputs)}")
    check_scores(scores, couplings)
    model = unwrap(model)
    check_fit(model, couplings)
    check_no_nan(scores, couplings, model)
    if isinstance(original_widths, Mapping):
        check_names(original_widths, couplings, "original_widths")
    tied = tie_couplings(couplings, tie)
    scores = _tied_scores(scores, couplings, tie)
    channels = Channels(tied)
    make = partial(
        make_target,
        model=model,
        example_inputs=example_inputs,
        macs_kept=macs_kept,
        params_kept=params_kept,
        cost=cost,
        cost_kept=cost_kept,
        reference=dense_macs if params_kept is None and cost is None else dense_cost,
    )
    target, limits = make(channels), Limits.of(tied, max_removed, round_to, original_widths or {})
    if target.argument == "macs_kept" and not _is_predicted(target, model, example_inputs, channels, limits, scores):
        make = partial(make, measure=True)
        target = make(channels)
    limits = widened(limits, scores, target, tolerance)
    if not reaches(limits, scores, target, tolerance):
        refuse_reach(limits, scores, target, tolerance, model, example_inputs, make)
    cut = find_cut(channels, limits.steps(scores), target, tolerance)
    reached = target.cost(cut.stays)
    if not target.is_near(reached, tolerance):
        refuse_distance(reached, target, limits, tolerance, nearest=cut.nearest)
    kept = channels.split(cut.stays)
    names = {coupling.name: group[0].name for group in tie_groups(couplings, tie) for coupling in group}
    plan = PruningPlan.from_kept(couplings, {name: kept[first] for name, first in names.items()})
    check_way(model, example_inputs, couplings, plan)
    return plan


def check_tolerance(tolerance: float) -> None:
    """Raise TypeError where a tolerance is not a number, ValueError where it is not in [0, 1]."""
    if not 0 <= check_number("tolerance", tolerance) <= 1:
        raise ValueError(f"tolerance is {tolerance!r}; it must be in [0, 1]")


def _is_predicted(
    target: Target,
    model: nn.Module,
    example_inputs: ExampleInputs,
    channels: Channels,
    limits: Limits,
    scores: Sequence[Tensor],
) -> bool:
    """Return whether the MACs of the smallest network within the limits are as predicted.

    Mostly they are, as weights go by their names. But a layer may run over each channel by itself (a linear layer over
    tokens), as often as there are channels. What a product of activations costs is found by its place in the order of
    the calls, and code may call some that the tracer does not see.
    """
    stays = limits.with_automatic(DEFAULT_CAP).least(scores)
    trial = copy_model(model, shared)
    apply_plan(trial, PruningPlan.from_kept(channels.couplings, channels.split(stays)))
    try:
        return count_macs(trial, example_inputs) == target.cost(stays)
    except MODEL_ERRORS:
        return True  # that the network does not run when it is so small is not for here to say


def _tied_scores(scores: Sequence[Tensor], couplings: Sequence[Coupling], tie: Sequence[Tie]) -> list[Tensor]:
    """Return one tensor of scores per group of couplings that keep the same channels: the mean of theirs."""
    by_name = {coupling.name: score for coupling, score in zip(couplings, scores, strict=True)}
    found = []
    for group in tie_groups(couplings, tie):
        own = [by_name[coupling.name] for coupling in group]
        found.append(own[0] if len(own) == 1 else torch.stack([score.detach().double().cpu() for score in own]).mean(0))
    return found
