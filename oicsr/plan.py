"""Pruning plans: which channels stay, and what that means for every parameter."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from oicsr.changes import (
    AttributeChange,
    Scaling,
    attribute_changes,
    joined_changes,
    joined_scalings,
    parse_attribute,
    parse_scaling,
    positions_left,
    scalings,
)
from oicsr.coupling import Axis, Call, Coupling, Member, channel_mask, kept_parts, kept_slices
from oicsr.networks.state import indices_on_cpu

PLAN_FORMAT = "oicsr-plan-1"


@dataclass(frozen=True)
class Slice:
    """The slices of one parameter axis that stay: `kept` are sorted indices into an axis of `size`."""

    parameter: str
    dim: int
    size: int
    kept: tuple[int, ...]


@dataclass(frozen=True)
class PruningPlan:
    """Which channels stay.

    Build one with `PruningPlan.from_kept` (or `select_channels`), which also works out the slices, so that the plan
    alone is enough to repeat the surgery on another copy of the model, an EMA of it, or in another process.

    Attributes:
        kept: Coupling name to the sorted channel ids that stay.
        slices: The parameter slices that stay, for every axis that loses some.
        attributes: The numbers on modules that change (`num_heads`, `head_dim`), before and after.
        scalings: Slices that are multiplied before any are taken away, in the positions of the network before.
    """

    kept: Mapping[str, tuple[int, ...]]
    slices: tuple[Slice, ...] = field(repr=False)
    attributes: tuple[AttributeChange, ...] = field(default=(), repr=False)
    scalings: tuple[Scaling, ...] = field(default=(), repr=False)

    def __repr__(self) -> str:
        stay = sum(len(ids) for ids in self.kept.values())
        return f"PruningPlan({len(self.kept)} couplings keep {stay:,} channels, {len(self.slices)} axes are cut)"

    @staticmethod
    def from_kept(couplings: Sequence[Coupling], kept: Mapping[str, Sequence[int]]) -> PruningPlan:
        """Build a plan by hand.

        Args:
            couplings: The couplings of the model.
            kept: Coupling name to the channel ids that stay, in any order, as integers, a tensor or an array; a
                coupling that is not named keeps all.

        Raises:
            TypeError: `kept` is not a mapping.
            ValueError: A name is unknown, an id is no integer, out of range or given twice, a coupling would lose every
                channel, or a number on a module would not be whole.
        """
        if not isinstance(kept, Mapping):
            raise TypeError(
                f"kept is a {type(kept).__name__}; it must be a mapping from names of couplings to the ids that stay"
            )
        sizes = {coupling.name: coupling.num_channels for coupling in couplings}
        kept = {name: _integers(name, ids) for name, ids in kept.items()}
        for name, ids in kept.items():
            if name not in sizes:
                raise ValueError(f"no coupling is called {name!r}; there are {', '.join(map(repr, sizes))}")
            _check_ids(name, ids, sizes[name])
        slices = [
            Slice(parameter, dim, len(stays), tuple(stays.nonzero().flatten().tolist()))
            for (parameter, dim), stays in kept_slices(couplings, kept).items()
            if not bool(stays.all())
        ]
        all_kept = {name: tuple(sorted(kept.get(name, range(size)))) for name, size in sizes.items()}
        changes, factors = attribute_changes(couplings, all_kept), scalings(couplings, all_kept)
        return PruningPlan(all_kept, tuple(slices), changes, factors)

    def then(self, following: PruningPlan) -> PruningPlan:
        """Return the one plan that does what this one and then `following` (made for the pruned model) do.

        Raises:
            ValueError: `following` was made for a model of other widths or names.
        """
        check_is_plan(following)
        unknown = [name for name in following.kept if name not in self.kept]
        if unknown:
            raise ValueError(
                f"plans do not follow one another: the second keeps channels of {unknown[0]!r}, which the "
                "first does not know"
            )
        kept = {
            name: tuple(ids[i] for i in _valid(name, following.kept.get(name, tuple(range(len(ids)))), len(ids)))
            for name, ids in self.kept.items()
        }
        slices = {(s.parameter, s.dim): s for s in self.slices}
        for after in following.slices:
            before = slices.get((after.parameter, after.dim))
            if before is None:
                slices[after.parameter, after.dim] = after
                continue
            if after.size != len(before.kept):
                raise ValueError(
                    f"plans do not follow one another: {after.parameter!r} has {len(before.kept)} slices on axis "
                    f"{after.dim} after the first plan, the second expects {after.size}"
                )
            kept_twice = tuple(before.kept[i] for i in after.kept)
            slices[after.parameter, after.dim] = Slice(before.parameter, before.dim, before.size, kept_twice)
        return PruningPlan(
            kept,
            tuple(slices.values()),
            joined_changes(self.attributes, following.attributes),
            joined_scalings(self.scalings, following.scalings, {(s.parameter, s.dim): s.kept for s in self.slices}),
        )

    def to_json(self) -> str:
        """Return the plan as a JSON text that `from_json` reads back."""
        slices = [[s.parameter, s.dim, s.size, list(s.kept)] for s in self.slices]
        kept = {name: list(ids) for name, ids in self.kept.items()}
        data: dict[str, Any] = {"format": PLAN_FORMAT, "kept": kept, "slices": slices}
        if self.attributes:
            data["attributes"] = [[a.module, a.name, a.before, a.after] for a in self.attributes]
        if self.scalings:
            data["scalings"] = [[s.parameter, s.dim, s.factor, list(s.slices)] for s in self.scalings]
        return json.dumps(data, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> PruningPlan:
        """Read a plan; nothing in the text is executed.

        Raises:
            ValueError: The text is not a plan of this format, with what is wrong.
        """
        try:
            data = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:  # ValueError: a number of thousands of digits too
            raise ValueError(f"not a pruning plan: invalid JSON ({error})") from error
        if not isinstance(data, dict) or data.get("format") != PLAN_FORMAT:
            found = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"not a pruning plan: format is {found!r}, expected {PLAN_FORMAT!r}")
        kept, slices = data.get("kept"), data.get("slices")
        if not isinstance(kept, dict) or not isinstance(slices, list):
            raise ValueError("not a pruning plan: 'kept' must be an object and 'slices' a list")
        attributes, factors = data.get("attributes", []), data.get("scalings", [])
        if not isinstance(attributes, list) or not isinstance(factors, list):
            raise ValueError("not a pruning plan: 'attributes' and 'scalings' must be lists")
        return PruningPlan(
            {str(name): _indices(f"kept[{name!r}]", ids, None) for name, ids in kept.items()},
            tuple(_parse_slice(entry) for entry in slices),
            tuple(parse_attribute(entry) for entry in attributes),
            tuple(parse_scaling(entry) for entry in factors),
        )


@indices_on_cpu()
def shrink_couplings(couplings: Sequence[Coupling], plan: PruningPlan) -> list[Coupling]:
    """Return the couplings of the model that `plan` leaves, without tracing it again.

    Args:
        couplings: Those of the model before.
        plan: The plan that was, or will be, applied to it.

    Raises:
        ValueError: The plan was made for other couplings, or its channels and its slices do not belong together.
    """
    check_is_plan(plan)
    check_plan_of(couplings, plan)
    slices = kept_slices(couplings, plan.kept)
    _check_cuts(slices, plan)
    kept = {c.name: plan.kept.get(c.name, tuple(range(c.num_channels))) for c in couplings}
    numbers = {(change.module, change.name): change.after for change in attribute_changes(couplings, kept)}
    parts = kept_parts(couplings, plan.kept)
    return [_shrink(coupling, channel_mask(coupling, plan.kept), slices, numbers, parts) for coupling in couplings]


def check_is_plan(plan: object) -> None:
    """Raise TypeError unless `plan` is a plan."""
    if not isinstance(plan, PruningPlan):
        raise TypeError(
            f"plan is a {type(plan).__name__}; it must be a PruningPlan, from select_channels or PruningPlan.from_kept"
        )


def check_plan_of(couplings: Sequence[Coupling], plan: PruningPlan) -> None:
    """Raise ValueError unless a plan speaks of channels and widths that couplings have."""
    sizes = {coupling.name: coupling.num_channels for coupling in couplings}
    for name, ids in plan.kept.items():
        if name not in sizes:
            raise ValueError(f"the plan is one of other couplings: there is none called {name!r}")
        if max(ids, default=0) >= sizes[name]:
            raise ValueError(
                f"the plan is one of other couplings: it keeps channel {max(ids)} of {name!r}, which has {sizes[name]}"
            )
    widths = {member.axis: len(member.channels) for coupling in couplings for member in coupling.members}
    for entry in plan.slices:
        width = widths.get((entry.parameter, entry.dim))
        if width is not None and width != entry.size:
            raise ValueError(
                f"the plan is one of other couplings: it expects {entry.size} slices on axis {entry.dim} of "
                f"{entry.parameter!r}, which has {width}"
            )


def _check_cuts(slices: Mapping[Axis, Tensor], plan: PruningPlan) -> None:
    """Raise ValueError where a plan keeps other slices than those that its channels own.

    Args:
        slices: Which slices stay where the channels of `plan.kept` do, bool by axis.
        plan: The plan.
    """
    cuts = {(entry.parameter, entry.dim): entry.kept for entry in plan.slices}
    for (name, dim), stays in slices.items():
        left = tuple(stays.nonzero().flatten().tolist())
        kept = cuts.get((name, dim), tuple(range(len(stays))))
        if left != kept:
            raise ValueError(
                "the plan is one of other couplings, or was changed by hand: with the channels that it keeps, "
                f"{len(left)} of {len(stays)} slices on axis {dim} of {name!r} stay, and it keeps {len(kept)}"
                f"{' others' if len(left) == len(kept) else ''}. Where couplings were tied, pass those that "
                "`tie_couplings` returns; `PruningPlan.from_kept` makes a plan by hand"
            )


def _shrink(
    coupling: Coupling,
    stays: Tensor,
    slices: Mapping[Axis, Tensor],
    numbers: Mapping[tuple[str, str], float],
    parts: Mapping[tuple[Call, int], Tensor],
) -> Coupling:
    new_ids = torch.cat([torch.cumsum(stays, 0) - 1, torch.tensor([-1])])  # the last one is for the id -1
    members = tuple(
        Member(m.parameter, m.dim, new_ids[m.channels[slices[m.axis]]], m.side, m.counts) for m in coupling.members
    )
    left = int(stays.sum())
    attributes = tuple(
        replace(a, value=numbers.get((a.module, a.name), a.value), channels=_renumbered(a.channels, new_ids, stays))
        for a in coupling.attributes
    )
    rescaled = tuple(replace(r, slices=positions_left(r, slices)) for r in coupling.rescaled)
    left_of = tuple(replace(p, channels=new_ids[p.channels[parts[p.product, p.dim]]]) for p in coupling.parts)
    return replace(
        coupling, num_channels=left, members=members, attributes=attributes, rescaled=rescaled, parts=left_of
    )


def _renumbered(channels: tuple[int, ...] | None, new_ids: Tensor, stays: Tensor) -> tuple[int, ...] | None:
    if channels is None:
        return None
    return tuple(int(new_ids[channel]) for channel in channels if bool(stays[channel]))


def _integers(name: str, ids: Iterable[Any]) -> tuple[int, ...]:
    """Return ids as Python's integers, whatever holds them: a plan is written as JSON."""
    with suppress(TypeError):
        values = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        if not any(isinstance(value, bool) for value in values):
            return tuple(operator.index(value) for value in values)
    raise ValueError(
        f"coupling {name!r} keeps {str(ids)[:80]}: what is kept must be the ids of channels, integers (of a mask, "
        "mask.nonzero().flatten())"
    )


def _check_ids(name: str, ids: Sequence[int], size: int) -> None:
    if len(ids) == 0:
        raise ValueError(f"coupling {name!r} would lose every channel; keep at least one of {size}")
    if len(set(ids)) != len(ids):
        raise ValueError(f"coupling {name!r}: a channel id is given twice")
    _valid(name, ids, size)


def _valid(name: str, ids: Sequence[int], size: int) -> Sequence[int]:
    wrong = [i for i in ids if not 0 <= i < size]
    if wrong:
        raise ValueError(f"coupling {name!r} has channels 0 to {size - 1}, not {wrong[0]}")
    return ids


def _parse_slice(entry: Any) -> Slice:
    match entry:
        case [str(parameter), int(dim), int(size), list(kept)] if dim >= 0 and size > 0:
            return Slice(parameter, dim, size, _indices(f"slices of {parameter!r}", kept, size))
    raise ValueError(f"not a pruning plan: {str(entry)[:80]!r} is not [parameter, dim, size, kept]")


def _indices(where: str, values: Any, size: int | None) -> tuple[int, ...]:
    """Check sorted, distinct, non-negative indices below `size`."""
    if not isinstance(values, list) or not values or not all(type(v) is int for v in values):
        raise ValueError(f"not a pruning plan: {where} must be a non-empty list of integers")
    in_order = all(a < b for a, b in pairwise(values))
    if not in_order or values[0] < 0 or (size is not None and values[-1] >= size):
        raise ValueError(f"not a pruning plan: {where} must be sorted, distinct and within the axis")
    return tuple(values)
