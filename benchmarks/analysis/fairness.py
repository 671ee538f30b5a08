"""Is a comparison fair? The setup levels of Wang et al., "Why is the State of Neural Network Pruning so Confusing?".

S1: any base network; S2: the same base; S3.1: and the same number of fine-tuning epochs; S3.2: and the same learning
rates there; S4.1: and the same number of epochs before pruning; S4.2: and the same learning rates there. The level is
computed from the configurations in the records, never declared. A letter says which budget is equal over the rows of
one target: A the total epochs, B the total training compute (within 1 %), AB both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.config import target_name
from benchmarks.records.origins import data_of
from benchmarks.records.record import Record

LEVELS = ("S1", "S2", "S3.1", "S3.2", "S4.1", "S4.2")

LOWEST_FAIR = "S3.2"

COMPUTE_TOLERANCE = 0.01

# part of a method's own definition; the precision may differ between seeds, never within one
MAY_DIFFER = {"regularizer_weight_decay", "precision"}


class UnfairComparisonError(ValueError):
    """Records of different protocols would stand in one table."""


def setup_level(records: Sequence[Record]) -> str:
    """Return the setup level that the records of one table reach together."""

    def same(*path: str) -> bool:
        return len({str(_at(record.config, path)) for record in records}) == 1

    rates = ("learning_rate", "schedule", "milestones", "decay", "warmup_epochs")
    steps = [
        same("dense") and same("model") and same("train_images"),
        same("finetune", "epochs"),
        all(same("finetune", name) for name in rates),
        same("regularized", "epochs") and same("steps"),
        all(same("regularized", name) for name in rates),
    ]
    reached = next((position for position, holds in enumerate(steps) if not holds), len(steps))
    return LEVELS[reached]


def budget(records: Sequence[Record]) -> str:
    """Return which total budgets are equal over records at the same target: `"A"`, `"B"`, `"AB"` or `""`."""
    targets: dict[float, list[Record]] = {}
    for record in records:
        targets.setdefault(record.macs_kept, []).append(record)
    epochs = all(len({sum(r.epochs.values()) for r in group}) == 1 for group in targets.values())
    totals = [[r.compute["total"] for r in group] for group in targets.values()]
    compute = all(max(group) <= (1 + COMPUTE_TOLERANCE) * min(group) for group in totals)
    return "A" * epochs + "B" * compute


def level_name(records: Sequence[Record]) -> str:
    """Return setup level and budget, such as `S4.2-AB`."""
    return "-".join(part for part in (setup_level(records), budget(records)) if part)


def check_comparable(records: Sequence[Record]) -> str:
    """Return the setup level of records that may stand in one table.

    Raises:
        UnfairComparisonError: They differ in profile, in the protocol's version, within a seed in device, precision or
            data, or in anything but what belongs to a method; two targets have one name; or their level is below S3.2.
    """
    for name, what in (("experiment", "experiment"), ("profile", "profile"), ("protocol", "protocol version")):
        _refuse_mixed(what, {getattr(record, name) for record in records})
    for seed in sorted({record.seed for record in records}):
        own = [record for record in records if record.seed == seed]
        _refuse_mixed(f"device type within seed {seed}", {r.provenance.get("device_type") for r in own})
        _refuse_mixed(f"precision within seed {seed}", {r.config.get("precision") for r in own})
        _refuse_mixed(f"data within seed {seed}", set(data_of(own)))
    for target in sorted({target_name(record.macs_kept) for record in records}):
        own = [record for record in records if target_name(record.macs_kept) == target]
        _refuse_mixed(f"target within {target}", {repr(record.macs_kept) for record in own})
    level = setup_level(records)
    if LEVELS.index(level) < LEVELS.index(LOWEST_FAIR):
        raise UnfairComparisonError(f"the records of {records[0].experiment!r} reach setup level {level} only")
    found = [conditions(record) for record in records]
    for key in sorted({key for values in found for key in values}):
        _refuse_mixed(f"configuration value {key!r}", {values.get(key) for values in found})
    return level


def conditions(record: Record) -> dict[str, str]:
    """Return the values of a configuration that no two runs of a table may differ in, as texts."""
    given = record.config.items()
    return {name: str(value) for name, value in given if name not in MAY_DIFFER and value is not None}


def _refuse_mixed(what: str, values: set[Any]) -> None:
    if len(values) > 1:
        listed = ", ".join(sorted(map(str, values)))
        raise UnfairComparisonError(f"one table would mix records of different {what}: {listed}")


def _at(values: Any, path: Sequence[str]) -> Any:
    for name in path:
        values = values.get(name) if isinstance(values, dict) else None
    return values
