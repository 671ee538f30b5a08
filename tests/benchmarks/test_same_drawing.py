"""Figures that another processor draws: last digits may differ, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

from benchmarks.reporting.build import write
from benchmarks.reporting.figures.style import Files, render
from benchmarks.reporting.same_drawing import same_drawing


def draw(x: float = 0.5, label: str = "a", colour: str = "#1e7702", name: str = "curve") -> Files:
    figure, axes = plt.subplots(figsize=(3, 2))
    axes.plot([0.1, x, 1.0], [1.0, 2.0, 4.0], marker="o", color=colour, label=label)
    axes.set(xscale="log", title=name)
    axes.legend()
    files = render(figure)
    plt.close(figure)
    return files


KINDS = ("svg", "pdf", "png")


@pytest.mark.parametrize("kind", KINDS)
def test_a_last_digit_is_no_difference(kind: str) -> None:
    one, other = draw()[kind], draw(0.5 + 1e-8)[kind]
    if kind != "png":
        assert one != other  # else nothing is tried here
    assert same_drawing(f".{kind}", one, other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "change",
    [{"x": 0.7}, {"label": "b"}, {"colour": "#ffee00"}, {"name": "curves"}],
    ids=list,
)
def test_whatever_a_reader_could_see_is_one(kind: str, change: dict[str, Any]) -> None:
    assert not same_drawing(f".{kind}", draw()[kind], draw(**change)[kind])


@pytest.mark.parametrize("change", [{"x": 0.501}, {"colour": "#1e7703"}], ids=list)
@pytest.mark.parametrize("kind", ["svg", "pdf"])
def test_drawings_of_lines_tell_more_than_the_eye(kind: str, change: dict[str, Any]) -> None:
    assert not same_drawing(f".{kind}", draw()[kind], draw(**change)[kind])


def test_what_is_no_drawing_needs_the_same_bytes() -> None:
    assert same_drawing(".md", b"1.00001", b"1.00001") and not same_drawing(".md", b"1.00001", b"1.00002")
    assert not same_drawing(".png", draw()["png"], b"no image")
    assert not same_drawing(".svg", draw()["svg"], b"")
    assert not same_drawing(".pdf", draw()["pdf"], b"")


def test_where_one_format_of_a_figure_is_new_all_are_written(tmp_path: Path) -> None:
    """Of a line that changes fewer pixels than a processor may, the picture would stay as it was."""
    old, near, other = draw(), draw(0.5003), draw(0.5 + 1e-8)
    paths = {kind: tmp_path / f"figure.{kind}" for kind in KINDS}
    for kind, path in paths.items():
        path.write_bytes(old[kind])
    assert same_drawing(".png", old["png"], near["png"]) and old["png"] != near["png"]
    assert not write({paths[kind]: other[kind] for kind in KINDS})
    assert set(write({paths[kind]: near[kind] for kind in KINDS})) == set(paths.values())
    assert all(path.read_bytes() == near[kind] for kind, path in paths.items())
