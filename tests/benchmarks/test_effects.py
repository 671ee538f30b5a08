"""Effects of single steps by hand: recalibration within runs, rescaling between experiments, absorption by method."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.analysis.comparison import Comparison, compare
from benchmarks.records.record import Record
from benchmarks.reporting.effects import effects_sheet, switched
from tests.benchmarks.synthetic import experiment, records_of


def study(name: str, rescale: str, more: float, **config: object) -> Comparison:
    """Return a comparison whose fine-tuned networks have 0.9, more of it, and a little per seed."""
    records = []
    for record in records_of(experiment(name, methods=("oicsr-gl",), macs_kept=(0.5,))):
        own = {**record.config, "rescale": rescale, **config}
        records.append(
            with_states(replace(record, config=own), 0.5, 0.8, 0.9 + more + 0.001 * record.seed * bool(more))
        )
    return compare(records)[0]


def with_states(record: Record, pruned: float, recalibrated: float, finetuned: float) -> Record:
    values = {"pruned": pruned, "recalibrated": recalibrated, "finetuned": finetuned}
    states = {name: {**record.states[name], "top1": top1} for name, top1 in values.items()}
    return replace(record, states={**record.states, **states})


USUAL, PLAIN = study("digits", "dense-norm", 0.02), study("digits-norescale", "none", 0.0)


def test_recalibration_is_the_difference_of_two_states_of_a_run() -> None:
    table = effects_sheet([USUAL]).numbers
    [row] = table[table["step"] == "Recalibration"].to_dict("records")
    assert row["effect"] == pytest.approx(0.3) and row["n"] == 3 and row["state"] == "recalibrated"


def test_rescaling_is_paired_by_seed_between_experiments_that_differ_in_it_alone() -> None:
    sheet = effects_sheet([PLAIN, USUAL])
    [cells] = [row for row in sheet.rows if row[0] == "Rescaling"]
    # differences 2.0, 2.1, 2.2 points: mean 2.1; sd 0.1, t(0.975, 2) = 4.3027, over sqrt 3
    assert cells[1:] == [
        "digits (cpu), digits-norescale (cpu)", "OICSR-GL", "50.0 %", "3", "+0.00 (±0.25)", "+0.00 (±0.25)",
        "+2.10 (±0.25)",
    ]  # fmt: skip
    assert switched(USUAL, PLAIN) == "Rescaling" and switched(PLAIN, USUAL) is None


def test_experiments_that_differ_in_more_are_not_compared() -> None:
    other = study("digits-other", "none", 0.0, max_removed=0.5)
    assert switched(USUAL, other) is None and switched(USUAL, USUAL) is None
    assert not any(row[0] == "Rescaling" for row in effects_sheet([USUAL, other]).rows)


def test_absorption_compares_a_method_with_its_absorbing_form() -> None:
    records = [
        with_states(record, 0.6 if record.method.endswith("-absorb") else 0.5, 0.8, 0.9)
        for record in records_of(experiment("digits", methods=("slimming", "slimming-absorb"), macs_kept=(0.5,)))
    ]
    sheet = effects_sheet(compare(records))
    [cells] = [row for row in sheet.rows if row[0] == "Absorption"]
    assert cells[2] == "Network Slimming" and cells[5].startswith("+10.00") and cells[7].startswith("+0.00")


def test_without_records_nothing_is_claimed() -> None:
    assert set(effects_sheet([]).rows[0]) == {"not run"}
    [old] = compare(records_of(experiment("digits", methods=("oicsr-gl",)), protocol=1))
    assert set(effects_sheet([old]).rows[0]) == {"not run"}
