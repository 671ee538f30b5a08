"""The search for the channels that go: along the order of importance, to a target."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from oicsr.targets import Channels, Target

ENUMERABLE = 10_000  # so many combinations of widths are all tried where no cut along the order fits
ROUNDS = 4  # of improvement where there are more


@dataclass(frozen=True)
class Cut:
    """Which channels stay, `(channels of all couplings,)`, and whether no other cut can be nearer to the target."""

    stays: Tensor
    nearest: bool


def find_cut(channels: Channels, steps: Sequence[Tensor], target: Target, tolerance: float) -> Cut:
    """Take the steps in order until the target is reached, and look further only where that leaps over it.

    Args:
        channels: The channels of all couplings.
        steps: Positions of the channels that each step removes, least important first.
        target: What is aimed at.
        tolerance: How far the result may be from it, as a share of the target.

    Returns:
        A cut within the tolerance where one was found; otherwise the nearest.
    """
    above, below = _bracket(channels, steps, target)
    if below == 0 or target.cost(_after(channels, steps, below)) >= (1 - tolerance) * target.wanted:
        return Cut(_after(channels, steps, below), nearest=below == 0)
    if target.measured:  # each try prunes and measures a network: the two cuts around the target must do
        around = [_after(channels, steps, count) for count in (below, above)]
        return Cut(min(around, key=lambda stays: abs(target.cost(stays) - target.wanted)), nearest=False)
    filled = _fill(channels, _after(channels, steps, above), steps[above:], target, tolerance)
    if target.is_near(target.cost(filled), tolerance):
        return Cut(filled, nearest=False)
    swapped = _swap(channels, filled, steps, target, tolerance)
    if target.is_near(target.cost(swapped), tolerance):
        return Cut(swapped, nearest=False)
    cut = _nearest(channels, steps, swapped, target, tolerance)
    if cut.nearest or target.is_near(target.cost(cut.stays), tolerance):
        return cut
    restored = _restore(channels, _after(channels, steps, below), steps[:below], target)
    return min([cut, Cut(restored, nearest=False)], key=lambda found: abs(target.cost(found.stays) - target.wanted))


def _after(channels: Channels, steps: Sequence[Tensor], count: int) -> Tensor:
    """Return which channels stay after the first `count` steps."""
    stays = channels.all_stay()
    if count:
        stays[torch.cat(list(steps[:count]))] = False
    return stays


def _bracket(channels: Channels, steps: Sequence[Tensor], target: Target) -> tuple[int, int]:
    """Return the numbers of steps just above the target, and the first at or below it.

    The cost falls with every step, so the cut can be found by bisection. Where no cut is low enough, both are all.
    """
    low, high = 0, len(steps)
    while low < high:
        middle = (low + high) // 2
        if target.cost(_after(channels, steps, middle)) <= target.wanted:
            high = middle
        else:
            low = middle + 1
    return max(low - 1, 0), low


def _fill(channels: Channels, stays: Tensor, steps: Sequence[Tensor], target: Target, tolerance: float) -> Tensor:
    """Go on from the last cut above the target, passing over the steps that would overshoot it."""
    for trial, cost in _taken(channels, stays, steps, lambda cost: cost >= (1 - tolerance) * target.wanted, target):
        stays = trial
        if cost <= target.wanted:
            break
    return stays


def _restore(channels: Channels, stays: Tensor, steps: Sequence[Tensor], target: Target) -> Tensor:
    """Go back from the first cut below the target, passing over the steps that would leave more than it.

    A last step that leaps, as a whole head does, is made up for by many small ones.
    """
    for trial, _ in _taken(channels, stays, steps[::-1], lambda cost: cost <= target.wanted, target):
        stays = trial
    return stays


def _taken(
    channels: Channels, stays: Tensor, steps: Sequence[Tensor], fits: Callable[[float], bool], target: Target
) -> Iterator[tuple[Tensor, float]]:
    """Yield what stays after each step that fits, and its cost; a step removes its channels, or brings them back.

    Once a step of a layer was passed over, its steps of other sizes are passed over as well: a block of another size
    would leave no multiple of the rounding.
    """
    passed: dict[int, int] = {}
    for positions in steps:
        layer, size = channels.layer_of(int(positions[0])), len(positions)
        if passed.get(layer, size) != size:
            continue
        trial = stays.clone()
        trial[positions] = ~trial[positions]
        cost = target.cost(trial)
        if fits(cost):
            stays = trial
            yield stays, cost
        else:
            passed[layer] = size


def _swap(channels: Channels, stays: Tensor, steps: Sequence[Tensor], target: Target, tolerance: float) -> Tensor:
    """Undo the last step of one layer for the next one of another, where that comes near the target.

    Of all such pairs, the first that fits: with the most important channels brought back, and of these with the least
    important ones removed.
    """
    gone = [positions for positions in reversed(steps) if not bool(stays[positions[0]])]
    left = [positions for positions in steps if bool(stays[positions[0]])]
    for first, back in _first_of_each_layer(gone, channels):
        for second, away in _first_of_each_layer(left, channels):
            trial = stays.clone()
            trial[back], trial[away] = True, False
            if first != second and target.is_near(target.cost(trial), tolerance):
                return trial
    return stays


def _first_of_each_layer(steps: Sequence[Tensor], channels: Channels) -> list[tuple[int, Tensor]]:
    first: dict[int, Tensor] = {}
    for positions in steps:
        first.setdefault(channels.layer_of(int(positions[0])), positions)
    return list(first.items())


# ----------------------------------------------------------------------------------------------------------------
# the nearest cut
# ----------------------------------------------------------------------------------------------------------------


def _nearest(channels: Channels, steps: Sequence[Tensor], start: Tensor, target: Target, tolerance: float) -> Cut:
    """Return the cut whose cost is nearest to the target, the best channels of each layer staying.

    Where there are few combinations of widths, all are tried. Of those within the tolerance the one with the fewest
    steps away from `start` is taken. Where there are many, `start` is improved layer by layer and pair by pair.
    """
    by_layer = _by_layer(channels, steps)
    counts = origin = tuple(sum(not bool(start[step[0]]) for step in layer) for layer in by_layer)

    def rank(candidate: tuple[int, ...]) -> tuple[float, int]:
        """Return how far a combination is from the target (0 within the tolerance) and from `start`."""
        cost = target.cost(_with_counts(channels, by_layer, candidate))
        moved = sum(abs(a - b) for a, b in zip(candidate, origin, strict=True))
        return (0.0 if target.is_near(cost, tolerance) else abs(cost - target.wanted)), moved

    ranges = [range(len(layer) + 1) for layer in by_layer]
    if math.prod(len(r) for r in ranges) <= ENUMERABLE:
        best = min(itertools.product(*ranges), key=rank)
        return Cut(_with_counts(channels, by_layer, best), nearest=True)
    for _ in range(ROUNDS):
        better = min([counts, *_neighbours(counts, ranges)], key=rank)
        if better == counts:
            break
        counts = better
    return Cut(_with_counts(channels, by_layer, counts), nearest=False)


def _by_layer(channels: Channels, steps: Sequence[Tensor]) -> list[list[Tensor]]:
    layers: list[list[Tensor]] = [[] for _ in channels.couplings]
    for positions in steps:
        layers[channels.layer_of(int(positions[0]))].append(positions)
    return [layer for layer in layers if layer]


def _with_counts(channels: Channels, by_layer: Sequence[Sequence[Tensor]], counts: Sequence[int]) -> Tensor:
    """Return which channels stay after so many steps of each layer."""
    stays = channels.all_stay()
    for layer, count in zip(by_layer, counts, strict=True):
        if count:
            stays[torch.cat(list(layer[:count]))] = False
    return stays


def _neighbours(counts: tuple[int, ...], ranges: Sequence[range]) -> list[tuple[int, ...]]:
    """Return the combinations that differ by one or two steps in one layer, or by one step in each of two."""
    moves = [((layer, by),) for layer in range(len(counts)) for by in (-2, -1, 1, 2)]
    for first, second in itertools.combinations(range(len(counts)), 2):
        moves += [((first, a), (second, b)) for a in (-1, 1) for b in (-1, 1)]  # type: ignore[misc]
    found = []
    for move in moves:
        candidate = list(counts)
        for layer, by in move:
            candidate[layer] += by
        if all(count in allowed for count, allowed in zip(candidate, ranges, strict=True)):
            found.append(tuple(candidate))
    return found
