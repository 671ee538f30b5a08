"""The figure of the sides that a penalty needs: differences by hand, and nothing where nothing can be told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from baselines.anatomy import GROUPS
from benchmarks.analysis.comparison import Comparison, compare
from benchmarks.methods.registry import METHODS
from benchmarks.reporting.figures.anatomy import PENALTIES, ROWS, side_effects, sides_figure
from tests.benchmarks.synthetic import experiment, records_of


def study(gains: dict[str, float], profile: str = "cpu") -> Comparison:
    """Return runs on digits at two targets whose recalibrated networks have 0.8, and by method more."""
    records = []
    for record in records_of(experiment("digits", methods=("oicsr-gl", *gains), macs_kept=(0.5, 0.3)), profile):
        top1 = 0.8 + gains.get(record.method, 0) * (1 if record.macs_kept == 0.5 else 3)
        states = {**record.states, "recalibrated": {**record.states["recalibrated"], "top1": top1}}
        config = {**record.config, "dataset": "digits", "model": "digits-resnet"}
        records.append(replace(record, states=states, config=config))
    return compare(records)[0]


def test_differences_are_averaged_over_the_targets() -> None:
    found = side_effects(study({"oicsr-gl-norm": 0.01, "gl-out": -0.02, "none": 0.5}))
    assert list(found) == ["gl-out", "oicsr-gl-norm"]  # none is no group of sides
    assert found["oicsr-gl-norm"].mean == pytest.approx(0.02) and found["gl-out"].mean == pytest.approx(-0.04)
    assert found["gl-out"].seeds == (3,)


def test_only_runs_from_the_same_dense_network_are_paired() -> None:
    usual = study({"gl-out": -0.02})
    records = [
        replace(r, states={**r.states, "dense": {**r.states["dense"], "loss": 9.0}})
        if (r.method, r.seed) == ("gl-out", 0)
        else r
        for r in usual.records
    ]
    assert side_effects(usual)["gl-out"].seeds == (3,) and side_effects(compare(records)[0]) == {}


def test_every_group_of_sides_has_its_row_and_every_row_its_groups() -> None:
    assert {sides for sides, _ in PENALTIES.values()} == set(ROWS) and len(ROWS) == 7  # all subsets but the empty one
    assert set(PENALTIES) == {"oicsr-gl", *(group.name for group in GROUPS)}
    assert all(name in METHODS and f"{name}-prox" in METHODS for name in PENALTIES)


def test_it_is_drawn_with_a_legend_of_what_is_there() -> None:
    comparison = study({"oicsr-gl-norm": 0.01, "gl-separate": 0.02, "oicsr-gl-prox": 0.03})
    files = sides_figure([comparison, comparison], toy=True)
    assert files is not None and set(files) == {"svg", "png", "pdf"}
    assert files == sides_figure([comparison, comparison], toy=True)


def test_digits_and_natural_images_have_a_figure_each() -> None:
    digits = study({"oicsr-gl-norm": 0.01, "gl-out": 0.02})
    natural = compare(records_of(experiment(methods=("oicsr-gl", "oicsr-gl-norm", "gl-out"))))[0]
    assert sides_figure([digits]) is None and sides_figure([natural], toy=True) is None
    assert sides_figure([digits, natural]) == sides_figure([natural]) != sides_figure([digits, natural], toy=True)


def test_without_evidence_or_rivals_nothing_is_drawn() -> None:
    assert sides_figure([study({"oicsr-gl-norm": 0.01, "gl-out": 0.02}, "quick")], toy=True) is None
    assert sides_figure([]) is None and sides_figure([study({"none": 0.1})]) is None
    assert sides_figure([study({"oicsr-gl-norm": 0.01, "gl-out": 0.02}, "quick")]) is None
