"""All artefacts together: complete, checked to the byte, quick enough, and the README's block short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.coverage import table as coverage_table
from benchmarks.coverage.networks import TIMM
from benchmarks.methods.registry import METHODS
from benchmarks.records.record import Record, stamped
from benchmarks.records.rows import history_csv
from benchmarks.reporting import build as report
from benchmarks.reporting import pages
from tests.benchmarks.synthetic import experiment, history_of, records_of

pytestmark = pytest.mark.xdist_group("artefacts")  # which are made once, by one worker


def test_check_finds_a_changed_byte_a_missing_and_a_stray_file(
    fixture_folder: Path, artefacts: report.Artefacts
) -> None:
    assert len(report.write(artefacts)) == len(artefacts)
    assert report.differing(artefacts, fixture_folder) == [] and report.write(artefacts) == []
    table = fixture_folder / "tables" / "paper-pruned.csv"
    table.write_bytes(table.read_bytes()[:-1])
    (fixture_folder / "claims.json").unlink()
    stray = fixture_folder / "tables" / "stray.csv"
    stray.write_text("1")
    wrong = "\n".join(report.differing(artefacts, fixture_folder))
    assert wrong.count("\n") == 2 and "paper-pruned.csv differs" in wrong and "claims.json" in wrong
    assert "stray.csv has no records" in wrong
    stray.unlink()
    assert len(report.write(artefacts)) == 2


def test_results_page_labels_quick_runs_failures_and_what_is_not_run(
    fixture_folder: Path, artefacts: report.Artefacts
) -> None:
    pages = {path: content.decode() for path, content in artefacts.items() if path.suffix == ".md"}
    demo, checks = (pages[fixture_folder / name] for name in ("experiments/demo.md", "checks.md"))
    assert "Quick run: it shows that the pipeline works. No verdict rests on it." in demo
    assert "`failing/cpu-oicsr-gl-keep50-seed0`: training diverged" in checks
    assert "## Not run" in checks and "## Checklist of Blalock et al. 2020" in checks
    assert len(pages[fixture_folder / "RESULTS.md"].splitlines()) < 70  # a screen


def test_every_link_of_every_page_leads_somewhere(fixture_folder: Path, artefacts: report.Artefacts) -> None:
    targets = {path.resolve() for path in artefacts}
    found = 0
    for path, content in artefacts.items():
        if path.suffix == ".md" and path.parent.name != "tables":
            for target in re.findall(r"\]\(([^)#:]+)\)", content.decode()):
                elsewhere = target.startswith("perf/") or target.endswith("../RESULTS.md")  # the published folder's
                assert elsewhere or (path.parent / target).resolve() in targets, f"{path}: {target}"
                found += 1
    assert found > 20


def test_published_results_write_the_readme(fixture_folder: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"# Name\n\n{chr(10).join(pages.FIRST)}\n\n{pages.BEGIN}\n{pages.END}\n\nMore.\n")
    records = records_of(experiment("demo", macs_kept=(0.5, 0.3), seeds=(0,)), "quick")
    results = tmp_path / "results"
    for record in records:
        write_plainly(results, record)
    artefacts = report.build(results, tmp_path)
    text = artefacts[readme].decode()
    block = text.split(pages.BEGIN)[1].split(pages.END)[0]
    assert text.startswith("# Name\n") and text.endswith("\n\nMore.\n")
    assert "**No verdicts yet**" in block and "Profile quick says nothing about the claim" in block
    assert block.count("![") == 1 and len(block.strip().splitlines()) < 25
    assert "(results/experiments/demo.md)" in artefacts[tmp_path / "RESULTS.md"].decode()
    assert "(../figures/demo-quick.png)" in artefacts[results / "experiments" / "demo.md"].decode()


def test_coverage_is_stated_as_its_rows_say(tmp_path: Path) -> None:
    rows = {}
    for name, passed, peer in (("torchvision:vgg11", "yes", ""), ("timm:vgg11", "yes", "no"), ("timm:dla34", "no", "")):
        row = dict.fromkeys(coverage_table.COLUMNS, "")
        rows[name] = {**row, "network": name, "passed": passed, "torch_pruning": peer}
    results, written = tmp_path / "results", (tmp_path / "README.md", tmp_path / "docs" / "any_network.md")
    for folder in (results, tmp_path / "docs"):
        folder.mkdir()
    for page in written:
        page.write_text(f"# Name\n\n{chr(10).join(pages.FIRST)}\n\n{pages.BEGIN}\n{pages.END}\n")
    (results / "coverage.csv").write_text(coverage_table.to_csv(rows))
    artefacts = report.build(results, tmp_path)
    readme, docs = (artefacts[page].decode() for page in written)
    assert "1 of 1 torchvision networks and 1 of 2 timm networks can be pruned to half of their MACs" in readme
    assert f"| timm | {len(TIMM)} | 2 | 1 | 50.0% of 2 | 0 | 0.0% of 1 |\n" in docs
    assert "| 1 | 1 | 100.0% of 1 | not run | not run |" in docs
    assert artefacts[results / "coverage.md"].decode() == coverage_table.to_markdown(rows)
    report.write(artefacts)
    (results / "coverage.csv").write_text(coverage_table.to_csv(rows).replace("dla34", "dla60"))
    wrong = report.differing(report.build(results, tmp_path), results)
    assert len(wrong) == 1 and "coverage.md differs" in wrong[0]


@pytest.mark.parametrize("page", ["README.md", "docs/any_network.md"])
def test_pages_without_markers_are_refused(page: str) -> None:
    with pytest.raises(ValueError, match=f"{page} needs the markers"):
        pages.with_block("# Name", "block", page)


def test_an_empty_folder_gives_a_page_that_says_not_run(tmp_path: Path) -> None:
    artefacts = report.build(tmp_path)
    page = artefacts[tmp_path / "RESULTS.md"].decode()
    assert "None of 41 claims carries a verdict yet." in page and "from the 0 records" in page


def write_plainly(results: Path, record: Record) -> None:
    """Write a record without waiting for the disk."""
    history = history_of(record)
    folder = results / "runs" / record.experiment / record.run_id
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(stamped(record, history, ()).to_json())
    (folder / "history.csv").write_text(history_csv(history))


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.slow
def test_two_thousand_records_stand_in_one_report(tmp_path: Path) -> None:
    study = experiment("digits", methods=tuple(METHODS)[:25], macs_kept=(0.8, 0.7, 0.5, 0.3), seeds=tuple(range(20)))
    records = records_of(study)
    assert len(records) == 2000
    for record in records:
        write_plainly(tmp_path, record)
    artefacts = report.build(tmp_path)
    assert b"from the 2000 records" in artefacts[tmp_path / "RESULTS.md"]
    assert artefacts[tmp_path / "report.html"]
