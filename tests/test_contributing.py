"""The examples of CONTRIBUTING.md are complete: applied to a copy of the project, they make a run and its report."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("contributing")  # the copy is made, run and reported once, by one worker

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
CODE = re.compile(r"```(python|diff)\n(.*?)```", re.DOTALL)
CONTRACTS = [
    "tests/test_imports.py",
    "tests/baselines/test_contracts.py",
    "tests/baselines/test_golden.py",
    "tests/baselines/test_methods.py",
    "tests/benchmarks/test_dataset_contracts.py",
    "tests/benchmarks/test_models.py",
    "tests/benchmarks/test_comparison_table.py",
]
NEW = "squared or largest or tiny or stripes or one_way or downwards or circle or today or golden_values_is_gone"


def sections() -> dict[str, str]:
    """Return the sections with examples, by heading."""
    parts = re.split(r"^### (.+)$", TEXT.partition("## What you touch")[2].partition("\n## ")[0], flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def added_files(section: str) -> list[str]:
    return [text.split("\n", 1)[0].removeprefix("# ") for kind, text in CODE.findall(section) if kind == "python"]


def edited_files(section: str) -> list[str]:
    return re.findall(r"^--- (\S+)$", section, re.MULTILINE)


def edits(diff: str) -> Iterator[tuple[str, str, str]]:
    """Yield file, lines before and lines after of each change."""
    for part in re.split(r"^--- ", diff, flags=re.MULTILINE)[1:]:
        file, _, changes = part.partition("\n")
        for change in re.split(r"^@@\n", changes, flags=re.MULTILINE):
            lines = change.splitlines()
            before = "".join(f"{line[1:]}\n" for line in lines if line[0] in " -")
            after = "".join(f"{line[1:]}\n" for line in lines if line[0] in " +")
            yield file, before, after


def apply(section: str, folder: Path) -> None:
    """Write the files of a section, and make its changes."""
    for kind, text in CODE.findall(section):
        if kind == "python":
            name, _, code = text.partition("\n")
            path = folder / name.removeprefix("# ")
            assert not path.exists(), f"{path.name} is there already"
            path.write_text(code, "utf-8")
            continue
        for name, before, after in edits(text):
            path = folder / name
            found = path.read_text("utf-8")
            assert found.count(before) == 1, f"{name} holds these lines {found.count(before)} times:\n{before}"
            path.write_text(found.replace(before, after), "utf-8")


def call(folder: Path, *arguments: str) -> str:
    """Run Python in the copy; return what it printed."""
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the project with all examples in it, their run, and its report."""
    folder = tmp_path_factory.mktemp("project")
    for package in ("oicsr", "baselines", "benchmarks", "tests", "results/published", "results/runs/demo"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for section in sections().values():
        apply(section, folder)
    options = ["--profile", "quick", "--results", "outputs", "--wandb", "disabled", "--jobs", "1", "--device", "cpu"]
    call(folder, "-m", "benchmarks", "run", "stripes", *options)
    call(folder, "-m", "benchmarks", "report", "--results", "outputs")
    return folder


def test_the_counts_of_files_are_those_of_the_examples() -> None:
    table = re.findall(r"^\| \[(.+?)\]\(#(.+?)\) \| (\d) \| (\d) \|", TEXT, re.MULTILINE)
    counted = {link: (int(added), int(edited)) for _, link, added, edited in table}
    examples = {heading.lower().replace(" ", "-"): text for heading, text in sections().items()}
    assert len(table) == 10 and set(counted) == set(examples)
    for link, (added, edited) in counted.items():
        both = 2 if link == "a-regulariser-or-an-importance" else 1  # one file each, and a line each in one registry
        assert (len(added_files(examples[link])), len(edited_files(examples[link]))) == (both * added, both * edited)
        assert added + edited <= 3


def test_the_run_holds_the_new_field_and_metric(extended: Path) -> None:
    paths = sorted((extended / "outputs/runs/stripes").glob("*/record.json"))
    records = [json.loads(path.read_text("utf-8")) for path in paths]
    assert [record["method"] for record in records] == ["none", "squared-energy+largest-energy+first"]
    for record in records:
        assert record["status"] == "complete" and record["claim"] == "The example works."
        assert record["selection"] == ("first" if record["method"].endswith("+first") else "greedy")
        assert record["states"]["finetuned"]["macs"] < record["states"]["dense"]["macs"]
        assert record["states"]["finetuned"]["top5"] == 1  # of two classes


def test_the_report_holds_the_new_columns_and_the_figure(extended: Path) -> None:
    table = (extended / "outputs/tables/stripes-quick.md").read_text("utf-8")
    header = next(line for line in table.splitlines() if line.startswith("| Method"))
    assert "Speed-up" in header and "Top-5" in header
    row = next(line for line in table.splitlines() if line.startswith("| No regulariser"))
    assert "| 100.00" in row and re.search(r"\| \d\.\d\d× \|", row)
    assert (extended / "outputs/figures/stripes-quick-seeds.svg").is_file()
    assert "Accuracy of every seed" in (extended / "outputs/experiments/stripes.md").read_text("utf-8")


def test_records_from_before_the_new_field_and_metric_are_read(extended: Path) -> None:
    code = """
from pathlib import Path
from benchmarks.analysis.comparison import compare
from benchmarks.records.record import read_records
from benchmarks.reporting.comparison_table import display_rows
records = read_records(Path("results"))
print(len(records), {record.claim for record in records})
print(display_rows(compare(records)[0])[-1][-1])
"""
    count = len(list((extended / "results/runs/demo").glob("*/record.json")))
    assert count > 5 and call(extended, "-c", code).splitlines() == [f"{count} {{''}}", "not run"]


def test_new_entries_pass_the_contract_tests(extended: Path) -> None:
    shown = call(extended, "-m", "pytest", "-p", "no:cacheprovider", "-m", "not slow", "-k", NEW, *CONTRACTS)
    passed = re.search(r"(\d+) passed", shown)
    assert passed and int(passed[1]) > 45


def test_every_file_of_the_map_exists() -> None:
    files = re.findall(r"`((?:oicsr|baselines|benchmarks|tests|docs)/[\w/.]+)`", TEXT)
    missing = [file for file in files if not (ROOT / file).exists()]
    assert len(files) > 15 and missing == []
