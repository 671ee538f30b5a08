"""The documentation site builds without a warning, and describes all that the library offers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import oicsr

pytestmark = pytest.mark.xdist_group("site")  # which is built once, by one worker

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_pages_of_all_kinds_are_there(site: Path) -> None:
    for page in ("index.html", "method/index.html", "repository/PAPER/index.html", "notebooks/prune_your_own_network"):
        assert (site / page).exists(), page


def test_formulas_become_mathml(site: Path) -> None:
    for page in ("method", "api"):
        html = (site / page / "index.html").read_text("utf-8")
        assert "<msqrt>" in html and "math::" not in html and ":math:" not in html


def test_links_to_source_code_become_text_and_those_to_figures_stay(site: Path) -> None:
    html = (site / "after_surgery" / "index.html").read_text("utf-8")
    assert 'href="../repository/results/perf/' in html


def test_nothing_is_loaded_from_other_hosts(site: Path) -> None:
    html = (site / "index.html").read_text("utf-8")
    loaded = re.findall(r"<(?:script|img|link)[^>]*(?:src|href)=\"?(https?://[^\s\">]+)", html)
    assert [address for address in loaded if "/sitemap" not in address] == []


def test_the_reference_names_all_that_the_library_offers() -> None:
    described = re.findall(r"^::: oicsr\.(\w+)$", (ROOT / "docs" / "api.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(described) == sorted(oicsr.__all__)
