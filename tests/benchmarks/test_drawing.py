"""Figures that are drawn side by side."""

from __future__ import annotations

import os
import sys

import pytest
from matplotlib.figure import Figure

from benchmarks import drawing
from benchmarks.figures import Files, render, style


def curve(power: int) -> Files:
    """Return a figure that differs from the others."""
    with style():
        figure = Figure(figsize=(2, 2), layout="constrained")
        figure.subplots().plot([x**power for x in range(9)], label=f"power {power}")
        return render(figure)


def process() -> Files:
    """Return where a figure is drawn."""
    return {"png": str(os.getpid()).encode()}


def refuse() -> Files:
    """Fail as a figure may."""
    raise ValueError("no such column: 'top2'")


def nothing() -> None:
    """Draw nothing."""


@pytest.mark.skipif(sys.platform != "linux", reason="figures are drawn one by one elsewhere")
def test_figures_drawn_side_by_side_are_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks: dict[str, drawing.Draw] = {f"curve-{power}": lambda power=power: curve(power) for power in (1, 2, 3)}
    tasks |= {"nothing": nothing, "process": process}
    monkeypatch.setattr(drawing, "available_cores", lambda: 1)
    one_by_one = drawing.draw_all(tasks)
    monkeypatch.setattr(drawing, "available_cores", lambda: 2)
    side_by_side = drawing.draw_all(tasks)
    here = {"png": str(os.getpid()).encode()}
    assert one_by_one.pop("process") == here and side_by_side.pop("process") != here
    assert one_by_one == side_by_side and list(one_by_one) == list(side_by_side)
    assert len({files["svg"] for files in one_by_one.values() if files}) == 3


@pytest.mark.parametrize("cores", [1, 2])
def test_error_of_a_figure_comes_through(monkeypatch: pytest.MonkeyPatch, cores: int) -> None:
    monkeypatch.setattr(drawing, "available_cores", lambda: cores)
    with pytest.raises(ValueError, match="no such column: 'top2'"):
        drawing.draw_all({"a": nothing, "b": refuse, "c": nothing})
    assert not drawing._tasks


def test_nothing_to_draw() -> None:
    assert drawing.draw_all({}) == {}
