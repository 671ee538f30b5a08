"""Names of tables and figures, and experiments that would share one: each file belongs to one experiment.

A name is put together from experiment and profile, and figures add their kind. Experiment `a` with profile `b-c` and
experiment `a-b` with profile `c` would write the same files.
"""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.records.record import STATES

Pair = tuple[str, str]  # names of experiment and profile

# The report's own tables and figures, where they have a dash as all others do.
OWN = (
    *(f"paper-{state}" for state in STATES),
    *("ablations", "anatomy", "effect", "field", "latency", "method", "recalibration-images"),
)


def table_name(experiment: str, profile: str) -> str:
    """Return the name of an experiment's table, without suffix."""
    return f"{experiment}-{profile}"


def whose_table(experiment: str, profile: str, others: Iterable[Pair]) -> str | None:
    """Return who else has a table or figure of the same name, in words; None: nobody.

    Args:
        experiment: Name of the experiment.
        profile: Name of its profile.
        others: All that have tables; those of the same experiment are told apart by the experiment itself.
    """
    name = table_name(experiment, profile)
    if any(_overlap(name, own) for own in OWN):
        return "the report"
    for other in others:
        if other[0] != experiment and _overlap(name, table_name(*other)):
            return f"experiment {other[0]!r}, profile {other[1]!r}"
    return None


def _overlap(one: str, other: str) -> bool:
    shorter, longer = sorted((one, other), key=len)
    return one == other or longer.startswith(f"{shorter}-")
