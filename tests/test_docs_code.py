"""The Python code of the documentation runs, and prints what the pages say."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs" / "_site"))

from draw_method import ASSETS, THEMES, draw  # noqa: E402
from run_code import CODE, differs, run_page  # noqa: E402

ELSEWHERE = {"custom_operators.md"}  # tests/oicsr/test_custom_operators.py runs it, with its rules taken back
PAGES = [
    path
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    if path.name not in ELSEWHERE and CODE.search(path.read_text("utf-8"))
]


def in_a_loop() -> dict[str, Any]:
    """Return what the README's second example finds in a user's training loop."""
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 3), nn.Flatten())
    x, y = torch.randn(2, 3, 8, 8), torch.tensor([0, 1])
    return {"model": model, "example_inputs": x[:1], "criterion": nn.CrossEntropyLoss(), "x": x, "y": y}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Work in a folder of the test's own, and take random weights where an example downloads trained ones."""
    import timm

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **options: create(name, **options))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_code_prints_what_the_page_says(path: Path) -> None:
    names = in_a_loop() if path.name == "README.md" else {}
    wrong = [
        (code, expected, printed)
        for code, expected, printed in run_page(path.read_text("utf-8"), str(path), names)
        if differs(expected, printed)
    ]
    assert wrong == []


def test_what_a_page_says_wrongly_is_found() -> None:
    page = "```python\nprint(1)\n```\n\n```text\n2\n```\n\n```python\nprint(0.917)\n```\n\n```text\n0.9...\n```\n"
    assert [differs(expected, printed) for _, expected, printed in run_page(page, "page")] == [True, False]


def test_the_guide_is_among_the_pages() -> None:
    names = {path.name for path in PAGES}
    assert {"README.md", "index.md", "first_steps.md", "prune_your_own.md", "after_surgery.md"} <= names


@pytest.mark.parametrize("theme", THEMES)
def test_the_picture_is_what_its_program_draws(theme: str) -> None:
    assert (ASSETS / f"method-{theme}.svg").read_text("utf-8") == draw(theme)
