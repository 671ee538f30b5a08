"""Whatever text a record holds, the HTML report shows it and does nothing else: by a real parser, and in a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import html5lib
import pytest

from benchmarks.analysis.comparison import compare
from benchmarks.analysis.verdicts import judge
from benchmarks.records.histories import Details
from benchmarks.records.record import Record
from benchmarks.reporting.html_report import CODE, PAPER, html_report, page_data
from tests.benchmarks.hostile import TEXTS, hostile_records
from tests.benchmarks.test_html_report import in_browser, steps

ATTRIBUTES = {
    *("lang", "charset", "http-equiv", "content", "name", "rel", "href", "class", "id", "type", "hidden", "value"),
    *("data-claim", "data-name", "role", "aria-label", "tabindex", "scope", "src", "alt"),
}
ELEMENTS = set(
    "html head meta link title style body main header nav h1 h2 h3 span b button section p ul li div details summary a "
    "label select option fieldset legend svg figure figcaption img table thead tbody tr th td script".split()
)


LINKS = {"data:,", PAPER, CODE, "#verdicts", "#explorer", "#quoted"}


def page_of(records: list[Record]) -> str:
    return html_report(records, compare(records), judge(records, Details(Path("nowhere"))))


def parsed(page: str) -> Element:
    """Parse as a browser does; the slightest error in the page is one here."""
    root: Element = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(page)
    return root


def elements(root: Element) -> Iterator[tuple[str, Element]]:
    for element in root.iter():
        if isinstance(element.tag, str):
            yield element.tag.rpartition("}")[2], element


@pytest.mark.parametrize("kind", TEXTS)
def test_a_parser_finds_the_text_as_text_and_nothing_else(kind: str) -> None:
    records = hostile_records(TEXTS[kind], names=True)
    root = parsed(page_of(records))
    found = list(elements(root))
    assert {name for name, _ in found} <= ELEMENTS
    assert {attribute for _, element in found for attribute in element.attrib} <= ATTRIBUTES
    for _, element in found:
        link = element.get("href", "runs/")
        assert link in LINKS or re.fullmatch(r"runs/[A-Za-z0-9._~%/-]*", link)
        assert re.fullmatch(r"(data:image/svg\+xml;base64,[A-Za-z0-9+/]+=*)?", element.get("src", ""))
    scripts = [element for name, element in found if name == "script"]
    assert [script.get("type") for script in scripts] == ["application/json", None]
    assert json.loads(str(scripts[0].text)) == json.loads(json.dumps(page_data(records, compare(records))))
    assert [name for name, _ in found].count("style") == 1


def test_the_policy_names_the_page_s_own_style_and_script_and_no_other() -> None:
    found = list(elements(parsed(page_of(hostile_records("plain")))))
    policy = next(e.attrib["content"] for _, e in found if e.get("http-equiv") == "Content-Security-Policy")
    assert "unsafe" not in policy and policy.startswith("default-src 'none';") and "http" not in policy
    for name, directive in (("style", "style-src"), ("script", "script-src")):
        text = str(next(element for tag, element in found if tag == name and not element.get("type")).text)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a page with all the texts at once, in every place."""
    records = [
        record
        for position, text in enumerate(TEXTS.values())
        for record in hostile_records(f"{position}{text}", names=True)
    ]
    path = tmp_path_factory.mktemp("hostile") / "report.html"
    path.write_text(page_of(records), encoding="utf-8")
    return path


@in_browser
def test_a_browser_runs_none_of_it(hostile_page: Path, tmp_path: Path) -> None:
    found: Any = steps(
        hostile_page,
        tmp_path,
        """
        const study=document.getElementById('study'), log=[];
        for (const option of [...study.options]) {
          study.value=option.value; study.dispatchEvent(new Event('change'));
          document.getElementById('all').click();
          for (const link of document.querySelectorAll('#plot a')) {
            for (const kind of ['mouseenter','mouseover','focus']) link.dispatchEvent(new Event(kind));
          }
          for (const box of document.querySelectorAll('*')) box.dispatchEvent(new Event('mouseover'));
          log.push(document.querySelectorAll('#rows tr').length);
        }
        const names=[...document.querySelectorAll('*')].flatMap(e=>[...e.attributes].map(a=>a.name));
        return [log, document.title, names.filter(n=>n.startsWith('on')),
          [...document.querySelectorAll('a')].filter(a=>a.protocol && a.protocol!=='file:').map(a=>a.href),
          document.querySelectorAll('script').length, [...study.options].map(o=>o.textContent)];""",
    )
    rows, title, handlers, outside, scripts, labels = found
    assert rows == [3] * len(TEXTS) and title == "OICSR: results"
    assert handlers == [] and outside == [PAPER] and scripts == 4  # the page's two, and the two of this test
    assert any('onmouseover="document.title=1"' in label for label in labels)


@in_browser
def test_the_policy_stops_what_would_get_through(tmp_path: Path) -> None:
    page = page_of(hostile_records("plain")).replace("<h1>", '<h1 onclick="document.title=1">')
    page = page.replace("</main>", "</main><script>document.title=1</script>")
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    with pytest.raises(AssertionError, match="policy: script-src"):
        steps(path, tmp_path, "document.querySelector('h1').click(); return document.title")
