"""The rivals by name. A new one is a file of its own and one line here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

from baselines import energy_importance as energy
from baselines.filter_norm import L1_NORM, L2_NORM
from baselines.group_lasso import GL_IN, GL_OUT, GL_SEPARATE
from baselines.method import GREEDY, ImportanceSpec, Method, RegularizerSpec, SelectionSpec
from baselines.no_regularizer import NO_REGULARIZER
from baselines.random_channels import RANDOM


class Named(Protocol):
    """Anything with a name."""

    @property
    def name(self) -> str:
        """The key on the command line."""
        ...


T = TypeVar("T", bound=Named)


def by_name(entries: Iterable[T]) -> dict[str, T]:
    """Return the entries by name.

    Raises:
        ValueError: Two entries have the same name.
    """
    found: dict[str, T] = {}
    for entry in entries:
        if entry.name in found:
            raise ValueError(f"the name {entry.name!r} is given twice")
        found[entry.name] = entry
    return found


REGULARIZERS: dict[str, RegularizerSpec] = by_name([NO_REGULARIZER, GL_OUT, GL_IN, GL_SEPARATE])

IMPORTANCES: dict[str, ImportanceSpec] = by_name(
    [
        energy.OUT_IN,
        energy.OUT_IN_RAW,
        energy.OUT_IN_SIZE,
        energy.OUT_IN_MAX,
        energy.OUT,
        energy.IN,
        L1_NORM,
        L2_NORM,
        RANDOM,
    ]
)

SELECTIONS: dict[str, SelectionSpec] = by_name([GREEDY])

METHODS: dict[str, Method] = by_name(
    [
        Method("none", "No regulariser", NO_REGULARIZER, energy.OUT_IN, source="control"),
        Method("random", "Random channels", NO_REGULARIZER, RANDOM, source="control"),
        Method("l1", "L1-norm filters", NO_REGULARIZER, L1_NORM, source="Li et al. 2017 (PFEC)"),
        Method("l2", "L2-norm filters", NO_REGULARIZER, L2_NORM, source="He et al. 2018 (SFP), with hard removal"),
        Method("gl-out", "Group Lasso (out)", GL_OUT, energy.OUT, source="Wen et al. 2016 (SSL)"),
        Method("gl-out-oi", "Group Lasso (out), out-in importance", GL_OUT, energy.OUT_IN),
        Method("gl-in", "Group Lasso (in)", GL_IN, energy.IN, source="Wen et al. 2016 (SSL)"),
        Method("gl-separate", "Group Lasso (out and in apart)", GL_SEPARATE, energy.OUT_IN, source="control"),
    ]
)
