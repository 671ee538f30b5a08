"""A table and its three files: CSV (numbers only), Markdown, LaTeX for booktabs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pandas as pd

from benchmarks.escape import for_csv, for_latex, for_markdown, one_line
from benchmarks.reporting.numbers import NOT_RUN as NOT_RUN

BOLD = re.compile(r"\*\*([^*]+)\*\*")


@dataclass(frozen=True)
class Sheet:
    """A table.

    Attributes:
        name: Of its files.
        title: Above it; a text.
        header: Names of the columns.
        rows: Cells as texts, each escaped for the format it is written in; one that is `**like this**` from end to end
            is bold. A row of one cell is a heading inside the table.
        notes: What a reader must know about this table, as Markdown; what comes from a file must be escaped in it.
        numbers: The same as values: accuracies in [0, 1], unless a column's name says per cent.
        warning: What stands first, above the table; nothing where all is well.
        common: What a reader must know about every table of its kind: in its files, and once on a page.
        texts: How many of the first columns hold words, aligned on the left; the others hold numbers.
        groups: What each row belongs to, where a page shows a table per group (`parts_of`); the files have one table.
    """

    name: str
    title: str
    header: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    notes: str
    numbers: pd.DataFrame = field(default_factory=pd.DataFrame)
    warning: str = ""
    common: str = ""
    texts: int = 1
    groups: tuple[str, ...] = ()


def parts_of(sheet: Sheet) -> dict[str, Sheet]:
    """Return a table per group of rows, with the columns in which that group has anything, and no notes but these."""
    parts = {}
    for group in dict.fromkeys(sheet.groups):
        rows = [row for row, own in zip(sheet.rows, sheet.groups, strict=True) if own == group]
        run = [column for column in range(len(sheet.header)) if any(row[column] != NOT_RUN for row in rows)]
        absent = [title for column, title in enumerate(sheet.header) if column not in run]
        parts[group] = replace(
            sheet,
            header=tuple(sheet.header[column] for column in run),
            rows=[[row[column] for column in run] for row in rows],
            notes=for_markdown(f"Not run: {', '.join(absent)}.") if absent else "",
        )
    return parts


def sheet_csv(sheet: Sheet) -> str:
    """Return the numbers, six significant digits; `nan` where there is none (such as a deviation of one seed)."""
    numbers = sheet.numbers.map(lambda value: for_csv(value) if isinstance(value, str) else value).rename(
        columns=for_csv
    )
    return str(numbers.to_csv(index=False, float_format="%.6g", lineterminator="\n", na_rep="nan"))


def sheet_markdown(sheet: Sheet, *, with_common: bool = False) -> str:
    """Return the table as Markdown, a warning above it and its notes below."""
    width = len(sheet.header)
    align = [*["---"] * sheet.texts, *["---:"] * (width - sheet.texts)]
    cells = [[_markdown_cell(cell) for cell in row] for row in sheet.rows]
    body = [row if len(row) > 1 else [f"*{row[0]}*", *[""] * (width - 1)] for row in cells]
    lines = [f"| {' | '.join(row)} |" for row in (list(map(for_markdown, sheet.header)), align, *body)]
    first = [f"**{sheet.warning}**", ""] if sheet.warning else []
    notes = [text for text in (sheet.common if with_common else "", sheet.notes) if text]
    return "\n".join([*first, *lines, "", *[line for text in notes for line in (text, "")]])


def _markdown_cell(text: str) -> str:
    bold = BOLD.fullmatch(text)
    return f"**{for_markdown(bold[1])}**" if bold else for_markdown(text)


def sheet_latex(sheet: Sheet) -> str:
    """Return the table as LaTeX for the booktabs package."""
    width = len(sheet.header)
    lines = [
        *[f"% {_latex_comment(text)}" for text in (sheet.warning, sheet.common, *sheet.notes.splitlines()) if text],
        r"\begin{tabular}{" + "l" * sheet.texts + "r" * (width - sheet.texts) + "}",
        r"\toprule",
        " & ".join(map(_latex_cell, sheet.header)) + r" \\",
        r"\midrule",
        *(_latex_row(row, width) for row in sheet.rows),
        r"\bottomrule",
        r"\end{tabular}",
        "",
    ]
    return "\n".join(lines)


def _latex_comment(text: str) -> str:
    """Return a text without what is a command where the comment sign is lost."""
    return one_line(text).replace("\\", "/")


def _latex_row(row: Sequence[str], width: int) -> str:
    if len(row) == 1:
        return rf"\addlinespace \multicolumn{{{width}}}{{l}}{{\textit{{{_latex_cell(row[0])}}}}} \\"
    return " & ".join(map(_latex_cell, row)) + r" \\"


def _latex_cell(text: str) -> str:
    bold = BOLD.fullmatch(text)
    return rf"\textbf{{{for_latex(bold[1])}}}" if bold else for_latex(text)


def files_of_sheet(sheet: Sheet) -> dict[str, bytes]:
    """Return the contents of the three files by suffix."""
    return {
        "csv": sheet_csv(sheet).encode(),
        "md": f"# {for_markdown(sheet.title)}\n\n{sheet_markdown(sheet, with_common=True)}".encode(),
        "tex": sheet_latex(sheet).encode(),
    }
