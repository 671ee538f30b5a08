"""Runs the notebooks and saves them with their outputs: `make notebooks`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "notebooks"


def run(path: Path, folder: Path) -> Any:
    """Run a notebook in a folder; return it with its outputs and without times.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell raised an error.
    """
    notebook = nbformat.read(path, as_version=4)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", record_timing=False)
    inline = "module://matplotlib_inline.backend_inline"  # figures show, whatever the caller's backend is
    client.execute(cwd=str(folder), env=os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": inline})
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return notebook


def save(notebook: Any, path: Path) -> None:
    """Write a notebook."""
    nbformat.validate(notebook)
    nbformat.write(notebook, path)  # each line of a cell on its own, for the sake of diffs


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        for found in sorted(FOLDER.glob("*.ipynb")):
            sys.stderr.write(f"{found.name}\n")
            save(run(found, Path(scratch)), found)
