"""Functions and files stay short enough to be read at once."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("oicsr", "baselines", "benchmarks")
LONGEST_BODY, MEDIAN_BODY, LONGEST_FILE = 40, 8, 450  # lines
LONGEST_TEST_BODY, LONGEST_TEST_FILE = 60, 700


def bodies(source: str) -> Iterator[tuple[str, int]]:
    """Yield the name of each function, and the lines of its body without its docstring."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[ast.get_docstring(node, clean=False) is not None :]
            yield node.name, (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize(("package", "longest"), [*((p, LONGEST_BODY) for p in PACKAGES), ("tests", LONGEST_TEST_BODY)])
def test_functions_are_short(package: str, longest: int) -> None:
    found = {
        f"{path.relative_to(ROOT)} {name}": lines
        for path in sorted((ROOT / package).rglob("*.py"))
        for name, lines in bodies(path.read_text("utf-8"))
    }
    assert {name: lines for name, lines in found.items() if lines > longest} == {}
    assert statistics.median(found.values()) <= MEDIAN_BODY


@pytest.mark.parametrize(("package", "longest"), [*((p, LONGEST_FILE) for p in PACKAGES), ("tests", LONGEST_TEST_FILE)])
def test_files_are_short(package: str, longest: int) -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines())
        for path in sorted((ROOT / package).rglob("*.py"))
    }
    assert len(lengths) > 20 and {name: lines for name, lines in lengths.items() if lines > longest} == {}


def test_a_docstring_is_not_counted() -> None:
    source = 'def f():\n    """One.\n\n    Two.\n    """\n    a = 1\n    return a\n\n\ndef g():\n    """Only this."""\n'
    assert dict(bodies(source)) == {"f": 2, "g": 0}
