"""The HTML report: what is in the file, and, in headless Chromium (`make test-web`), that it does what it says."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.analysis.claims import CLAIMS
from benchmarks.analysis.comparison import compare
from benchmarks.reporting import build as report
from benchmarks.reporting.html_report import CODE, PAPER, page_data
from tests.benchmarks.browser import find_browser, run_in_page, screenshot
from tests.benchmarks.synthetic import experiment, records_of

pytestmark = pytest.mark.xdist_group("artefacts")  # which are made once, by one worker

REQUIRED = bool(os.environ.get("OICSR_TEST_WEB"))  # `make test-web` must not pass by skipping
in_browser = pytest.mark.skipif(find_browser() is None and not REQUIRED, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def page(fixture_folder: Path, artefacts: report.Artefacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_bytes(artefacts[fixture_folder / "report.html"])
    return path


def test_file_stands_alone_and_links_to_records_that_are_there(page: Path, fixture_folder: Path) -> None:
    text = page.read_text()
    outside = re.findall(r"""(?:src|href)=["']?((?:https?:)?//[^"']*)""", text)
    assert outside == [PAPER] and f'<a href="{PAPER}">' in text  # a link to click; nothing is loaded
    assert "@import" not in text and "fetch(" not in text
    data = json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[0])
    assert len(data["runs"]) == 10 * 2 * 3 + 6 + 2 * 3
    assert all((fixture_folder / run["link"]).is_file() for run in data["runs"])
    for link in re.findall(r'href="(runs/[^"]+)"', text):
        assert (fixture_folder / link).is_file()
    assert text.index('id="first"') < text.index('id="verdicts"') < text.index('id="explorer"')


def test_first_screen_says_what_it_is_and_shows_figure_numbers_and_links(page: Path) -> None:
    first = page.read_text().split('<section id="first">')[1].split("</section>")[0]
    assert "OICSR prunes channels" in first and PAPER in first and CODE in first
    assert first.count('class="number"') == 3 and first.count("<img src=") == 1


def test_every_claim_stands_once_in_each_tier_losses_first(page: Path) -> None:
    verdicts = page.read_text().split('<section id="verdicts">')[1].split("</section>")[0]
    tiers = verdicts.split("<h3>")[1:]
    listed = [re.findall(r'data-claim="([^"]+)"', tier) for tier in tiers]
    assert {claim for tier in listed for claim in tier} == {claim.id for claim in CLAIMS}
    assert all(len(set(tier)) == len(tier) for tier in listed)
    order = ["Loss", "Does not hold", "Not shown", "Holds"]
    for tier in tiers:
        places = [order.index(word) for word in re.findall(r'class="verdict [a-z]+">([^<]+)<', tier)]
        assert places == sorted(places)


def test_explorer_ticks_the_strongest_rivals_and_the_proximal_forms() -> None:
    methods = ("oicsr-gl", "oicsr-gl-norm-prox", "gl-out-prox", "depgraph", "slimming", "fpgm")
    records = records_of(experiment(methods=methods))
    assert set(page_data(records, compare(records))["main"]) == set(methods) - {"fpgm"}


def test_explorer_says_which_studies_carry_no_verdict_and_why() -> None:
    records = [replace(record, profile="study") for record in records_of(experiment())]
    source = "tuned on validation (cifar10-resnet20-end-study.json)"  # whose search compared fine-tuned networks
    late = [replace(record, strength_source=source) if record.strength else record for record in records]
    studies = {
        name: page_data(each, compare(each))["studies"][0]
        for name, each in (("usual", records), ("late", late), ("quick", records_of(experiment(), "quick")))
    }
    assert studies["usual"]["label"].endswith("profile study") and studies["usual"]["warning"] == ""
    assert studies["late"]["label"].endswith("profile study (no verdict)")
    assert studies["late"]["warning"].endswith("Strengths chosen for the fine-tuned network: no verdict rests on them.")
    assert studies["quick"]["label"].endswith("(quick: says nothing about the claim)")
    assert studies["quick"]["warning"].startswith("Quick run: it shows that the pipeline works; no verdict rests")


def steps(page: Path, folder: Path, script: str, width: int = 1400) -> Any:
    noted = run_in_page(page, script, folder, width)
    assert noted["faults"] == []
    return noted["found"]


ROWS = "[...document.querySelectorAll('#rows tr')]"
CHOOSE = "const pick=(id,v)=>{const s=document.getElementById(id);s.value=v;s.dispatchEvent(new Event('change'))};"


@in_browser
def test_filters_choose_what_is_shown(page: Path, tmp_path: Path) -> None:
    found = steps(
        page,
        tmp_path,
        CHOOSE
        + f"""
        const now=()=>[{ROWS}.length, document.querySelectorAll('#plot a').length,
          document.getElementById('warning').hidden];
        const log=[now()];
        document.querySelector('#methods input[value=none]').click(); log.push(now());
        document.getElementById('none').click(); log.push(now());
        document.getElementById('all').click(); log.push(now());
        pick('study','demo-quick'); log.push(now());
        return log;""",
    )
    # seven of the ten methods are the paper's comparison, at two targets, three seeds each
    assert found == [[14, 42, True], [12, 36, True], [1, 0, True], [20, 60, True], [6, 6, False]]


@in_browser
def test_state_moves_the_points_and_hovering_names_the_run(page: Path, tmp_path: Path) -> None:
    found = steps(
        page,
        tmp_path,
        CHOOSE
        + """
        const tip=document.getElementById('tip'), first=()=>document.querySelector('#plot a');
        const hover=()=>{first().dispatchEvent(new MouseEvent('mouseenter'));return tip.textContent};
        const before=hover(), shown=!tip.hidden;
        first().dispatchEvent(new MouseEvent('mouseleave'));
        const hidden=tip.hidden; pick('state','finetuned');
        return [before, hover(), shown, hidden, first().getAttribute('href')];""",
    )
    before, after, shown, hidden, link = found
    assert "pruned" in before and "fine-tuned" in after and before.split("%")[0] != after.split("%")[0]
    assert shown and hidden and link.startswith("runs/cifar10-resnet56/") and link.split("/")[2] in before


@in_browser
@pytest.mark.parametrize(("column", "index"), [("pruned", 7), ("macs", 3), ("title", 0)])
def test_a_click_on_a_heading_sorts_and_another_turns_round(
    page: Path, tmp_path: Path, column: str, index: int
) -> None:
    script = f"""
        const cells=()=>{ROWS}.map(r=>r.children[{index}].textContent);
        const click=()=>document.querySelector('[data-sort={column}]').click();
        click(); const first=cells(); click(); return [first, cells()];"""
    first, second = steps(page, tmp_path, script)
    key = str.lower if column == "title" else (lambda text: float(text.split()[0]))
    values, turned = [key(text) for text in first], [key(text) for text in second]
    assert values != turned and len(set(values)) > 1
    assert values == sorted(values, reverse=column != "title") and turned == sorted(turned, reverse=column == "title")


@in_browser
@pytest.mark.parametrize("width", [400, 1400])
def test_page_fits_narrow_and_wide_windows(page: Path, tmp_path: Path, width: int) -> None:
    found = steps(
        page,
        tmp_path,
        """const plot=document.getElementById('plot').getBoundingClientRect();
        const controls=[...document.querySelectorAll('header button,.controls button,select,#methods input')];
        const inside=controls.map(c=>c.getBoundingClientRect()).every(b=>b.left>=0 && b.right<=innerWidth);
        return [innerWidth, document.documentElement.scrollWidth, plot.width, plot.height,
          inside, new Set([...document.querySelectorAll('[data-claim]')].map(e=>e.dataset.claim)).size];""",
        width,
    )
    inner, scroll, plot_width, plot_height, inside, cards = found
    assert inner == width and scroll <= width and inside and cards == len(CLAIMS)
    assert 0.75 * width < plot_width <= width and plot_height >= 250


@in_browser
def test_light_and_dark(page: Path, tmp_path: Path) -> None:
    script = """const button=document.getElementById('theme');
        const look=()=>getComputedStyle(document.body).backgroundColor;
        const first=look(); button.click(); const second=look(); button.click(); return [first, second, look()];"""
    first, second, third = steps(page, tmp_path, script)
    assert first == third != second


@in_browser
def test_an_empty_report_loads(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_bytes(report.build(tmp_path)[page])
    assert steps(page, tmp_path, f"return {ROWS}.map(r=>r.textContent)") == ["no runs chosen"]


@in_browser
@pytest.mark.parametrize("width", [400, 1400])
def test_screenshot_is_not_empty(page: Path, tmp_path: Path, width: int) -> None:
    image = tmp_path / "report.png"
    screenshot(page, image, tmp_path, width)
    assert image.read_bytes().startswith(b"\x89PNG") and image.stat().st_size > 20_000
