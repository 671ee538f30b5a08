"""Ties: couplings that keep the same channels."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from oicsr.coupling import Coupling

Tie = Sequence[str | Coupling]


def tie_couplings(couplings: Sequence[Coupling], tie: Sequence[Tie]) -> list[Coupling]:
    """Make one coupling of each tie, so that its channels are penalised, scored and removed together.

    Channel i of the result is channel i of every coupling in the tie. To tie a teacher to its student, trace both
    within one module (`forward` returns the outputs of both) and tie the couplings by name.

    Args:
        couplings: The couplings of a model.
        tie: Groups of couplings, by name or as they are; a coupling is in one group at most.

    Returns:
        The couplings, each group as one, under the name and at the place of the group's first coupling in the model.

    Raises:
        ValueError: A name is unknown, a coupling is in two groups or twice in one, or widths differ.

    Example:
        >>> tied = oicsr.tie_couplings(couplings, [("teacher.conv1", "student.conv1")])  # doctest: +SKIP
    """
    groups = tie_groups(couplings, tie)
    return [
        group[0]
        if len(group) == 1
        else replace(
            group[0],
            members=tuple(member for coupling in group for member in coupling.members),
            attributes=tuple(entry for coupling in group for entry in coupling.attributes),  # each follows in turn
            rescaled=tuple(entry for coupling in group for entry in coupling.rescaled),
            products=tuple(dict.fromkeys(number for coupling in group for number in coupling.products)),
            parts=tuple(part for coupling in group for part in coupling.parts),
        )
        for group in groups
    ]


def tie_groups(couplings: Sequence[Coupling], tie: Sequence[Tie]) -> list[list[Coupling]]:
    """Return the couplings in groups that keep the same channels; most groups hold one. Raises as `tie_couplings`."""
    by_name = {coupling.name: coupling for coupling in couplings}
    leaders: dict[str, int] = {}
    if not isinstance(tie, Collection):
        raise TypeError(f"tie is {tie!r}, a {type(tie).__name__}; it must be a list of groups of couplings, or empty")
    for number, entries in enumerate(tie):
        if isinstance(entries, str):
            raise ValueError(f"tie holds {entries!r}; it must hold groups of couplings, such as [({entries!r}, ...)]")
        if not isinstance(entries, Collection):
            raise TypeError(f"tie holds {entries!r}, a {type(entries).__name__}; it must hold groups of couplings")
        for entry in entries:
            name = entry.name if isinstance(entry, Coupling) else entry
            if name not in by_name:
                there = ", ".join(map(repr, by_name))
                raise ValueError(f"tie names {name!r}, which is not a coupling; there are {there}")
            if name in leaders:
                raise ValueError(f"tie names {name!r} twice; put all that belong together into one group")
            leaders[name] = number
        widths = {name: by_name[name].num_channels for name, leader in leaders.items() if leader == number}
        if len(set(widths.values())) > 1:
            raise ValueError(f"couplings of different widths cannot be tied: {widths}")
    groups: dict[object, list[Coupling]] = {}
    for coupling in couplings:
        groups.setdefault(leaders.get(coupling.name, coupling.name), []).append(coupling)
    return list(groups.values())
