"""Examples in docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in ("oicsr", "baselines", "benchmarks")
    for path in sorted((ROOT / package).rglob("*.py"))
    if re.search(r"^\s*>>> (?!.*\+SKIP)", path.read_text("utf-8"), re.MULTILINE)
]


def test_there_are_examples() -> None:
    assert "benchmarks.running.console" in MODULES


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_say(name: str) -> None:
    outcome = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert outcome.attempted > 0 and outcome.failed == 0
