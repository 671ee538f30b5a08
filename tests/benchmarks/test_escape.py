"""Texts from files stand in tables, pages and on screens as texts, whatever format these have."""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from pathlib import Path
from xml.etree.ElementTree import Element

import html5lib
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from benchmarks.analysis.comparison import compare
from benchmarks.coverage import table as coverage_table
from benchmarks.escape import (
    BROKEN,
    FORMULA,
    HIDDEN,
    LATEX,
    for_csv,
    for_latex,
    for_markdown,
    for_script,
    for_terminal,
    one_line,
)
from benchmarks.reporting import build as report
from benchmarks.reporting.comparison_table import to_text
from benchmarks.reporting.figures.accuracy import accuracy_against_macs
from benchmarks.reporting.reliability import reliability_section
from benchmarks.reporting.table_files import Sheet, files_of_sheet
from tests.benchmarks.hostile import TEXTS, hostile_records
from tests.benchmarks.synthetic import write_records
from tests.slow import but_few_slow

MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
ANY = st.text(st.characters(codec="utf-8"), max_size=40) | st.sampled_from(list(TEXTS.values()))


def rendered(markdown: str) -> Element:
    root: Element = html5lib.parse(MARKDOWN.render(markdown), namespaceHTMLElements=False)
    return root


def names(root: Element) -> set[str]:
    return {str(element.tag) for element in root.iter()} - {"html", "head", "body"}


def words(text: str) -> str:
    return " ".join(text.split())


@given(ANY)
def test_markdown_shows_the_text_and_makes_nothing_of_it(text: str) -> None:
    for line, allowed in (
        (f"- `a`: {for_markdown(text)}", {"ul", "li", "code"}),
        (f"# x {for_markdown(text)}", {"h1"}),
    ):
        root = rendered(line)
        assert names(root) == allowed
        shown = words("".join(root.itertext()))
        assert shown == words(f"a: {one_line(text)}" if "li" in allowed else f"x {one_line(text)}")


@given(ANY)
@example("0@@0")
@example("mailto:@x")
def test_markdown_has_no_address_that_becomes_a_link(text: str) -> None:
    found = for_markdown(text)
    assert "://" not in found and not re.search(r"(?i)www\.|mailto:|\S@\S|[<>\n]|<!--", found)
    assert not set(found) & set(BROKEN)


@given(ANY)
def test_latex_prints_the_text_and_has_no_command_but_its_own(text: str) -> None:
    escaped = for_latex(text)
    back = escaped
    for character, command in sorted(LATEX.items(), key=lambda item: -len(item[1])):
        back = back.replace(command, f"\0{ord(character)}\1")
    assert not set(back) & set('\\{}$&#%_^~<>|"')
    assert re.sub("\0(\\d+)\1", lambda found: chr(int(found[1])), back) == one_line(text)


@given(ANY)
def test_a_spreadsheet_computes_no_cell(text: str) -> None:
    cell = for_csv(text)
    assert not cell.lstrip(" ").startswith(FORMULA) and cell.removeprefix("'") == text.removeprefix("'")
    assert for_csv(cell) == cell  # a table that is read and written again stays as it is


@pytest.mark.parametrize("text", ["=1", " =1", "\xa0=1", "\t1", "-1", "@x", "\uff1d1", "\uff0b1", "\uff0d1", "\uff201"])
def test_every_beginning_of_a_formula_gets_an_apostrophe(text: str) -> None:
    assert for_csv(text) == f"'{text}" and for_csv(f"a{text}") == f"a{text}"


@given(ANY)
def test_no_text_moves_the_cursor(text: str) -> None:
    shown = for_terminal(text)
    assert all(character in "\n\t" or unicodedata.category(character) not in HIDDEN for character in shown)


@given(ANY)
def test_json_in_a_script_ends_nothing_and_is_read_back(text: str) -> None:
    script = for_script({text: [text]})
    assert json.loads(script) == {text: [text]} and not re.search("[<>&\u2028\u2029]", script)


def hostile_sheet(text: str) -> Sheet:
    numbers = pd.DataFrame({"method": [text], text or "x": [text], "value": [-1.0]})
    return Sheet("name", text, ("Method", text), [[text], [text, "-1.50"], ["plain", f"**{text}**"]], "Notes.", numbers)


@pytest.mark.parametrize("kind", TEXTS)
def test_all_three_files_of_a_table_hold_it_as_text(kind: str) -> None:
    text = TEXTS[kind]
    files = {suffix: content.decode() for suffix, content in files_of_sheet(hostile_sheet(text)).items()}
    root = rendered(files["md"])
    assert names(root) <= {"h1", "table", "thead", "tbody", "tr", "th", "td", "em", "strong", "p"}
    assert len(list(root.iter("tr"))) == 4 and {len(list(row)) for row in root.iter("tr")} == {2}
    assert words("".join(next(root.iter("h1")).itertext())) == words(one_line(text))
    cells = [words("".join(cell.itertext())) for cell in root.iter("td")]
    assert cells[0] == cells[2] == words(one_line(text)) and cells[3] == "-1.50"
    latex = files["tex"].splitlines()
    assert latex[0] == "% Notes." and [line for line in latex if line.count(" & ") == 1 and line.endswith(r" \\")]
    assert not re.search(r"\\(input|write|include|def|catcode)\b", files["tex"])
    rows = list(csv.reader(io.StringIO(files["csv"], newline="")))
    assert not any(cell.startswith(FORMULA) for row in rows for cell in row if cell != "-1")


ALLOWED = set("h1 h2 p a img em strong code table thead tbody tr th td ul li details summary br".split())

LINK = re.compile(r"#[\w-]+|(\.\./){0,2}((figures|perf|experiments|tables)/)?[\w-]+\.(html|png|md(#[\w-]+)?)")


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("kind", but_few_slow(TEXTS, ("LaTeX", "script", "direction", "Markdown cell")))
def test_pages_and_tables_of_hostile_records_hold_text_alone(tmp_path: Path, kind: str) -> None:
    text = TEXTS[kind]
    write_records(tmp_path, hostile_records(text))
    artefacts = report.build(tmp_path)
    pages = {path.name: content.decode() for path, content in artefacts.items() if path.suffix == ".md"}
    assert "digits" in pages["RESULTS.md"] and "Failed runs" in pages["checks.md"]
    for page in pages.values():
        root = rendered(page)
        assert names(root) <= ALLOWED
        links = {str(element.get("href", element.get("src"))) for element in root.iter() if element.tag in ("a", "img")}
        assert all(LINK.fullmatch(link) for link in links)
    headings = [words("".join(h.itertext())) for h in rendered(pages["RESULTS.md"]).iter() if h.tag in ("h1", "h2")]
    assert headings.count("Verdicts") == 1
    for path, content in artefacts.items():
        if path.suffix == ".tex":
            assert not any(b"\\input" in line for line in content.splitlines() if not line.startswith(b"% "))
        if path.suffix == ".csv":
            cells = [cell for row in csv.reader(io.StringIO(content.decode(), newline="")) for cell in row]
            assert not any(cell.startswith(FORMULA) and not re.fullmatch(r"-?[\d.e+-]+", cell) for cell in cells)


@pytest.mark.parametrize("kind", TEXTS)
def test_a_screen_shows_it_in_one_line_and_a_figure_as_it_is(kind: str) -> None:
    comparison = compare(hostile_records(TEXTS[kind]))[0]
    lines = to_text(comparison).splitlines()
    above = 4  # header, rule, the dense row and that of all epochs; each target has a line of its own
    assert len(lines) == above + len(comparison.targets) + len(comparison.table)
    assert not any(unicodedata.category(character) in HIDDEN for line in lines for character in line)


@pytest.mark.parametrize("kind", but_few_slow(["LaTeX", "script", "direction"], ["LaTeX"]))
def test_every_figure_of_hostile_records_is_drawn(tmp_path: Path, kind: str) -> None:
    write_records(tmp_path, hostile_records(TEXTS[kind]))
    drawn = {path: content for path, content in report.build(tmp_path).items() if path.suffix == ".png"}
    assert len(drawn) > 3 and all(content.startswith(b"\x89PNG") for content in drawn.values())


@pytest.mark.parametrize("title", [r"$\frac$ and \input{x}", "50 % of $x_", "a_b^c <b>&amp;</b>"])
def test_figures_take_no_title_for_a_formula(title: str) -> None:
    files = accuracy_against_macs(compare(hostile_records("plain"))[0], title)
    assert files is not None and files["png"].startswith(b"\x89PNG") and b"<b>" not in files["svg"]


@pytest.mark.parametrize("kind", but_few_slow(TEXTS, ("LaTeX", "script", "direction", "Markdown cell")))
def test_other_tables_hold_it_as_text(tmp_path: Path, kind: str) -> None:
    text = TEXTS[kind]
    row = {**dict.fromkeys(coverage_table.COLUMNS, text), "network": "timm:dla34", "passed": "no"}
    root = rendered(coverage_table.to_markdown({"timm:dla34": row}))
    assert names(root) <= {"h1", "p", "code", "ul", "li", "table", "thead", "tbody", "tr", "th", "td"}
    cells = list(csv.reader(io.StringIO(coverage_table.to_csv({"timm:dla34": row}), newline="")))[1]
    assert not any(cell.startswith(FORMULA) for cell in cells)
    kinds = {"kill": {"what": text, "tried": text, "survived": 1}}
    data = {"schema": "oicsr-reliability-1", "kinds": kinds, **dict.fromkeys(("sweep", "runs", "small_runs"), "x")}
    (tmp_path / "reliability.json").write_text(json.dumps({**data, "date": text, "device": text}))
    root = rendered("\n".join(reliability_section(tmp_path)))
    assert names(root) <= {"h2", "p", "code", "table", "thead", "tbody", "tr", "th", "td"}
