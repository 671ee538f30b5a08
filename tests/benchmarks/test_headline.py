"""The comparison that stands first in README and report."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.analysis.comparison import compare
from benchmarks.reporting.headline import headline_comparison
from tests.benchmarks.synthetic import experiment, records_of


def test_a_comparison_that_has_just_begun_does_not_stand_first() -> None:
    records = records_of(experiment())
    [whole] = compare(records)
    [begun] = compare([record for record in records if record.method == "none"])
    [alone] = compare([record for record in records if record.method == "oicsr-gl"])
    first, second = (replace(whole, experiment=name) for name in ("cifar10-resnet56", "cifar10-resnet20"))
    assert headline_comparison([second, first]) is first
    for started in (begun, alone):
        named = replace(started, experiment="cifar10-resnet56")
        assert headline_comparison([named, second]) is second and headline_comparison([named]) is named
