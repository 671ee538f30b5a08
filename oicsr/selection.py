"""Selection: Algorithm 1 of Li et al. 2019, global greedy to a target of MACs."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from oicsr.complexity import weight_positions
from oicsr.coupling import Coupling
from oicsr.plan import PruningPlan

TOLERANCE = 0.01  # of the target


class MacsModel:
    """MACs of a network as a function of the channels that stay.

    Each weight costs its positions times the slices that stay on its pruned axes; so the prediction is exact.
    """

    def __init__(
        self,
        couplings: Sequence[Coupling],
        model: nn.Module,
        example_inputs: Tensor | Sequence[Tensor],
    ) -> None:
        positions, self._others = weight_positions(model, example_inputs)
        self._starts = torch.tensor([0, *(c.num_channels for c in couplings)]).cumsum(0).tolist()
        owners = self._owners(couplings)
        self._layers: list[tuple[int, list[Tensor]]] = []
        for name, count in positions.items():
            weight = model.get_parameter(name)
            axes = [owners[name, dim] for dim in range(weight.ndim) if (name, dim) in owners]
            rest = weight.numel() // math.prod(len(axis) for axis in axes)
            self._layers.append((count * rest, axes))

    def _owners(self, couplings: Sequence[Coupling]) -> dict[tuple[str, int], Tensor]:
        """Return for each pruned axis the position of each slice's channel; the last position never goes."""
        total = self._starts[-1]
        owners: dict[tuple[str, int], Tensor] = {}
        for start, coupling in zip(self._starts, couplings, strict=False):
            for member in coupling.members:
                owner = owners.setdefault(member.axis, torch.full_like(member.channels, total))
                owner[member.channels >= 0] = start + member.channels[member.channels >= 0]
        return owners

    def macs(self, stays: Tensor) -> int:
        """Return the MACs when `stays`, bool `(channels of all couplings,)`, says which channels remain."""
        padded = torch.cat([stays, stays.new_ones(1)]).long()
        return self._others + sum(
            cost * math.prod(int(padded[axis].sum()) for axis in axes) for cost, axes in self._layers
        )

    def layer_of(self, position: int) -> int:
        """Return the number of the coupling that a channel belongs to."""
        return bisect.bisect_right(self._starts, position) - 1

    def split(self, stays: Tensor, couplings: Sequence[Coupling]) -> dict[str, tuple[int, ...]]:
        """Return the channel ids that stay, by coupling name."""
        parts = stays.split([c.num_channels for c in couplings])
        return {c.name: tuple(p.nonzero().flatten().tolist()) for c, p in zip(couplings, parts, strict=True)}


def select_channels(
    scores: Sequence[Tensor],
    couplings: Sequence[Coupling],
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor],
    *,
    macs_kept: float = 0.5,
    max_removed: float = 0.5,
    original_widths: Mapping[str, int] | None = None,
    dense_macs: int | None = None,
    round_to: int = 1,
) -> PruningPlan:
    """Remove the least important channels of the whole network until the MACs reach a target (Algorithm 1).

    All channels are sorted by score, over all layers, and removed from the least on; a layer at its cap is passed
    over. The first cut at or below the target is taken; where one step leaps over the target by more than 1 %, the
    channels that overshoot are passed over as well. Where that does not do either (a small network whose cheap layers
    are at their caps), one layer gets back the best channel that it lost, and another gives up its next one.

    Args:
        scores: One tensor `(num_channels,)` per coupling: the lower, the sooner a channel goes.
        couplings: The couplings of the model.
        model: The network; left as it is.
        example_inputs: Inputs of one forward call, for counting MACs.
        macs_kept: The share of the dense MACs that remains, in (0, 1].
        max_removed: The largest share of a coupling's channels that may go, in [0, 1]; at least one always stays.
        original_widths: Channels per coupling that `max_removed` refers to, where the model was pruned before;
            without it, the current widths.
        dense_macs: The MACs that `macs_kept` refers to; without it, those of `model`.
        round_to: Leave each width a multiple of this (a width that is none to begin with may stay as it is).

    Returns:
        The plan; its MACs are within 1 % of the target.

    Raises:
        ValueError: An argument is out of range, a score is NaN, or the target is out of reach (says what is not).
    """
    _check_arguments(scores, couplings, macs_kept, max_removed, round_to)
    cost = MacsModel(couplings, model, example_inputs)
    everything = torch.ones(sum(c.num_channels for c in couplings), dtype=torch.bool)
    target = macs_kept * (dense_macs if dense_macs is not None else cost.macs(everything))
    floors = [_least_width(c, max_removed, (original_widths or {}).get(c.name), round_to) for c in couplings]
    steps = _removal_steps(scores, couplings, floors, round_to)
    stays = _greedy(cost, everything, steps, target)
    reached = cost.macs(stays)
    if not _is_near(reached, target):
        _refuse(cost, everything, steps, target, reached)
    return PruningPlan.from_kept(couplings, cost.split(stays, couplings))


def _check_arguments(
    scores: Sequence[Tensor],
    couplings: Sequence[Coupling],
    macs_kept: float,
    max_removed: float,
    round_to: int,
) -> None:
    if not 0 < macs_kept <= 1:
        raise ValueError(f"macs_kept is {macs_kept!r}; it is the share of MACs that remains and must be in (0, 1]")
    if not 0 <= max_removed <= 1:
        raise ValueError(f"max_removed is {max_removed!r}; it must be in [0, 1]")
    if round_to < 1:
        raise ValueError(f"round_to is {round_to!r}; it must be 1 or more")
    if not couplings:
        raise ValueError("there are no couplings: the model has no channels that can be removed in this scope")
    shapes, expected = [tuple(s.shape) for s in scores], [(c.num_channels,) for c in couplings]
    if shapes != expected:
        raise ValueError(f"scores have shapes {shapes}; the couplings need {expected}")
    for score, coupling in zip(scores, couplings, strict=True):
        if bool(score.isnan().any()):
            raise ValueError(f"the scores of coupling {coupling.name!r} contain NaN")


def _least_width(coupling: Coupling, max_removed: float, original: int | None, round_to: int) -> int:
    """Return the smallest width that a coupling may be left with."""
    width = coupling.num_channels
    reference = width if original is None else original
    least = max(1, reference - math.floor(max_removed * reference + 1e-9))
    return min(width, math.ceil(least / round_to) * round_to)


def _removal_steps(
    scores: Sequence[Tensor], couplings: Sequence[Coupling], floors: Sequence[int], round_to: int
) -> list[Tensor]:
    """Return the sets of channels to remove one after another, least important first, down to the floors.

    Each is an int64 tensor of positions. With `round_to`, a layer gives up its channels in blocks that leave it a
    multiple; a block is as important as its most important channel.
    """
    steps: list[tuple[float, int, Tensor]] = []
    start = 0
    for score, coupling, floor in zip(scores, couplings, floors, strict=True):
        ascending, order = torch.sort(score.detach().double().cpu(), stable=True)
        values = ascending.tolist()
        width, taken = coupling.num_channels, 0
        while width > floor:
            block = min(width % round_to or round_to, width - floor)
            chosen = order[taken : taken + block]
            steps.append((values[taken + block - 1], start, start + chosen))
            taken, width = taken + block, width - block
        start += coupling.num_channels
    return [positions for _, _, positions in sorted(steps, key=lambda step: step[:2])]


def _greedy(cost: MacsModel, everything: Tensor, steps: Sequence[Tensor], target: float) -> Tensor:
    """Return which channels stay after the shortest run of steps that reaches the target."""

    def after(count: int) -> Tensor:
        """Return which channels stay after the first `count` steps."""
        stays = everything.clone()
        if count:
            stays[torch.cat(list(steps[:count]))] = False
        return stays

    low, high = 0, len(steps)  # MACs fall with every step, so the cut can be found by bisection
    while low < high:
        middle = (low + high) // 2
        if cost.macs(after(middle)) <= target:
            high = middle
        else:
            low = middle + 1
    stays = after(low)
    if low == 0 or cost.macs(stays) >= (1 - TOLERANCE) * target:
        return stays
    filled = _fill(cost, after(low - 1), steps[low - 1 :], target)
    return filled if _is_near(cost.macs(filled), target) else _swap(cost, filled, steps, target)


def _is_near(macs: int, target: float) -> bool:
    return abs(macs - target) <= TOLERANCE * target


def _fill(cost: MacsModel, stays: Tensor, steps: Sequence[Tensor], target: float) -> Tensor:
    """Go on from just above the target, passing over the steps that would overshoot it."""
    for positions in steps:
        trial = stays.clone()
        trial[positions] = False
        macs = cost.macs(trial)
        if macs >= (1 - TOLERANCE) * target:
            stays = trial
            if macs <= target:
                return stays
    return stays


def _swap(cost: MacsModel, stays: Tensor, steps: Sequence[Tensor], target: float) -> Tensor:
    """Undo the last step of one layer for the next one of another, where that comes near the target.

    Of all such pairs, the first that fits: with the most important channels brought back, and of these with the least
    important ones removed.
    """
    gone = [positions for positions in reversed(steps) if not bool(stays[positions[0]])]
    left = [positions for positions in steps if bool(stays[positions[0]])]
    for back in _first_of_each_layer(gone, cost):
        for away in _first_of_each_layer(left, cost):
            trial = stays.clone()
            trial[back], trial[away] = True, False
            if cost.layer_of(int(back[0])) != cost.layer_of(int(away[0])) and _is_near(cost.macs(trial), target):
                return trial
    return stays


def _first_of_each_layer(steps: Sequence[Tensor], cost: MacsModel) -> list[Tensor]:
    first: dict[int, Tensor] = {}
    for positions in steps:
        first.setdefault(cost.layer_of(int(positions[0])), positions)
    return list(first.values())


def _refuse(cost: MacsModel, everything: Tensor, steps: Sequence[Tensor], target: float, reached: int) -> None:
    dense = cost.macs(everything)
    stays = everything.clone()
    if steps:
        stays[torch.cat(list(steps))] = False
    least = cost.macs(stays)
    if target < least:
        raise ValueError(
            f"the target of {target:,.0f} MACs is out of reach: with this cap, scope and rounding the network can go "
            f"from {dense:,} down to {least:,} MACs ({least / dense:.4f} of them). Raise max_removed or macs_kept."
        )
    raise ValueError(
        f"no cut comes within {TOLERANCE:.0%} of {target:,.0f} MACs: the nearest leaves {reached:,} "
        f"({reached / dense:.4f} of {dense:,}); ask for that, or lower round_to."
    )
