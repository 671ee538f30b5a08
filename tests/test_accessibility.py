"""axe-core finds no serious fault on any page of the documentation site, the report among them (`make test-web`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.browser import find_browser, run_in_site

ROOT = Path(__file__).parents[1]
AXE = ROOT / "build" / "axe" / "node_modules" / "axe-core" / "axe.min.js"  # `make test-web` gets it from npm
REQUIRED = bool(os.environ.get("OICSR_TEST_WEB"))  # `make test-web` must not pass by skipping

pytestmark = pytest.mark.skipif(
    not REQUIRED and (find_browser() is None or not AXE.is_file()),
    reason="needs a Chromium and axe-core: `make test-web` gets the latter",
)

RUN = """
await new Promise(done => setTimeout(done, 500));
const found = await axe.run(document, {resultTypes: ["violations"]});
const wide = document.documentElement.scrollWidth > innerWidth ? [["page wider than its window"]] : [];
const serious = found.violations.filter(fault => ["serious", "critical"].includes(fault.impact));
return [...wide, ...serious.map(fault => [fault.id, ...fault.nodes.slice(0, 3).map(node => node.target.join(" "))])];
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return folder


@pytest.mark.parametrize(("width", "dark"), [(400, False), (1400, True), (400, True), (1400, False)])
def test_no_page_has_a_serious_fault(site: Path, tmp_path: Path, width: int, dark: bool) -> None:
    pages = [page for page in sorted(site.rglob("*.html")) if page.name != "404.html"]  # its style needs a web server
    assert len(pages) > 30 and site / "repository" / "results" / "report.html" in pages
    notes = run_in_site(pages, AXE.read_text(encoding="utf-8") + RUN, tmp_path, width, dark=dark)
    faults = {str(page.relative_to(site)): note["found"] for page, note in zip(pages, notes, strict=True)}
    assert {page: found for page, found in faults.items() if found != []} == {}, json.dumps(faults, indent=1)


def test_faults_are_found_where_there_are_some(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<!doctype html><html><head><title>t</title></head><body><img src='a.png'></body></html>")
    (note,) = run_in_site([page], AXE.read_text(encoding="utf-8") + RUN, tmp_path, 400, dark=False)
    assert ["image-alt", "img"] in note["found"] and ["html-has-lang", "html"] in note["found"]
