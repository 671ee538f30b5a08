"""The setup level is computed from configurations, and unfair tables are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.analysis.fairness import UnfairComparisonError, budget, check_comparable, level_name, setup_level
from benchmarks.records.record import Record
from tests.benchmarks.synthetic import experiment, records_of

RECORDS = records_of(experiment(methods=("oicsr-gl", "gl-out"), macs_kept=(0.5,)))


def changed(phase: str, **values: Any) -> list[Record]:
    first, *rest = RECORDS
    return [replace(first, config={**first.config, phase: {**first.config[phase], **values}}), *rest]


@pytest.mark.parametrize(
    ("records", "level"),
    [
        (RECORDS, "S4.2"),
        (changed("regularized", learning_rate=1.0), "S4.1"),
        (changed("regularized", epochs=99), "S3.2"),
        (changed("finetune", learning_rate=1.0), "S3.1"),
        (changed("finetune", epochs=99), "S2"),
        (changed("dense", epochs=99), "S1"),
    ],
)
def test_levels(records: list[Record], level: str) -> None:
    assert setup_level(records) == level


def test_budgets_are_compared_within_a_target() -> None:
    both = records_of(experiment(methods=("oicsr-gl", "gl-out"), macs_kept=(0.7, 0.3)))
    assert budget(both) == "AB" and level_name(both) == "S4.2-AB"
    first, *rest = both
    dearer = replace(first, compute={**first.compute, "total": round(1.02 * first.compute["total"])})
    assert budget([dearer, *rest]) == "A"
    longer = replace(first, epochs={**first.epochs, "finetune": 11})
    assert budget([longer, *rest]) == "B"


@pytest.mark.parametrize("phase", ["finetune", "dense"])
def test_low_levels_are_refused(phase: str) -> None:
    with pytest.raises(UnfairComparisonError, match="setup level S"):
        check_comparable(changed(phase, epochs=99))


def test_mixed_profiles_devices_and_values_are_refused() -> None:
    first, *rest = RECORDS
    for odd, message in (
        (replace(first, profile="quick"), "different profile"),
        (replace(first, provenance={"device_type": "cpu"}), "different device type"),
        (replace(first, config={**first.config, "round_to": 8}), "configuration value 'round_to'"),
    ):
        with pytest.raises(UnfairComparisonError, match=message):
            check_comparable([odd, *rest])
