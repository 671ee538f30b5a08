"""Figures from fixture records: the same bytes as in the golden file, and none without data."""

from __future__ import annotations

import io
import json
import struct
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Literal

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.layout_engine import LayoutEngine

from benchmarks.analysis.comparison import DRAWN_METHODS, MAIN_METHODS, compare
from benchmarks.records.histories import Details
from benchmarks.records.record import read_records
from benchmarks.reporting import build as report
from benchmarks.reporting.figures import accuracy, channels, latency, style, training_curves
from tests.benchmarks.golden import FIGURES, GOLDEN, digests
from tests.benchmarks.synthetic import experiment, records_of, write_records

pytestmark = pytest.mark.xdist_group("artefacts")  # which are made once, by one worker

EXPECTED = json.loads((GOLDEN / FIGURES).read_text())
NOTHING = Details(Path("nowhere"))


def test_golden_figures_are_of_the_installed_matplotlib() -> None:
    assert EXPECTED["matplotlib"] == mpl.__version__, "look at the figures, then: python -m tests.benchmarks.golden"


@pytest.mark.parametrize("name", sorted(EXPECTED["svg"]))
def test_figure_is_as_in_the_golden_file(artefacts: report.Artefacts, name: str) -> None:
    assert digests(artefacts)[name] == EXPECTED["svg"][name]


def test_every_kind_is_drawn_as_svg_and_png(artefacts: report.Artefacts) -> None:
    assert sorted(digests(artefacts)) == sorted(EXPECTED["svg"])
    kinds = {name.removeprefix("cifar10-resnet56-cpu-") for name in digests(artefacts) if "resnet56-cpu-" in name}
    assert kinds == {f"{kind}.svg" for kind in ("methods", "energy", "joint", "kept", "finetuning", "strengths")}
    assert {"iterative-cpu-iterations.svg", "latency-a-cpu.svg", "method.svg"} <= digests(artefacts).keys()
    for path, content in artefacts.items():
        if path.suffix == ".png":
            assert content.startswith(b"\x89PNG") and path.with_suffix(".svg") in artefacts
            assert artefacts[path.with_suffix(".pdf")].startswith(b"%PDF")
        if path.suffix == ".svg":
            ElementTree.fromstring(content)
            assert b"<dc:date>" not in content


def test_drawing_twice_gives_the_same_bytes() -> None:
    [comparison] = compare(records_of(experiment(macs_kept=(0.5,))))
    first, second = (accuracy.accuracy_against_macs(comparison, "t") for _ in range(2))
    assert first == second


def test_a_figure_is_drawn_as_savefig_draws_it() -> None:
    drawn = []
    for once in (True, False):
        with style.style():
            figure = Figure(figsize=(3, 2), layout="constrained")
            axes = figure.subplots(1, 2)
            axes[0].scatter([0, 1], [0, 2], rasterized=True)
            axes[1].set_xlabel("label")
            drawn.append(style.render(figure) if once else saved(figure))
    assert drawn[0] == drawn[1]
    assert struct.unpack(">II", drawn[0]["png"][16:24]) == (450, 300)  # at 150 dots per inch


def saved(figure: Figure) -> style.Files:
    figure.draw_without_rendering()  # the layout is solved at the screen's resolution
    figure.set_layout_engine("none")
    style.round_places(figure)
    files = {}
    nobody = dict.fromkeys(("CreationDate", "Creator", "Producer"))
    for suffix, metadata in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None}), ("pdf", nobody)):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, metadata=metadata)
        files[suffix] = buffer.getvalue()
    return files


@pytest.mark.parametrize("width", [2.5, 9.0])
def test_no_title_is_wider_than_its_figure(width: float) -> None:
    with style.style():
        figure = Figure(figsize=(width, 2), layout="constrained")
        axes = figure.subplots()
        style.headline(figure, "Digits, small ResNet, at most half of a layer · n = 10 seeds")
        style.render(figure)
        title = figure._suptitle
        assert title is not None
        box = title.get_window_extent()
    assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
    assert box.y0 >= axes.get_window_extent().y1 and box.y1 <= figure.bbox.y1


def test_a_title_keeps_its_own_lines_and_no_number_loses_its_unit() -> None:
    with style.style():
        figure = Figure(figsize=(3.4, 2))
        style.headline(figure, "both sides of every channel before pruning to 30 % of the MACs\nn = 3 seeds")
        title = figure._suptitle
        assert title is not None
    lines = title.get_text().split("\n")
    assert len(lines) > 2 and lines[-1] == "n = 3 seeds" and not any(line.startswith("%") for line in lines)


@pytest.mark.parametrize("few", [1, 2])
def test_methods_of_too_few_seeds_for_a_spread_are_marked_among_others(few: int) -> None:
    records = records_of(experiment())
    [three] = compare(records)
    [mixed] = compare([record for record in records if record.method != "oicsr-gl" or record.seed < few])
    assert style.label_of(three, "oicsr-gl") == "OICSR-GL" and "*" not in style.seeds_text(three)
    assert style.label_of(mixed, "oicsr-gl") == "OICSR-GL *"
    assert style.seeds_text(mixed).endswith("*: fewer than 3, without bars")
    assert style.label_of(mixed, "none") == "No regulariser"


def test_a_method_of_too_few_seeds_at_one_target_is_marked_too() -> None:
    records = records_of(experiment())
    fewer = [r for r in records if (r.method, r.macs_kept, r.seed) != ("oicsr-gl", 0.3, 2)]
    assert style.label_of(compare(fewer)[0], "oicsr-gl") == "OICSR-GL *"


@pytest.mark.parametrize("which", ["x", "y"])
@pytest.mark.parametrize(("low", "high"), [(-20, 130), (95, 104), (-4, 6)])
def test_no_tick_marks_an_impossible_accuracy(which: Literal["x", "y"], low: float, high: float) -> None:
    axes = Figure().subplots()
    axes.set(xlim=(low, high), ylim=(low, high))
    accuracy._within_accuracies(axes, which)
    ticks = axes.get_xticks() if which == "x" else axes.get_yticks()
    assert len(ticks) > 1 and min(ticks) >= 0 and max(ticks) <= 100


@pytest.mark.parametrize(("seeds", "bars"), [(2, False), (3, True)])
def test_curves_have_bars_where_seeds_are_enough_for_a_spread(seeds: int, bars: bool) -> None:
    axes = Figure().subplots()
    training_curves._curve(axes, [[0.5, 0.6 + 0.1 * seed] for seed in range(seeds)], style.look_of("none"), 0, 1)
    [drawn] = axes.containers
    assert isinstance(drawn, ErrorbarContainer) and drawn.has_yerr == bars


def test_titles_count_the_seeds_that_a_figure_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [r for r in records_of(experiment()) if r.method != "random" or r.seed == 0]
    write_records(tmp_path, records)
    [comparison] = compare(read_records(tmp_path))
    told: list[str] = []
    panels: list[str] = []

    def listen(figure: Figure, text: str) -> None:
        told.append(text)
        panels.extend(axes.get_title() for axes in figure.axes)

    monkeypatch.setattr(channels, "headline", listen)
    channels.channel_energy_curves(comparison, "t", Details(tmp_path))
    assert told[0].endswith("profile cpu, n = 3 seeds")  # random channels are not drawn
    assert panels == ["", "of one seed, the first"]
    channels.kept_channels(comparison, "t")
    assert told[1].endswith("n = 1 to 3 seeds; *: fewer than 3")  # a figure without any bars


def test_channels_with_one_side_have_no_place_between_two() -> None:
    both, none = np.array([1.0, 2.0]), np.zeros(2)
    kept = np.array([True, False])
    layers = {"values": (both, both, kept), "queries": (both, none, kept)}
    assert channels._with_both_sides(layers).keys() == {"values"}


def test_a_network_from_scratch_has_no_point_before_it_is_trained() -> None:
    [comparison] = compare(records_of(experiment(methods=("oicsr-gl", "scratch-e"), macs_kept=(0.5,))))
    points = {}
    for state in ("pruned", "finetuned"):
        axes = Figure().subplots()
        accuracy._dots(axes, comparison, 0.5, ["oicsr-gl", "scratch-e"], (state,))
        points[state] = len(axes.containers)
    assert points == {"pruned": 1, "finetuned": 2}


@pytest.mark.parametrize("width", [2.5, 6.6])
def test_no_legend_is_wider_than_its_figure(width: float) -> None:
    with style.style():
        figure = Figure(figsize=(width, 4), layout="constrained")
        axes = figure.subplots()
        for method in DRAWN_METHODS:
            axes.plot([0, 1], label=style.look_of(method).label[:18])
        style.legend_below(figure, axes)
        style.render(figure)
        [legend] = figure.legends
        box = legend.get_window_extent()
    assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1


def test_letters_are_readable_in_a_column_of_a_paper() -> None:
    column = 3.3  # inches
    assert style.SMALL * column / style.WIDTH == pytest.approx(6)


def test_figures_of_one_seed_say_so() -> None:
    [one] = compare(records_of(experiment(seeds=(0,))))
    [three] = compare(records_of(experiment()))
    assert "one seed only" in style.seeds_text(one) and style.seeds_text(three) == "profile cpu, n = 3 seeds"


def test_old_records_show_that_nothing_was_recalibrated() -> None:
    [old] = compare(records_of(experiment(), protocol=1))
    assert old.table["recalibrated_top1"].isna().all()
    assert accuracy.accuracy_against_macs(old, "t").keys() == {"svg", "png", "pdf"}


def test_main_methods_look_different() -> None:
    looks = [style.look_of(method) for method in MAIN_METHODS]
    assert len({look.colour for look in looks}) == len({look.marker for look in looks}) == len(MAIN_METHODS)
    assert style.look_of("fpgm") == style.look_of("fpgm") and style.look_of("fpgm").colour in style.MORE_COLOURS
    assert looks[0].ours and not style.look_of("oicsr-gl-norm").ours


def test_without_data_nothing_is_drawn() -> None:
    [comparison] = compare(records_of(experiment()))
    assert training_curves.finetuning_curves(comparison, "t", NOTHING) is None
    assert channels.joint_energies(comparison, "t", NOTHING) is None
    assert training_curves.iterations(comparison, "t") is None
    assert latency.latency_against_macs("device", {"rows": []}) is None
    assert training_curves.strength_curves({"scores": {}, "chosen": {}, "seeds": []}, "t") is None


def test_channels_for_a_share_of_the_energy() -> None:
    assert channels.channels_for(np.array([9.0, 1.0, 0.0, 0.0])) == 0.25
    assert channels.channels_for(np.array([8.0, 1.0, 1.0, 0.0])) == 0.5
    assert channels.channels_for(np.zeros(4)) == 1.0


def test_channels_at_the_border_of_the_plot_are_said() -> None:
    kept, high = np.array([True, True]), np.array([1.0, 2.0])
    assert channels.at_floor({"oicsr-gl": {"conv": (high, high, kept)}}) == ""
    panels = {"none": {"conv": (high, high, kept)}, "oicsr-gl": {"conv": (high, np.array([0.0, 2.0]), kept)}}
    assert channels.at_floor(panels) == "\nenergies below 1e-05 are drawn at 1e-05"


def test_rank_correlation() -> None:
    values = np.array([1.0, 5.0, 2.0, 9.0])
    assert channels.rank_correlation(values, values**3) == pytest.approx(1)
    assert channels.rank_correlation(values, -values) == pytest.approx(-1)
    # three channels at the border share rank 2: deviations -1 -1 -1 1 2 and 0 -1 -2 1 2, so 8 over the root of 8 x 10
    border, inward = np.array([1e-5, 1e-5, 1e-5, 2.0, 3.0]), np.array([0.3, 0.2, 0.1, 4.0, 5.0])
    assert channels.rank_correlation(border, inward) == pytest.approx(8 / 80**0.5)
    assert channels.rank_correlation(np.ones(3), values[:3]) == 0


def test_last_bits_of_places_do_not_reach_the_files() -> None:
    drawn = []
    for noise in (0.0, 1e-12):
        with style.style():
            figure = Figure(figsize=(3, 2))
            axes = figure.add_axes((0.1234564 + noise, 0.2, 0.5, 0.6))
            axes.plot([0, 1], [0, 1])
            figure.set_layout_engine(_Unmoved())
            drawn.append(style.render(figure))
        assert axes.get_position().bounds[0] == pytest.approx(0.123456, abs=1e-9)
    assert drawn[0] == drawn[1]


class _Unmoved(LayoutEngine):
    """Leaves all axes where they are."""

    _adjust_compatible = _colorbar_gridspec = True

    def execute(self, fig: Figure) -> None:
        """Do nothing."""
