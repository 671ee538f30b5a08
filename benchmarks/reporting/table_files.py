"""A table as people read it, and its three files: CSV (numbers only), Markdown, LaTeX for booktabs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

NOT_RUN = "not run"

SPECIAL = {
    "&": r"\&",
    "%": r"\%",
    "_": r"\_",
    "#": r"\#",
    "±": r"$\pm$",
    "≈": r"$\approx$",
    "−": "$-$",
    "×": r"$\times$",
}

BOLD = re.compile(r"\*\*(.+?)\*\*")

LINK = re.compile(r"\[([^\]]*)\]\(([^)]*)\)")


@dataclass(frozen=True)
class Sheet:
    """A table.

    Attributes:
        name: Of its files.
        title: Above it.
        header: Names of the columns.
        rows: Cells as Markdown: `**bold**` and links only. A row of one cell is a heading inside the table.
        notes: What a reader must know.
        numbers: The same as values: accuracies in [0, 1], unless a column's name says per cent.
    """

    name: str
    title: str
    header: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    notes: str
    numbers: pd.DataFrame = field(default_factory=pd.DataFrame)


def sheet_csv(sheet: Sheet) -> str:
    """Return the numbers, six significant digits; `nan` where there is none (such as a deviation of one seed)."""
    return str(sheet.numbers.to_csv(index=False, float_format="%.6g", lineterminator="\n", na_rep="nan"))


def sheet_markdown(sheet: Sheet) -> str:
    """Return the table as Markdown, its notes below."""
    width = len(sheet.header)
    align = ["---", *["---:"] * (width - 1)]
    body = [row if len(row) > 1 else [f"*{row[0]}*", *[""] * (width - 1)] for row in sheet.rows]
    lines = [_markdown_row(row) for row in (sheet.header, align, *body)]
    return "\n".join([*lines, "", sheet.notes, ""])


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def sheet_latex(sheet: Sheet) -> str:
    """Return the table as LaTeX for the booktabs package."""
    width = len(sheet.header)
    lines = [
        *[f"% {line}" for line in sheet.notes.splitlines()],
        r"\begin{tabular}{l" + "r" * (width - 1) + "}",
        r"\toprule",
        " & ".join(map(_latex_cell, sheet.header)) + r" \\",
        r"\midrule",
        *(_latex_row(row, width) for row in sheet.rows),
        r"\bottomrule",
        r"\end{tabular}",
        "",
    ]
    return "\n".join(lines)


def _latex_row(row: Sequence[str], width: int) -> str:
    if len(row) == 1:
        return rf"\addlinespace \multicolumn{{{width}}}{{l}}{{\textit{{{_latex_cell(row[0])}}}}} \\"
    return " & ".join(map(_latex_cell, row)) + r" \\"


def _latex_cell(text: str) -> str:
    plain = LINK.sub(r"\1", text)
    escaped = "".join(SPECIAL.get(character, character) for character in plain)
    return BOLD.sub(r"\\textbf{\1}", escaped)


def files_of_sheet(sheet: Sheet) -> dict[str, bytes]:
    """Return the contents of the three files by suffix."""
    return {
        "csv": sheet_csv(sheet).encode(),
        "md": f"# {sheet.title}\n\n{sheet_markdown(sheet)}".encode(),
        "tex": sheet_latex(sheet).encode(),
    }
