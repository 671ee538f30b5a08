"""Predictions of the anatomy: outcomes by hand, both kinds of network apart, equality in both directions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.analysis.claims import FIRST_EPOCH
from benchmarks.analysis.predictions import PREDICTIONS, Prediction, outcomes
from benchmarks.methods.registry import find_method
from benchmarks.records.histories import Details
from benchmarks.records.record import Record, read_record, write_record
from benchmarks.records.rows import EpochRow
from benchmarks.reporting.anatomy import BEGIN, END, outcome_lines, with_outcomes
from tests.benchmarks.synthetic import experiment, records_of

MORE = Prediction("A1", "oicsr-gl-norm", "oicsr-gl", "more")
EQUAL = replace(MORE, kind="equal")


def records(model: str, gain: float) -> list[Record]:
    """Return runs on digits whose recalibrated networks have 0.8, and with the scale more."""
    made = records_of(experiment("digits", methods=("oicsr-gl", "oicsr-gl-norm"), macs_kept=(0.5,), seeds=range(5)))
    found = []
    for record in made:
        top1 = 0.8 + (gain + 0.0001 * record.seed if record.method == "oicsr-gl-norm" else 0)
        states = {**record.states, "recalibrated": {**record.states["recalibrated"], "top1": top1}}
        found.append(replace(record, config={**record.config, "model": model, "dataset": "digits"}, states=states))
    return found


@pytest.mark.parametrize(
    ("gain", "more", "equal"),
    [(0.05, "supported", "refuted"), (0.0, "refuted", "supported"), (-0.05, "refuted", "refuted")],
)
def test_more_and_equal(tmp_path: Path, gain: float, more: str, equal: str) -> None:
    found = outcomes(records("digits-batchnorm", gain), Details(tmp_path), [MORE, EQUAL])
    assert [outcome.verdict for outcome in found] == [more, equal]
    effect = found[0].finding.effect
    assert effect is not None and effect.mean == pytest.approx(gain + 0.0002)


@pytest.mark.parametrize("model", ["digits-plain", "digits-vit"])
def test_networks_with_and_without_normalisation_are_judged_apart(tmp_path: Path, model: str) -> None:
    both = [MORE, replace(MORE, plain=True)]
    found = outcomes(records(model, 0.05), Details(tmp_path), both)
    assert [outcome.verdict for outcome in found] == ["not run", "supported"]


def natural(record: Record) -> Record:
    """Return a record as it would be of CIFAR-10, with a dense network near the published accuracy."""
    states = {**record.states, "dense": {**record.states["dense"], "top1": 0.9}}
    config = {**record.config, "model": "resnet20", "dataset": "cifar10"}
    return replace(record, experiment="natural", config=config, states=states)


def test_tiers_are_told_apart(tmp_path: Path) -> None:
    toy = records("digits-batchnorm", 0.05)
    one_network = [natural(record) for record in toy if record.seed == 0]
    found = outcomes([*toy, *one_network], Details(tmp_path), [MORE])
    assert [(o.finding.tier, o.verdict, o.finding.n) for o in found] == [
        ("toy", "supported", 5),
        ("small", "inconclusive", 1),
    ]


def test_rescaling_is_judged_after_the_first_epoch(tmp_path: Path) -> None:
    """As it is 0.8 after one epoch; rescaled 0.85, 0.851, ..."""
    made = []
    for rescale, first, step in (("dense-norm", 0.85, 0.001), ("none", 0.8, 0.0)):
        for record in (r for r in records("digits-batchnorm", 0.0) if r.method == "oicsr-gl"):
            named = replace(record, experiment=f"digits-{rescale}", epochs={"finetune": 2})
            named = replace(named, config={**record.config, "rescale": rescale})
            curve = (first + step * record.seed, 0.9)
            rows = [EpochRow("finetune", 0, i + 1, 0.01, 1.0, 0.0, 0.5, 1.0, top1, 1.0) for i, top1 in enumerate(curve)]
            made.append(read_record(write_record(tmp_path, named, rows)))
    rescaled = Prediction("A9", "oicsr-gl", "oicsr-gl", "more", rescaling=True, measure=FIRST_EPOCH)
    [outcome] = outcomes(made, Details(tmp_path), [rescaled])
    assert outcome.verdict == "supported" and outcome.finding.effect is not None
    assert outcome.finding.effect.mean == pytest.approx(0.052)
    assert "OICSR-GL, rescaled > as it is" in "\n".join(outcome_lines([outcome]))


def test_every_prediction_names_methods_that_exist() -> None:
    assert all(find_method(name).title for p in PREDICTIONS for name in (p.ours, p.rival))


def test_outcomes_stand_between_the_markers(tmp_path: Path) -> None:
    found = outcomes(records("digits-batchnorm", 0.05), Details(tmp_path), [MORE])
    page = with_outcomes(f"before\n{BEGIN}\nearlier text\n{END}\nafter\n", found)
    assert page.startswith("before\n") and page.endswith("after\n") and "earlier text" not in page
    assert "**holds** | +5.02 points | " in page and "\n".join(outcome_lines(found)) in page
    with pytest.raises(ValueError, match="markers"):
        with_outcomes("no markers", found)


def test_a_figure_stands_below_the_outcomes_where_there_is_one() -> None:
    page = f"before\n{BEGIN}\n{END}\nafter"
    assert "![" not in with_outcomes(page, [])
    assert "(../results/figures/anatomy.png)" in with_outcomes(page, [], ["../results/figures/anatomy.png"])
