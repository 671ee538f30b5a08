"""One results folder, and all that is made from it, for every test that looks at it."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import pytest
from matplotlib.figure import Figure

from benchmarks.reporting import build as report
from tests.benchmarks.golden import build, fixture_results

BLANK = b"<svg xmlns='http://www.w3.org/2000/svg'></svg>"


@pytest.fixture(scope="session")
def fixture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixture_results(tmp_path_factory.mktemp("fixture"))


@pytest.fixture
def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay figures out but leave their files blank: four fifths of a small report's time, where only pages are read."""

    def blank(self: Figure, file: BinaryIO, **options: object) -> None:
        file.write(BLANK)

    monkeypatch.setattr(Figure, "savefig", blank)
    # the one figure that shows no records is the same in every report
    monkeypatch.setattr(report, "method_diagram", lambda: dict.fromkeys(("svg", "png", "pdf"), BLANK))


@pytest.fixture(scope="session")
def artefacts(fixture_folder: Path) -> report.Artefacts:
    return build(fixture_folder)
