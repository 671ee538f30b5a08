"""Effects of single steps by hand: recalibration within runs, rescaling between experiments, absorption by method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.analysis.comparison import Comparison, compare
from benchmarks.records.histories import Details
from benchmarks.records.recalibrations import Measured, Recalibrations
from benchmarks.records.record import Record, write_record
from benchmarks.records.strengths import UNTUNED
from benchmarks.reporting.effects import effect_sheets, switched
from benchmarks.reporting.recalibration_table import recalibration_sheet
from benchmarks.reporting.table_files import Sheet, sheet_latex, sheet_markdown
from tests.benchmarks.synthetic import experiment, history_of, records_of


def study(name: str, rescale: str, more: float, **config: object) -> Comparison:
    """Return a comparison whose fine-tuned networks have 0.9, more of it, and a little per seed."""
    records = []
    for record in records_of(experiment(name, methods=("oicsr-gl",), macs_kept=(0.5,))):
        own = {**record.config, "rescale": rescale, "dataset": "digits", **config}
        records.append(
            with_states(replace(record, config=own), 0.5, 0.8, 0.9 + more + 0.001 * record.seed * bool(more))
        )
    return compare(records)[0]


def with_states(record: Record, pruned: float, recalibrated: float, finetuned: float) -> Record:
    values = {"pruned": pruned, "recalibrated": recalibrated, "finetuned": finetuned}
    states = {name: {**record.states[name], "top1": top1} for name, top1 in values.items()}
    return replace(record, states={**record.states, **states})


USUAL, PLAIN = study("digits", "dense-norm", 0.02), study("digits-norescale", "none", 0.0)


def sheets(comparisons: Sequence[Comparison], results: Path = Path("nowhere")) -> dict[str, Sheet]:
    return {sheet.name.removeprefix("effect-"): sheet for sheet in effect_sheets(comparisons, Details(results))}


def test_recalibration_is_the_difference_of_two_states_of_a_run() -> None:
    sheet = sheets([USUAL])["recalibration"]
    [row] = sheet.numbers.to_dict("records")
    assert row["effect"] == pytest.approx(0.3) and row["n"] == 3 and row["macs_kept"] == 0.5
    assert sheet.header == ("Experiment (profile)", "Method", "n", "50.0 %")
    # no spread in three seeds: sd at least 0.1 points, t(0.975, 2) = 4.3027, over sqrt 3
    assert sheet.rows == [["digits (cpu)", "OICSR-GL", "3", "+30.00 (±0.25)"]]


def test_rows_whose_strengths_carry_no_verdict_are_marked_as_in_other_tables() -> None:
    [untuned] = compare([replace(record, strength_source=UNTUNED) for record in USUAL.records])
    sheet = sheets([untuned])["recalibration"]
    assert [row[0] for row in sheet.rows] == ["digits (cpu) *"] and "*: strengths that were not tuned" in sheet.notes
    assert sheet.numbers["experiment"].tolist() == ["digits (cpu)"]


def test_the_numbers_of_a_table_have_the_intervals_that_it_prints() -> None:
    sheet = sheets([USUAL])["recalibration"]
    assert sheet.numbers["ci95"].tolist() == [pytest.approx(0.001 * 4.3027 / 3**0.5, rel=1e-4)]
    two = compare([record for record in USUAL.records if record.seed < 2])
    sheet = sheets(two)["recalibration"]
    assert sheet.rows[0][2:] == ["2", "+30.00"] and sheet.numbers["ci95"].isna().all()


def test_networks_with_nothing_to_recalibrate_have_no_row() -> None:
    same = [with_states(record, 0.8, 0.8, 0.9) for record in USUAL.records]
    assert sheets(compare(same))["recalibration"].rows == [["not run"] * 3]


def test_networks_that_stand_in_two_experiments_are_told_once() -> None:
    assert len(sheets([PLAIN, USUAL])["recalibration"].rows) == 1


def test_runs_of_one_seed_from_two_dense_networks_are_no_pair() -> None:
    first, *rest = PLAIN.records
    dense = {**first.states["dense"], "loss": first.states["dense"]["loss"] + 1e-6}
    elsewhere = replace(first, states={**first.states, "dense": dense})
    [row, *_] = sheets([USUAL, compare([elsewhere, *rest])[0]])["rescaling"].numbers.to_dict("records")
    assert row["n"] == 2


def test_rescaling_is_paired_by_seed_between_experiments_that_differ_in_it_alone() -> None:
    sheet = sheets([PLAIN, USUAL])["rescaling"]
    # differences 2.0, 2.1, 2.2 points: mean 2.1; sd 0.1, t(0.975, 2) = 4.3027, over sqrt 3
    assert sheet.rows == [["digits (cpu), digits-norescale (cpu)", "OICSR-GL", "Fine-tuned", "3", "+2.10 (±0.25)"]]
    assert switched(USUAL, PLAIN) == "rescaling" and switched(PLAIN, USUAL) is None


def test_rounding_is_paired_in_all_states_and_both_experiments_keep_their_recalibration() -> None:
    rounded, usual = study("digits-8", "none", -0.02, round_to=8), study("digits", "none", 0.0, round_to=1)
    found = sheets([rounded, usual])
    assert [row[2:4] for row in found["rounding"].rows] == [["Pruned", "3"], ["Recalibrated", "3"], ["Fine-tuned", "3"]]
    # -2.0, -1.9, -1.8 points fine-tuned
    assert found["rounding"].rows[2][4].startswith("−1.90") and found["rounding"].rows[0][4].startswith("0.00")
    assert len(found["recalibration"].rows) == 2 and found["rescaling"].rows == [["not run"] * 4]
    assert switched(rounded, usual) == "rounding" and switched(usual, rounded) is None


def test_rescaling_shows_in_the_first_epoch_of_fine_tuning(tmp_path: Path) -> None:
    written = []
    for comparison, first in ((USUAL, 0.75), (PLAIN, 0.35)):
        records = []
        for record in comparison.records:
            rows = history_of(record)
            begin = next(position for position, row in enumerate(rows) if row.phase == "finetune")
            rows[begin] = replace(rows[begin], val_top1=first)
            write_record(tmp_path, record, rows)
            path = tmp_path / "runs" / record.experiment / record.run_id / "record.json"
            records.append(replace(record, provenance=_provenance(path)))
        written.append(replace(comparison, records=tuple(records)))
    sheet = sheets(written, tmp_path)["rescaling"]
    assert [row[2] for row in sheet.rows] == ["After the first epoch", "Fine-tuned"]
    assert sheet.rows[0][4] == "+40.00 (±0.25)"


def _provenance(path: Path) -> dict[str, object]:
    from benchmarks.records.record import read_record

    return dict(read_record(path).provenance)


def searched(owner: str, more: float) -> Comparison:
    """Return a comparison whose strengths are those of an experiment, of OICSR-GL and no regulariser."""
    records = []
    for record in records_of(experiment("digits", methods=("oicsr-gl", "none"), macs_kept=(0.5,))):
        own = {**record.config, "dataset": "digits"}
        source = f"tuned on validation ({owner}-study.json)" if record.method == "oicsr-gl" else "no strength"
        changed = replace(record, profile="study", config=own, strength_source=source)
        records.append(with_states(changed, 0.5 - more, 0.8, 0.9 + more))
    return compare(records)[0]


def test_strengths_chosen_after_fine_tuning_are_compared_with_those_chosen_before() -> None:
    late, early = searched("cifar10-resnet20-end", 0.02), searched("cifar10-resnet20", 0.0)
    assert switched(late, early) == "search" and switched(early, late) is None and switched(late, late) is None
    sheet = sheets([early, late])["search"]
    assert sheet.title == "Effect of choosing strengths after fine-tuning"
    # of no regulariser nothing is chosen: no row
    assert [(row[1], row[2], row[4][:5]) for row in sheet.rows] == [
        ("OICSR-GL", "Pruned", "−2.00"),
        ("OICSR-GL", "Recalibrated", "0.00 "),
        ("OICSR-GL", "Fine-tuned", "+2.00"),
    ]


def test_a_step_is_not_compared_between_strengths_of_two_searches() -> None:
    late, early = searched("cifar10-resnet20-end", 0.02), searched("cifar10-resnet20", 0.0)
    plain = compare([replace(r, config={**r.config, "rescale": "none"}) for r in early.records])[0]
    scaled = [
        compare([replace(r, config={**r.config, "rescale": "dense-norm"}) for r in found.records])[0]
        for found in (late, early)
    ]
    assert [switched(found, plain) for found in scaled] == [None, "rescaling"]


def test_networks_of_another_precision_hide_no_effect_and_are_no_pair() -> None:
    late, early = searched("cifar10-resnet20-end", 0.02), searched("cifar10-resnet20", 0.0)
    mixed = [replace(r, config={**r.config, "precision": "bfloat16"}) if r.seed == 0 else r for r in late.records]
    rows = sheets([early, compare(mixed)[0]])["search"].numbers.to_dict("records")
    assert len(rows) == 3 and {row["n"] for row in rows} == {2}


def test_experiments_that_differ_in_more_are_not_compared() -> None:
    other = study("digits-other", "none", 0.0, max_removed=0.5)
    assert switched(USUAL, other) is None and switched(USUAL, USUAL) is None
    assert set(sheets([USUAL, other])["rescaling"].rows[0]) == {"not run"}


def test_absorption_compares_a_method_with_its_absorbing_form() -> None:
    records = [
        with_states(record, 0.6 if record.method.endswith("-absorb") else 0.5, 0.8, 0.9)
        for record in records_of(experiment("digits", methods=("slimming", "slimming-absorb"), macs_kept=(0.5,)))
    ]
    found = sheets(compare([replace(r, config={**r.config, "dataset": "digits"}) for r in records]))["absorption"]
    assert [(row[1], row[2], row[4][:6]) for row in found.rows] == [
        ("Network Slimming", "Pruned", "+10.00"),
        ("Network Slimming", "Recalibrated", "0.00 ("),
        ("Network Slimming", "Fine-tuned", "0.00 ("),
    ]


def test_without_records_or_evidence_nothing_is_claimed() -> None:
    quick = compare(records_of(experiment("digits", methods=("oicsr-gl",)), "quick"))
    [old] = compare(records_of(experiment("digits", methods=("oicsr-gl",)), protocol=1))
    for comparisons in ([], quick, [old]):
        assert all(set(sheet.rows[0]) == {"not run"} for sheet in sheets(comparisons).values())


def test_columns_of_words_are_aligned_on_the_left() -> None:
    sheet = sheets([USUAL])["recalibration"]
    assert "| --- | --- | ---: | ---: |" in sheet_markdown(sheet)
    assert r"\begin{tabular}{llrr}" in sheet_latex(sheet)


def measured(*seeds: int) -> Measured:
    rows = [
        Recalibrations("none", 0.5, seed, 0.0, 0.2, 0.8, {128: 0.79, 4096: 0.8}, {128: 0.75 + 0.001 * seed, 4096: 0.78})
        for seed in seeds
    ]
    return Measured("digits", "cpu", 2, 4096, tuple(rows), {"commit": "1234567890", "device_type": "cpu"})


def test_images_for_recalibration_are_compared_with_those_of_runs() -> None:
    sheet = recalibration_sheet([measured(0, 1, 2)], 2, [USUAL])
    head = ["digits (cpu)", "No regulariser"]
    states = ["50.0 %", "3", "20.00 ± 0.00", "80.00 ± 0.00"]
    assert sheet.header[-2:] == ("128", "4096")
    # clean: differences -5.0, -4.9, -4.8 points; augmented, as many as in runs: the same by definition
    assert sheet.rows == [
        [*head, "augmented", *states, "−1.00 (±0.25)", "–"],
        [*head, "clean", *states, "−4.90 (±0.25)", "−2.00 (±0.25)"],
    ]
    assert "4,096 training images" in sheet.notes and "commit 12345678" in sheet.notes
    assert "*" not in sheet.notes
    assert len(sheet.numbers) == 3 * 6


def test_measurements_of_another_protocol_stand_in_no_table() -> None:
    assert set(recalibration_sheet([measured(0)], 3, [USUAL]).rows[0]) == {"not run"}
    assert set(recalibration_sheet([], 2, [USUAL]).rows[0]) == {"not run"}


def test_networks_that_carry_no_verdict_are_marked_among_those_for_recalibration() -> None:
    [untuned] = compare([replace(record, strength_source=UNTUNED) for record in USUAL.records])
    [unjudged] = compare([replace(record, config={**record.config, "dataset": "stripes"}) for record in USUAL.records])
    for runs in ([untuned], [unjudged], [PLAIN], []):
        sheet = recalibration_sheet([measured(0, 1, 2)], 2, runs)
        assert [row[0] for row in sheet.rows] == ["digits (cpu) *"] * 2
        assert "*: no verdict rests on these networks" in sheet.notes
        assert set(sheet.numbers["experiment"]) == {"digits"}
