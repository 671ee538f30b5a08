"""Figures are drawn side by side by copies of the process: the same files, and an error is an error."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

import pytest

from benchmarks.reporting import drawing

# in a process of its own: that of the tests has threads, and then nothing is copied
SIDE_BY_SIDE = """
import os, sys
from functools import partial
from unittest.mock import patch
from matplotlib.figure import Figure
from benchmarks.reporting import drawing
from benchmarks.reporting.figures.style import render, style

def draw(number):
    if number == 3:
        return None
    if number == int(sys.argv[1]):
        raise ValueError(f"figure {number}")
    with style():
        figure = Figure()
        figure.subplots().plot([0, number])
        return {**render(figure), "process": os.getpid()}

drawings = {f"figure {number}": partial(draw, number) for number in range(drawing.FEW + 4)}
with patch.object(drawing, "available_cores", return_value=2):
    found = drawing.draw_all(drawings)
assert list(found) == list(drawings) and found["figure 3"] is None
processes = {files.pop("process") for files in found.values() if files}
assert os.getpid() not in processes and 1 <= len(processes) <= 2
for name, draw in drawings.items():
    files = draw()
    assert found[name] == (files and {kind: files[kind] for kind in ("svg", "png", "pdf")})
print("equal")
"""


def run(wrong: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SIDE_BY_SIDE, str(wrong)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are copied on Linux alone")
def test_figures_drawn_side_by_side_are_the_same() -> None:
    done = run(-1)
    assert done.stdout == "equal\n", done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="processes are copied on Linux alone")
def test_an_error_in_a_figure_ends_the_report() -> None:
    done = run(7)
    assert done.returncode == 1 and "ValueError: figure 7" in done.stderr


def test_few_figures_are_drawn_in_this_process() -> None:
    drawings = {"a": partial(dict, svg=b"a"), "b": lambda: None}
    assert drawing.draw_all(drawings) == {"a": {"svg": b"a"}, "b": None}
