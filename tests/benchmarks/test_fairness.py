"""The setup level is computed from configurations, and unfair tables are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest

from benchmarks.analysis.comparison import compare
from benchmarks.analysis.fairness import UnfairComparisonError, budget, check_comparable, level_name, setup_level
from benchmarks.analysis.strata import carries_verdicts
from benchmarks.analysis.tuned import is_tuned
from benchmarks.config import Phase
from benchmarks.experiments import EXPERIMENTS
from benchmarks.methods.registry import find_method
from benchmarks.records.origins import origins_of
from benchmarks.records.record import Record
from benchmarks.reporting import gathered
from benchmarks.reporting.comparison_table import comparison_sheet, missing, notes, to_text, warning
from benchmarks.reporting.table_files import sheet_latex, sheet_markdown
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


def test_versions_of_the_protocol_are_never_mixed() -> None:
    first, *rest = RECORDS
    with pytest.raises(UnfairComparisonError, match="different protocol version: 1, 2"):
        check_comparable([replace(first, protocol=1), *rest])
    older = records_of(experiment(methods=("oicsr-gl", "none"), macs_kept=(0.5,)), protocol=1)
    [found] = compare([*older, *RECORDS])
    assert found.protocol == 2 and found.superseded == len(older) and found.records == tuple(RECORDS)
    assert "Left out: 6 records of an older protocol." in notes(found)
    [old] = compare(older)
    assert not old.current and warning(old).startswith("Records of protocol 1")


def test_runs_without_a_result_are_named_under_the_table() -> None:
    """A mean over the others is one over those that did not diverge: readers must see that."""
    first, *rest = RECORDS
    failed = replace(first, status="failed", failure={"reason": "training diverged | loss nan"})
    older = replace(failed, protocol=1, seed=7)
    [found] = compare([failed, older, *rest])
    assert found.failed == (failed,) and failed not in found.records
    text = notes(found).replace("\N{NO-BREAK SPACE}", " ")
    target, name = f"{100 * first.macs_kept:.1f} %", find_method(first.method).title
    said = f"Without a result, and in no mean: {name} at {target}, seed {first.seed} (training diverged \\| loss nan)."
    assert said in text
    alone = [record for record in rest if record.method != first.method]
    with patch.dict(EXPERIMENTS, {"cifar10-resnet56": experiment(methods=("oicsr-gl", "gl-out"), macs_kept=(0.5,))}):
        assert name not in missing(compare([failed, *alone])[0])  # it was run
        assert name in missing(compare(alone)[0])
    assert compare([failed]) == [] and compare(RECORDS)[0].failed == ()
    assert not found.restricted(["none"]).failed


def test_rows_of_other_networks_are_named_under_the_table() -> None:
    both = records_of(experiment(methods=("oicsr-gl", "gl-out"), macs_kept=(0.7, 0.5, 0.3)))
    assert "same networks" not in notes(compare(both)[0])
    moved = [replace(record, seed=record.seed + 3) if record.macs_kept == 0.7 else record for record in both]
    text = notes(compare(moved)[0]).replace("\N{NO-BREAK SPACE}", " ")
    said = "(70.0 %: seeds 3–5; 50.0 % and 30.0 %: seeds 0–2): read a row against its own dense accuracy."
    assert f"Not all rows rest on the same networks {said}" in text
    overlapping = [replace(record, seed=record.seed + 2) if record.macs_kept == 0.7 else record for record in both]
    assert "same networks" not in notes(compare(overlapping)[0])
    apart = [
        replace(record, seed=record.seed + 4) if (record.method, record.macs_kept) == ("gl-out", 0.5) else record
        for record in both
    ]  # of one target, one row rests on other networks than the other
    text = notes(compare(apart)[0]).replace("\N{NO-BREAK SPACE}", " ")
    assert "(70.0 % and 30.0 %: seeds 0–2; 50.0 %: seeds 0–2 or 4–6): read a row" in text


def test_devices_and_precisions_may_differ_between_seeds_but_not_within_one() -> None:
    def other(record: Record) -> Record:
        elsewhere = {**record.provenance, "device_type": "cpu", "device": "another"}
        return replace(record, provenance=elsewhere, config={**record.config, "precision": "bfloat16"})

    mixed = [other(record) if record.seed == 0 else record for record in RECORDS]
    assert check_comparable(mixed) == "S4.2"
    assert "devices cpu (another), cuda (a device); bfloat16 and float32" in origins_of(mixed).text
    first, *rest = RECORDS
    for odd, message in (
        (replace(first, provenance={"device_type": "cpu"}), "device type within seed 0"),
        (replace(first, config={**first.config, "precision": "bfloat16"}), "precision within seed 0"),
    ):
        with pytest.raises(UnfairComparisonError, match=message):
            check_comparable([odd, *rest])


def test_data_may_differ_between_seeds_as_the_table_says_but_not_within_one() -> None:
    def on(record: Record, data: str | None) -> Record:
        return replace(record, provenance={**record.provenance, "data_sha256": data and data * 64})

    mixed = [on(record, "a" if record.seed == 0 else "b") for record in RECORDS]
    assert check_comparable(mixed) == "S4.2"
    assert f"different data (SHA-256 {12 * 'a'} and {12 * 'b'})" in origins_of(mixed).text
    assert "different data" not in origins_of([on(record, "a") for record in RECORDS]).text
    first, *rest = [on(record, "a") for record in RECORDS]
    assert check_comparable([on(first, None), *rest]) == "S4.2"  # it does not say
    with pytest.raises(UnfairComparisonError, match=f"data within seed 0: {12 * 'a'}, {12 * 'b'}"):
        check_comparable([on(first, "b"), *rest])
    own = [record for record in rest if record.seed == first.seed] * 2
    odd = gathered._misfits([on(first, "b"), *own, on(own[0], None)])
    assert list(odd.values()) == [
        f"it differs from most runs beside it in its data: data_sha256 is {12 * 'b'}, not {12 * 'a'}"
    ]


def test_tables_say_where_their_rows_come_from() -> None:
    versions = {"torch": "2.9.0", "numpy": "2.0"}
    own = {"device_type": "cpu", "device": "a CPU", "commit": "0123456789", "dirty": True, "versions": versions}
    records = [replace(record, provenance=own) for record in RECORDS]
    assert origins_of(records).text == (
        "Origin of the rows: protocol 2; commit 01234567+; torch 2.9.0; device cpu (a CPU); float32."
    )
    assert origins_of(records).text in notes(compare(records)[0])
    nothing = origins_of([replace(record, provenance={}) for record in RECORDS]).text
    assert "commit not recorded; versions not recorded; device not recorded" in nothing


def test_untuned_strengths_are_the_first_line_everywhere() -> None:
    [found] = compare(records_of(experiment(methods=("oicsr-gl", "none")), tuned=False))
    first = "Strengths not tuned, no comparison can rest on them: OICSR-GL."
    sheet = comparison_sheet(found, "t")
    assert to_text(found).splitlines()[0] == first
    assert sheet_markdown(sheet).splitlines()[0] == f"**{first}**"
    assert sheet_latex(sheet).splitlines()[0] == f"% {first}"
    [tuned] = compare(records_of(experiment(methods=("oicsr-gl", "none"))))
    assert warning(tuned) == "" and to_text(tuned).startswith("Method")


def test_a_strength_counts_as_tuned_only_for_the_training_it_was_tuned_for() -> None:
    records = records_of(experiment("here", methods=("oicsr-gl",)))
    profile = records[0].profile
    borrowed = [replace(r, strength_source=f"tuned on validation (owner-{profile}.json)") for r in records]
    with patch.dict(EXPERIMENTS, {"owner": experiment("owner", macs_kept=(0.2,))}):
        assert all(map(carries_verdicts, borrowed)) and warning(compare(borrowed)[0]) == ""
        for name, other in (("model", "resnet20"), ("dataset", "digits"), ("batch_size", 1), ("regularized", {})):
            moved = [replace(r, config={**r.config, name: other}) for r in borrowed]
            assert not any(map(carries_verdicts, moved)), name
            own = [replace(r, strength_source=f"tuned on validation (here-{profile}.json)") for r in moved]
            assert all(map(is_tuned, own))
    with patch.dict(EXPERIMENTS, {"owner": experiment("owner", regularized=Phase(20, 0.03))}):
        [found] = compare(borrowed)
        first = "Strengths tuned for another network or training (`owner`): no verdict rests on them."
        assert warning(found) == first and to_text(found).splitlines()[0] == first
        assert found.untuned == [] and not found.table["tuned"].any()
