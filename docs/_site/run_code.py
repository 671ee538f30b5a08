"""Runs the Python code of a page as one program, and compares what it prints with what the page says.

A `text` block right after a `python` block is what that block prints; `...` stands for anything.
`python docs/_site/run_code.py PAGE.md` runs a page and fills its empty `text` blocks.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import sys
import warnings
from pathlib import Path
from typing import Any

CODE = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<output>.*?)^```\n)?", re.MULTILINE | re.DOTALL)


def run_page(text: str, page: str, names: dict[str, Any] | None = None) -> list[tuple[str, str | None, str]]:
    """Run all Python blocks of a page in one namespace.

    Args:
        text: The page.
        page: Its name, for tracebacks.
        names: Names that its code expects to be defined.

    Returns:
        For each block: the code, the output that the page gives (None: it gives none), and what the block printed.
    """
    import torch

    torch.manual_seed(0)
    scope = {"__name__": "__main__", **(names or {})}
    found = []
    for match in CODE.finditer(text):
        line = text.count("\n", 0, match.start("code"))
        code = compile("\n" * line + match["code"], page, "exec")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(code, scope)
        found.append((match["code"], match["output"], printed.getvalue()))
    return found


def differs(expected: str | None, printed: str) -> bool:
    """Return whether a block printed something else than its page says."""
    if expected is None:
        return False
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return not doctest.OutputChecker().check_output(expected, printed, flags)


def fill(path: Path) -> None:
    """Write what the blocks print into the empty `text` blocks behind them."""
    text = path.read_text("utf-8")
    outputs = iter(run_page(text, str(path)))

    def replace(match: re.Match[str]) -> str:
        _, expected, printed = next(outputs)
        if expected is None or expected.strip():
            if differs(expected, printed):
                sys.stderr.write(f"{path}: the page says\n{expected}but the code prints\n{printed}\n")
            return match[0]
        return f"```python\n{match['code']}```\n\n```text\n{printed.rstrip()}\n```\n"

    path.write_text(CODE.sub(replace, text), "utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        fill(Path(name))
