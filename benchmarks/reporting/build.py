"""Everything that is made from records: tables, figures, verdicts, RESULTS.md, the HTML report, the README's block.

Offline, and the same bytes every time.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.analysis.comparison import Comparison, compare
from benchmarks.analysis.predictions import outcomes
from benchmarks.analysis.verdicts import Verdict, judge, to_plain
from benchmarks.config import check_name
from benchmarks.coverage.attention import attention_markdown, read_attention
from benchmarks.coverage.table import read_rows, sentence, summary, to_markdown
from benchmarks.machine.atomic_write import write_atomically
from benchmarks.machine.paths import METHOD_CARDS, ROOT, check_inside
from benchmarks.machine.plain_files import read_plain
from benchmarks.methods.cards import render
from benchmarks.records.histories import Details
from benchmarks.records.recalibrations import all_recalibrations
from benchmarks.records.record import RecordError
from benchmarks.reporting.anatomy import with_outcomes
from benchmarks.reporting.comparison_table import comparison_sheet, fairness_sheet
from benchmarks.reporting.drawing import Draw, draw_all
from benchmarks.reporting.experiment_page import experiment_page
from benchmarks.reporting.figures import accuracy, latency
from benchmarks.reporting.figures.anatomy import sides_figure
from benchmarks.reporting.figures.kinds import KINDS, from_file, stem_of
from benchmarks.reporting.figures.method_diagram import method_diagram
from benchmarks.reporting.figures.style import Files
from benchmarks.reporting.gathered import Gathered, gather
from benchmarks.reporting.pages import (
    FIRST,
    across_page,
    checks_page,
    readme_block,
    results_page,
    verdicts_page,
    with_block,
)
from benchmarks.reporting.paper_tables import all_sheets
from benchmarks.reporting.readme_headline import readme_headline
from benchmarks.reporting.same_drawing import same_drawing
from benchmarks.reporting.study import LATENCY, Study, title_of
from benchmarks.reporting.table_files import Sheet, files_of_sheet

CLAIMS_SCHEMA = "oicsr-claims-2"

ANATOMY, ANATOMY_TOY = "anatomy", "anatomy-toy"  # the figures of the sides that a penalty needs

Artefacts = dict[Path, bytes]


def build(results: Path, root: Path | None = None, gathered: Gathered | None = None) -> Artefacts:
    """Return all generated files of a results folder by path, without writing any.

    Args:
        results: Holds `runs/`; tables and figures go beside.
        root: The project's root, where the results are those that it publishes: RESULTS.md and README.md are its own.
        gathered: The records of the folder, where they were read before (default: read them).

    Raises:
        UnfairComparisonError: Records of one table were made under different protocols.
        OutsideError: A folder of generated files is a link that leads elsewhere.
    """
    found, details = gathered or gather(results), Details(results)
    records = found.records
    study = Study(results, records, details, compare(records), judge(records, details), left_out=found.left_out)
    sheets = all_sheets(study.comparisons, details, all_recalibrations(results))
    tables = [_tables(comparison) for comparison in study.comparisons]
    artefacts: Artefacts = {}
    for sheet in [*itertools.chain(*tables), *sheets]:
        artefacts |= _sheet_files(sheet, results)
    drawn = draw_all(_drawings(study))
    for name, files in drawn.items():
        artefacts |= _figure_files(results, name, files)
    for comparison in study.comparisons:
        study.drawn[comparison.name] = [kind for kind in KINDS if drawn.get(stem_of(comparison, kind))]
    latency_names = [name for name, files in drawn.items() if files and name.startswith(LATENCY)]
    artefacts |= _pages(study, sheets, latency_names)
    sides = [name for name in (ANATOMY, ANATOMY_TOY) if drawn[name]]
    artefacts[(root or results) / "RESULTS.md"] = results_page(study, f"{results.name}/" if root else "").encode()
    return _inside(artefacts | _project_pages(study, root, sides=sides), root or results)


def _pages(study: Study, sheets: Sequence[Sheet], latency_names: Sequence[str]) -> Artefacts:
    """Return the pages among the results: neither tables nor figures."""
    from benchmarks.reporting.html_report import html_report  # jinja2, which tables and plots do without

    results = study.results
    pages = {
        "claims.json": claims_json(study.verdicts),
        "report.html": html_report(study.records, study.comparisons, study.verdicts),
        "verdicts.md": verdicts_page(study),
        "across-experiments.md": across_page(sheets),
        "checks.md": checks_page(study, latency_names),
        **{f"experiments/{name}.md": experiment_page(study, name) for name in study.experiments},
    }
    attention = read_attention(results / "attention.csv")
    if attention:
        pages["attention.md"] = attention_markdown(attention)
    coverage = read_rows(results / "coverage.csv")
    if coverage:
        pages["coverage.md"] = to_markdown(coverage)
    return {results / name: text.encode() for name, text in pages.items()}


def _project_pages(study: Study, root: Path | None, *, sides: Sequence[str]) -> Artefacts:
    """Return the project's own pages that hold results, where the results are those that it publishes.

    `sides` names the figures of the sides that a penalty needs.
    """
    if root is None:
        return {}
    coverage = read_rows(study.results / "coverage.csv")
    blocks = {"README.md": readme_block(study)}
    if coverage:
        blocks["README.md"] += f"\n\n{sentence(coverage)} ([results/coverage.md](results/coverage.md))."
        blocks["docs/any_network.md"] = summary(coverage).rstrip()
    written = {
        root / page: with_block((root / page).read_text(encoding="utf-8"), block, page).encode()
        for page, block in blocks.items()
    }
    readme = written[root / "README.md"].decode()
    first = readme_headline(study.verdicts)
    written[root / "README.md"] = with_block(readme, first, "README.md", FIRST).encode()
    anatomy = root / "docs/anatomy.md"
    if anatomy.is_file():
        found = outcomes(study.records, study.details)
        figures = [f"../{study.results.name}/figures/{name}.png" for name in sides]
        written[anatomy] = with_outcomes(anatomy.read_text(encoding="utf-8"), found, figures).encode()
    return {root / METHOD_CARDS.relative_to(ROOT): render().encode(), **written}


def _inside(artefacts: Artefacts, folder: Path) -> Artefacts:
    """Return the same files, none of which would be written outside of a folder."""
    for path in artefacts:
        check_inside(folder, path)
    return artefacts


def files_of(comparison: Comparison, results: Path) -> Artefacts:
    """Return the tables and the plot of one comparison, by path."""
    title = title_of(comparison.experiment)
    artefacts = _figure_files(results, comparison.name, accuracy.accuracy_against_macs(comparison, title))
    for sheet in _tables(comparison):
        artefacts |= _sheet_files(sheet, results)
    return _inside(artefacts, results)


def _tables(comparison: Comparison) -> tuple[Sheet, Sheet]:
    title = title_of(comparison.experiment)
    return comparison_sheet(comparison, title), fairness_sheet(comparison, title)


def _sheet_files(sheet: Sheet, results: Path) -> Artefacts:
    return {results / "tables" / f"{sheet.name}.{suffix}": text for suffix, text in files_of_sheet(sheet).items()}


def _figure_files(results: Path, name: str, files: Files | None) -> Artefacts:
    return {results / "figures" / f"{name}.{suffix}": content for suffix, content in (files or {}).items()}


def _drawings(study: Study) -> dict[str, Draw]:
    """Return how each figure is drawn, by name."""
    tasks: dict[str, Draw] = {"method": method_diagram, ANATOMY: partial(sides_figure, study.comparisons)}
    tasks[ANATOMY_TOY] = partial(sides_figure, study.comparisons, toy=True)
    for comparison in study.comparisons:
        title = title_of(comparison.experiment)
        for name, kind in KINDS.items():
            tasks[stem_of(comparison, name)] = partial(kind.draw, study, comparison, title)
    return tasks | _latency_drawings(study.results)


def _latency_drawings(results: Path) -> dict[str, Draw]:
    drawings: dict[str, Draw] = {}
    for path in sorted((results / "perf").glob("*.json")):
        try:
            found: dict[str, Any] = json.loads(read_plain(path))
            section = found["sections"].get("latency", {})
            check_name("device", path.stem)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise RecordError(f"{path} is no readable measurement of speed: {error!r}") from error
        device = str(found.get("device", path.stem))
        draw = partial(latency.latency_against_macs, device, section)
        drawings[f"{LATENCY}{path.stem}"] = partial(from_file, path, draw)
    return drawings


def claims_json(verdicts: Sequence[Verdict]) -> str:
    """Return the text of `claims.json`."""
    ledger = {
        "schema": CLAIMS_SCHEMA,
        "correction": "Holm, over all tested claims of a tier",
        "claims": list(map(to_plain, verdicts)),
    }
    return json.dumps(ledger, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write(artefacts: Mapping[Path, bytes]) -> list[Path]:
    """Write the files whose content is new; return their paths.

    Figures that differ in last digits alone stay. Where one format of a figure is new, all are: a short line may change
    no more pixels than a processor does.
    """
    new = {path for path, content in artefacts.items() if not _holds(path, content)}
    drawings = {path.with_suffix("") for path in new if path.suffix in (".svg", ".pdf", ".png")}
    changed = [path for path in artefacts if path in new or path.with_suffix("") in drawings]
    for path in changed:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, artefacts[path], durable=False)  # can be made again
    return changed


def differing(artefacts: Mapping[Path, bytes], results: Path) -> list[str]:
    """Return what is wrong with the files on disk: missing, changed, or without records."""
    wrong = [f"{path} differs from its records" for path, content in artefacts.items() if not _holds(path, content)]
    on_disk = [path for folder in ("tables", "figures", "experiments") for path in sorted((results / folder).glob("*"))]
    return wrong + [f"{path} has no records" for path in on_disk if path not in artefacts]


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and same_drawing(path.suffix, path.read_bytes(), content)
