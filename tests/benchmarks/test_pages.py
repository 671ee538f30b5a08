"""Pages of results: what they repeat of each other, and how their tables are cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.analysis.comparison import compare
from benchmarks.records.histories import Details
from benchmarks.reporting.checklist import checklist
from benchmarks.reporting.experiment_page import experiment_page
from benchmarks.reporting.pages import across_page, anchor, results_page
from benchmarks.reporting.paper_tables import paper_sheet
from benchmarks.reporting.study import Study
from benchmarks.reporting.table_files import parts_of
from tests.benchmarks.synthetic import experiment, records_of


def test_checklist_and_list_of_experiments_say_the_same_of_seeds() -> None:
    every = records_of(experiment(seeds=(0, 1, 2)))
    records = [record for record in every if record.method != "none" or record.seed == 0]
    comparisons = compare(records)
    answers = {item: (holds, answer) for item, holds, answer in checklist(records, comparisons)}
    assert answers["Means and deviations over several seeds"] == ("no", "1 to 3 seeds per method and target")
    study = Study(Path("nowhere"), records, Details(Path("nowhere")), comparisons, [])
    assert "| 1 to 3 |" in results_page(study, "")


def test_the_papers_comparison_is_cut_by_data_set_with_the_columns_that_were_run() -> None:
    natural = records_of(experiment(methods=("oicsr-gl", "gl-out", "none")))
    digits = [
        replace(record, experiment="toy", config={**record.config, "dataset": "digits"})
        for record in records_of(experiment(methods=("oicsr-gl", "gl-out", "l1-weights")))
    ]
    sheet = paper_sheet(compare([*natural, *digits]), "pruned")
    parts = parts_of(sheet)
    assert list(parts) == ["CIFAR-10", "digits"]
    assert "L1" in parts["digits"].header and "L1" not in parts["CIFAR-10"].header
    assert "No regulariser" in parts["CIFAR-10"].header
    assert "Not run: " in parts["CIFAR-10"].notes and "L1, L2" in parts["CIFAR-10"].notes
    for part in parts.values():
        columns = zip(*part.rows, strict=True)
        assert all(set(column) != {"not run"} for column in columns)
    assert sum(len(part.rows) for part in parts.values()) == len(sheet.rows)
    page = across_page([sheet])
    assert page.count("**CIFAR-10**") == page.count("**digits**") == page.count(sheet.notes) == 1
    assert "<details>" not in page


def test_each_table_of_an_experiment_links_to_how_it_is_read() -> None:
    comparisons = compare(records_of(experiment()))
    study = Study(Path("nowhere"), comparisons[0].records, Details(Path("nowhere")), comparisons, [])
    page = experiment_page(study, comparisons[0].experiment)
    address = anchor("How to read the tables")
    assert page.index(f"(#{address})") < page.index("| Level |") < page.index("## How to read the tables")
