"""Links between documents lead somewhere, files that a host reads are well formed, numbers are those of the results."""

from __future__ import annotations

import csv
import json
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob(".github/*.md")])
LINK = re.compile(r"(?<!\\)\]\(([^)\s]+)\)")


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as a host makes them."""
    headings = re.findall(r"^#+ +(.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(path: Path) -> list[str]:
    """Return the links of a document that lead to no file or heading; addresses of other hosts are not looked up."""
    wrong = []
    for link in LINK.findall(path.read_text("utf-8")):
        file, _, anchor = link.partition("#")
        if "://" in link or link.startswith("mailto:"):
            continue
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    assert broken_links(path) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One heading\n[a](page.md#one-heading) [b](gone.md) [c](#two) [d](https://example.org/x)\n")
    assert broken_links(page) == ["gone.md", "#two"]


def test_the_wheel_holds_the_library_alone() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert project["tool"]["setuptools"]["packages"]["find"]["include"] == ["oicsr*"]
    assert {"authors", "keywords", "classifiers", "urls"} <= project["project"].keys()


def test_measured_numbers_of_the_comparison_are_those_of_the_results() -> None:
    page = (ROOT / "docs" / "comparison.md").read_text("utf-8")
    with (ROOT / "results" / "coverage.csv").open(encoding="utf-8", newline="") as file:
        covered = list(csv.DictReader(file))
    timm = [row["passed"] for row in covered if row["network"].startswith("timm:")]
    guide = (ROOT / "docs" / "prune_your_own.md").read_text("utf-8")
    assert f"[of {len(timm)} timm networks, {timm.count('yes')}](" in guide
    both = [row for row in covered if row["torch_pruning"]]
    for library, words in (("torchvision", "Pruned to about half, torchvision"), ("timm", "The same, timm")):
        rows = [row for row in both if row["network"].startswith(f"{library}:")]
        ours, theirs = (sum(row[tool] == "yes" for row in rows) for tool in ("passed", "torch_pruning"))
        assert f"| {words} ({len(rows)} networks) | {ours}, *measured* | {theirs}, *measured* |" in page
    kinds = ("torchvision", "segmentation", "detection", "video")
    whole = [row for row in both if row["network"].partition(":")[0] in kinds]
    ours, theirs = (sum(row[tool] == "yes" for row in whole) for tool in ("passed", "torch_pruning"))
    assert f"and video ({len(whole)} networks) | {ours}, *measured* | {theirs}, *measured* |" in page
    with (ROOT / "results" / "attention.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    networks, tried = {row["network"] for row in table}, {row["network"] for row in table if row["torch_pruning"]}
    ours, theirs = ({r["network"] for r in table if r[tool] == "yes"} for tool in ("passed", "torch_pruning"))
    counts = f"{len(ours & tried)}, *measured* | {len(theirs)}, *measured* |"
    assert f"removed ({len(tried)} transformers) | {counts}" in page
    said = [" ".join((ROOT / "docs" / name).read_text("utf-8").split()) for name in ("attention.md", "faq.md")]
    assert f"Of {len(networks)} transformers that were tried, {len(ours)} lose" in said[0]
    assert f"[{len(ours)} of the {len(networks)} transformers that were tried]" in said[1]
    perf = json.loads((ROOT / "results" / "perf" / "amd-epyc-2-threads.json").read_text("utf-8"))
    (row,) = [r for r in perf["sections"]["penalty"]["rows"] if (r["model"], r["scope"]) == ("resnet56", "all")]
    direct, autograd, theirs = (f"{row[f'{name} ms']:.1f} ms" for name in ("direct", "autograd", "torch-pruning"))
    assert f"ResNet-56 | {direct}, *measured*" in page and f"gradients, {autograd} as part" in page
    assert f"| {theirs}, *measured*" in page


def test_what_the_anatomy_says_in_short_is_in_its_table() -> None:
    page = (ROOT / "docs" / "anatomy.md").read_text("utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:9]] for line in page.splitlines() if line.startswith("| A")]
    found = {(row[0], row[2].count("proximal") > 0, row[7]): row[3] for row in rows if len(row) == 8}
    for name, proximal, where, outcome in (
        ("A1", False, "resnet20, resnet56", "not shown"),
        ("A2", False, "digits-resnet", "holds"),
        ("A3", False, "digits-resnet", "does not hold"),
        ("A9", False, "digits-resnet", "does not hold"),  # the last of its three: where filters were left alone
        ("A1", True, "digits-resnet", "does not hold"),
        ("A6", False, "cifarnet-plain", "does not hold"),
    ):
        assert found[name, proximal, where] == f"**{outcome}**", name
