"""One results folder, and all that is made from it, for every test that looks at it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.reporting import build as report
from tests.benchmarks.golden import build, fixture_results


@pytest.fixture(scope="session")
def fixture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixture_results(tmp_path_factory.mktemp("fixture"))


@pytest.fixture(scope="session")
def artefacts(fixture_folder: Path) -> report.Artefacts:
    return build(fixture_folder)
