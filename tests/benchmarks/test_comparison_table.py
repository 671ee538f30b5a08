"""Tables from fixture records: every byte as in the golden files, and what the bytes say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import cli
from benchmarks.analysis import comparison
from benchmarks.analysis.claims import CLAIMS
from benchmarks.analysis.comparison import compare
from benchmarks.experiments import EXPERIMENTS
from benchmarks.records.histories import Details
from benchmarks.records.published import RESNET50, RESNET56, read_published
from benchmarks.records.record import Record
from benchmarks.reporting import build as report
from benchmarks.reporting import comparison_table
from benchmarks.reporting.columns import DENSE_ROW, Column
from benchmarks.reporting.comparison_table import commands, comparison_sheet, display_rows, fairness_sheet, to_text
from benchmarks.reporting.numbers import change, percent, signed
from benchmarks.reporting.pages import results_page
from benchmarks.reporting.paper_tables import ablation_sheet, field_sheet, paper_sheet, replaced_part
from benchmarks.reporting.study import Study
from benchmarks.reporting.table_files import Sheet, sheet_csv, sheet_latex, sheet_markdown
from benchmarks.running.cells import cells_of
from tests.benchmarks.golden import FIGURES, GOLDEN, texts
from tests.benchmarks.synthetic import experiment, records_of

pytestmark = pytest.mark.xdist_group("artefacts")  # which are made once, by one worker

GOLDEN_TEXTS = sorted(path.name for path in GOLDEN.glob("*") if path.name != FIGURES)
RECORDS = records_of(experiment())
[COMPARISON] = compare(RECORDS)
NOTHING = Details(Path("nowhere"))


def test_golden_files_are_those_that_are_made(artefacts: report.Artefacts) -> None:
    assert sorted(texts(artefacts)) == GOLDEN_TEXTS


@pytest.mark.parametrize("name", GOLDEN_TEXTS)
def test_table_is_as_in_its_golden_file(artefacts: report.Artefacts, name: str) -> None:
    assert texts(artefacts)[name] == (GOLDEN / name).read_text(encoding="utf-8")


def test_a_method_of_the_mild_target_alone_is_not_the_most_accurate() -> None:
    records = records_of(experiment(methods=("oicsr-gl", "l1", "none"), macs_kept=(0.7, 0.3)))
    scores = {("oicsr-gl", 0.7): 0.8, ("oicsr-gl", 0.3): 0.6, ("l1", 0.7): 0.79, ("none", 0.7): 0.5, ("none", 0.3): 0.2}
    found = [
        replace(r, states={**r.states, "pruned": {**r.states["pruned"], "top1": scores[r.method, r.macs_kept]}})
        for r in records
        if (r.method, r.macs_kept) in scores
    ]
    assert compare(found)[0].by_accuracy == ["l1", "none", "oicsr-gl"]


def test_means_are_those_of_the_records() -> None:
    row = COMPARISON.table[(COMPARISON.table["method"] == "gl-out") & (COMPARISON.table["macs_kept"] == 0.5)].iloc[0]
    values = [r.states["pruned"]["top1"] for r in RECORDS if (r.method, r.macs_kept) == ("gl-out", 0.5)]
    assert row["pruned_top1"] == pytest.approx(sum(values) / 3) and row["n"] == 3
    assert row["flops_2_per_mac"] == 2 * row["macs"] < 2 * row["macs_with_norm_pool"]
    assert row["pruned_delta"] == pytest.approx(row["pruned_top1"] - row["dense_top1"])


def test_noise_floor_is_the_dense_networks_of_other_seeds() -> None:
    dense = {r.seed: r.states["dense"]["top1"] for r in RECORDS}
    first = display_rows(COMPARISON)[0]
    assert first[0] == DENSE_ROW and first[1] == "3"
    assert first[5].startswith(f"{100 * sum(dense.values()) / 3:.2f} ± ")


def test_best_is_bold_and_the_tied_marked_but_never_in_quick_tables() -> None:
    cells = [row[7] for row in display_rows(COMPARISON) if len(row) > 1]
    assert sum(cell.startswith("**") for cell in cells) == 3  # one per target
    [quick] = compare(records_of(experiment(), "quick"))
    assert not any("**" in cell or "≈" in cell for row in display_rows(quick) for cell in row)


def test_no_cell_is_blank_and_what_was_not_run_says_so() -> None:
    [part] = compare(records_of(experiment(methods=("oicsr-gl",), macs_kept=(0.5,)), "paper"))
    sheet = comparison_sheet(part, "t")
    assert all(cell for row in sheet.rows for cell in row)
    assert not [row for row in sheet.rows if "not run" in row]  # they are named in one list
    assert sheet.notes.endswith("Not run: Dense (all epochs); all methods at 47.6 %, 39.2 %.")
    [quick] = compare(records_of(experiment(methods=("oicsr-gl",), macs_kept=(0.5,)), "quick"))
    assert "Not run: Dense (all epochs); Group Lasso (out); " in comparison_sheet(quick, "t").notes
    paper = paper_sheet([part], "pruned")
    assert sum(cell == "not run" for cell in paper.rows[0]) == 8
    assert len(paper.rows) == 1 and "Not run" not in paper.notes  # the page of checks lists experiments


def test_runs_shorter_than_the_field_s_are_told_from_those_of_its_length() -> None:
    cut = field_sheet([COMPARISON], "resnet56", "cifar10", RESNET56, "t").rows
    [row] = [row for row in cut if row[0] == "All methods, with the full recipe"]
    assert cut.index(row) < [len(row) for row in cut].index(1, 1)  # among the own runs
    assert row[6].startswith("not run at this length (") and set(row[1:6]) == {"not run"}
    [long] = compare(records_of(experiment(), "paper"))
    whole = field_sheet([long], "resnet56", "cifar10", RESNET56, "t").rows
    assert not any("not run" in cell for row in whole for cell in row)


def test_what_was_not_run_comes_with_commands_that_run_it() -> None:
    """What all commands train, together with what there is, is the whole profile."""
    there = records_of(experiment(methods=("oicsr-gl", "gl-out"), macs_kept=(0.5,)), "paper")
    more = records_of(experiment(methods=("oicsr-gl",), macs_kept=(0.476,)), "paper")
    [part] = compare([*there, *more])
    whole = EXPERIMENTS[part.experiment]
    done = {(record.method, record.macs_kept) for record in part.records}
    for command in commands(part):
        options = cli.build_parser("run").parse_args(command.split()[3:])
        assert options.experiments == [part.experiment]
        cells = cells_of(whole, options.profile, methods=options.methods, macs_kept=options.macs_kept)
        added = {(cell.method, cell.macs_kept) for cell in cells}
        assert added - done
        done |= added
    assert done >= {(cell.method, cell.macs_kept) for cell in cells_of(whole, "paper")}


def test_own_runs_and_quotations_are_separate() -> None:
    sheet = field_sheet([COMPARISON], "resnet56", "cifar10", RESNET56, "t")
    headings = [position for position, row in enumerate(sheet.rows) if len(row) == 1]
    assert len(headings) == 2 and headings[0] == 0
    quoted = sheet.rows[headings[1] + 1 :]
    assert len(quoted) == len(read_published(RESNET56)) and all(row[1] == "as printed" for row in quoted)
    assert any("best test epoch" in row[6] for row in quoted)
    assert all("last epoch" in row[6] for row in sheet.rows[1 : headings[1] - 1])
    quick = field_sheet(compare(records_of(experiment(), "quick")), "resnet56", "cifar10", RESNET56, "t")
    assert quick.rows[1][1] == "not run"


def test_published_numbers_have_sources(tmp_path: Path) -> None:
    for name in (RESNET56, RESNET50):
        table = read_published(name)
        assert table["pruned_percent"].between(50, 100).all() and (table["speedup"] > 1).all()
    (tmp_path / "odd.csv").write_text("method,base_percent\na,1\n")
    with pytest.raises(ValueError, match="must be"):
        read_published("odd", tmp_path)
    table = read_published(RESNET50).assign(source=None)
    table.to_csv(tmp_path / "silent.csv", index=False)
    with pytest.raises(ValueError, match="no source"):
        read_published("silent", tmp_path)


def test_ablations_differ_in_one_part() -> None:
    assert replaced_part("gl-separate") == "regularizer" and replaced_part("oicsr-gl-uniform") == "selection"
    assert replaced_part("oicsr-gl+taylor") == "importance" and replaced_part("gl-out") is None


def test_a_change_has_an_interval_where_seeds_are_enough_for_one() -> None:
    [two] = compare([record for record in RECORDS if record.seed < 2])
    place = comparison_sheet(two, "t").header.index("Change")
    cells = [
        {len(row[place].split()) for row in display_rows(each) if len(row) > 1 and row[0] != DENSE_ROW}
        for each in (two, COMPARISON)
    ]
    assert cells == [{1}, {2}]  # such as "−1.23", and "−1.23 (±0.45)"


def test_strengths_that_no_verdict_rests_on_are_marked_wherever_their_rows_stand(tmp_path: Path) -> None:
    source = "tuned on validation (cifar10-resnet20-end-study.json)"  # whose search compared fine-tuned networks
    records = [replace(r, profile="study") for r in RECORDS]
    [late] = compare([replace(r, strength_source=source) if r.strength else r for r in records])
    assert "chosen for the fine-tuned network: no verdict rests on them" in comparison_table.warning(late)
    assert not comparison_table.warning(COMPARISON)
    for sheet in (paper_sheet([late], "pruned"), ablation_sheet([late])):
        assert {row[0] for row in sheet.rows} == {"cifar10-resnet56 (study) *"} and "*: strengths that" in sheet.notes
    assert {row[0] for row in paper_sheet([COMPARISON], "pruned").rows} == {"cifar10-resnet56 (cpu)"}
    verdicts = {
        name: results_page(Study(tmp_path, each.records, NOTHING, [each], []), "").split("## Experiments")[1]
        for name, each in (("late", late), ("usual", COMPARISON))
    }
    assert "| study | no verdict |" in verdicts["late"] and "| cpu | small |" in verdicts["usual"]


def test_rows_are_paired_by_network_where_a_seed_stands_for_two() -> None:
    records = []
    for record in RECORDS:
        states = dict(record.states)
        if record.method == "gl-separate" and record.seed == 0:
            states["dense"] = {**states["dense"], "loss": states["dense"]["loss"] + 1e-6}  # trained again on a GPU
        records.append(replace(record, states=states))
    [mixed] = compare(records)
    rows = {(row[2], row[3]): row[4] for row in ablation_sheet([mixed]).rows}
    assert rows["Group Lasso (separate out and in)", "50.0 %"] == "2"
    assert rows["L1 (non-structured)", "50.0 %"] == "3"
    marks = [
        dict(zip(half["method"], half["finetuned_mark"], strict=True))["gl-separate"]
        for table in (COMPARISON.table, mixed.table)
        for half in [table[table["macs_kept"] == 0.5]]
    ]
    assert marks == ["tied", "tied"]  # as independent samples, where two networks alone are shared


def test_sheet_formats() -> None:
    numbers = pd.DataFrame({"a": [0.123456789, float("nan")]})
    sheet = Sheet("s", "T", ("A", "B_%"), [["Heading"], ["**1 ± 2**", "[x](y) & z"]], "Note.", numbers)
    assert sheet_csv(sheet) == "a\n0.123457\nnan\n"
    assert "| *Heading* |  |" in sheet_markdown(sheet)
    latex = sheet_latex(sheet)
    assert r"\textbf{1 $\pm$ 2} & [x](y) \& z \\" in latex and r"B\_\%" in latex and r"\multicolumn{2}{l}" in latex


def test_fairness_shows_untuned_strengths_and_three_conventions() -> None:
    [untuned] = compare(records_of(experiment(), tuned=False))
    tuned_cells = [row[2] for row in fairness_sheet(COMPARISON, "t").rows]
    assert "0.002" in tuned_cells and "0.002 *" in [row[2] for row in fairness_sheet(untuned, "t").rows]
    macs, with_pool, operations = fairness_sheet(COMPARISON, "t").rows[0][6:9]
    assert float(macs) < float(with_pool) < float(operations) == pytest.approx(2 * float(macs), abs=0.02)


def test_terminal_table_is_aligned() -> None:
    lines = to_text(COMPARISON).splitlines()
    assert len({len(line) for line in lines}) == 1 and "**" not in to_text(COMPARISON)
    assert lines[0].split()[:4] == ["Method", "n", "MACs", "kept"] and "Recalibrated" in lines[0]


def test_ledger_of_claims_is_readable(artefacts: report.Artefacts) -> None:
    ledger = json.loads(texts(artefacts)["claims.json"])
    assert ledger["schema"] == "oicsr-claims-2" and len(ledger["claims"]) == len(CLAIMS)
    runs = {run for entry in ledger["claims"] for run in entry["records"]}
    assert runs and not any("quick" in run for run in runs)


def test_a_metric_of_a_state_is_a_name_and_a_column(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_top5(record: Record) -> Record:
        return replace(record, states={name: {**state, "top5": 0.99} for name, state in record.states.items()})

    monkeypatch.setattr(comparison, "METRICS", ("top1", "top5"))
    column = Column("Top-5", lambda row: percent(row["finetuned_top5"], row["finetuned_top5_sd"]))
    monkeypatch.setattr(comparison_table, "COLUMNS", (*comparison_table.COLUMNS, column))
    [found] = compare([with_top5(record) for record in RECORDS])
    rows = [row for row in display_rows(found) if len(row) > 1]
    assert [row[-1] for row in rows[:2]] == ["–", "99.00 ± 0.00"]
    assert len({len(line) for line in to_text(found).splitlines()}) == 1
    assert "finetuned_top5_ci95" in comparison_sheet(found, "t").numbers
    [old] = compare(RECORDS)  # records that lack it stay readable
    assert {row[-1] for row in display_rows(old)[2:] if len(row) > 1} == {"not run"}


@pytest.mark.parametrize(
    ("value", "text"), [(-0.004, "0.00"), (0.0, "0.00"), (-0.0, "0.00"), (-0.006, "−0.01"), (0.005001, "+0.01")]
)
def test_what_rounds_to_zero_is_no_loss(value: float, text: str) -> None:
    assert signed(value) == text and change(value / 100) == text
