"""The notebooks run from start to end, and are saved with the outputs of such a run."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs" / "_site"))

from run_notebooks import FOLDER, run  # noqa: E402

from tests.slow import but_few_slow  # noqa: E402

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
QUICK = [FOLDER / "prune_your_own_network.ipynb"]


def printed(notebook: Any) -> list[str]:
    """Return how many outputs of which kind each cell of code has."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [" ".join(output["output_type"] for output in cell["outputs"]) for cell in cells]


def test_there_are_two() -> None:
    assert len(NOTEBOOKS) == 2


@pytest.mark.parametrize("path", but_few_slow(NOTEBOOKS, QUICK), ids=lambda path: path.stem)
def test_a_notebook_runs_and_its_saved_outputs_are_of_such_a_run(path: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the client's own
        fresh = run(path, tmp_path)
    saved = nbformat.read(path, as_version=4)
    assert printed(saved) == printed(fresh) and any(printed(saved))
    assert [cell["source"] for cell in saved["cells"]] == [cell["source"] for cell in fresh["cells"]]
