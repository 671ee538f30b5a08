"""How strengths were chosen, in words: tries, networks, one choice for all states, and what is not inside."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from benchmarks.analysis.comparison import compare
from benchmarks.experiments import EXPERIMENTS
from benchmarks.reporting import strengths_text as strengths_text_module
from benchmarks.reporting.strengths_text import strengths_text
from tests.benchmarks.synthetic import experiment, records_of

STUDY = experiment("study", methods=("oicsr-gl", "gl-out", "none"), macs_kept=(0.5,))
[COMPARISON] = compare(records_of(STUDY))
TRIES = {"0.5": {"0.1": {"loss": [1.0, 1.0], "top1": [0.5, 0.5]}, "0.2": {"loss": [2.0, 2.0], "top1": [0.4, 0.4]}}}


def write(folder: Path, name: str = "study", **changes: Any) -> None:
    record = {
        "schema": "oicsr-tuning-2",
        "seeds": [1000, 1001],
        "chosen": {"oicsr-gl": {"0.5": 0.1}, "gl-out": {"0.5": None}, "slimming": {"0.5": 0.1}},
        "reason": {"oicsr-gl": {"0.5": "edge"}, "gl-out": {"0.5": "chance"}, "slimming": {"0.5": "edge"}},
        "scores": {"oicsr-gl": TRIES, "gl-out": TRIES, "slimming": TRIES},
        **changes,
    }
    (folder / "tuning").mkdir(exist_ok=True)
    (folder / "tuning" / f"{name}-cpu.json").write_text(json.dumps(record))


def test_it_says_how_many_were_tried_on_what_and_where_the_best_is_not_inside(tmp_path: Path) -> None:
    write(tmp_path)
    with patch.dict(EXPERIMENTS, {"study": STUDY}):
        text = strengths_text(tmp_path, COMPARISON)
    assert text.startswith("Strengths: 2 tried for every method and target, on 2 networks that no comparison uses. ")
    assert "the same strength serves the fine-tuned network" in text
    assert "Of those that tie with the lowest loss, within a standard error" in text
    assert "The best is still at an edge of the strengths tried: OICSR-GL (at 50.0 %)." in text  # slimming was not run
    assert "No strength works, the accuracy of the best is at chance level: Group Lasso (out) (at 50.0 %)." in text


def test_it_says_which_choices_further_networks_confirmed(tmp_path: Path) -> None:
    once, twice = {"0.5": [1002], "0.3": [1002]}, {"0.5": [1002, 1003]}
    write(tmp_path, again={"oicsr-gl": once, "gl-out": twice, "slimming": once})
    with patch.dict(EXPERIMENTS, {"study": STUDY}):
        text = strengths_text(tmp_path, COMPARISON)
    tie = "and chosen from over all, the weaker one where they tie within a standard error"
    assert f"again on a further network, {tie}: OICSR-GL (at 50.0 %). The best two" in text  # it was not run at 30 %
    assert f"again on 2 further networks, {tie}: Group Lasso (out) (at 50.0 %). The best is" in text


def test_it_says_where_the_search_compared_fine_tuned_networks(tmp_path: Path) -> None:
    write(tmp_path, criterion="validation loss of the fine-tuned network, mean over networks")
    with patch.dict(EXPERIMENTS, {"study": STUDY}):
        text = strengths_text(tmp_path, COMPARISON)
    assert "Chosen by the validation loss of the fine-tuned network" in text and "same strength serves" not in text


def test_strengths_of_another_experiment_are_named(tmp_path: Path) -> None:
    write(tmp_path, "owner", reason={})
    with patch.dict(EXPERIMENTS, {"study": replace(STUDY, strengths_of="owner")}):
        text = strengths_text(tmp_path, COMPARISON)
    assert text.endswith("They are those of `owner`.")


def test_methods_that_took_the_published_strengths_are_described_by_the_published_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = {"seeds": [1000], "scores": {"gl-out": {"0.5": {"0.1": {"loss": [1.0], "top1": [0.1]}}}}}
    (tmp_path / "published").mkdir()
    write(tmp_path / "published", **published)
    monkeypatch.setattr(strengths_text_module, "PUBLISHED_TUNING", tmp_path / "published" / "tuning")
    source = "tuned on validation, as published (study-cpu.json)"
    records = [replace(r, strength_source=source) if r.method == "gl-out" else r for r in COMPARISON.records]
    [mixed] = compare(records)
    with patch.dict(EXPERIMENTS, {"study": STUDY}):
        alone = strengths_text(tmp_path, mixed)
        write(tmp_path)
        both = strengths_text(tmp_path, mixed)
        at_home = strengths_text(tmp_path / "published", mixed)  # the published folder itself: one record for all
    words = "Published strengths (Group Lasso (out)): 1 tried for every method and target, on 1 network that"
    assert alone.startswith(words) and "chance level: Group Lasso (out)" in alone
    assert both.startswith("Strengths: 2 tried") and both.endswith(alone) and both.count("chance level") == 1
    assert at_home.startswith("Strengths: 1 tried") and "Published" not in at_home


def test_of_one_network_there_is_no_standard_error_to_tie_within(tmp_path: Path) -> None:
    tries = {"0.5": {"0.1": {"loss": [1.0], "top1": [0.5]}, "0.2": {"loss": [2.0], "top1": [0.4]}}}
    write(tmp_path, seeds=[1000], scores={"oicsr-gl": tries})
    with patch.dict(EXPERIMENTS, {"study": STUDY}):
        text = strengths_text(tmp_path, COMPARISON)
    assert "on 1 network that" in text and "standard error" not in text


@pytest.mark.parametrize("changes", [{"schema": "oicsr-tuning-1"}, {"scores": {}}, {"seeds": [0]}])
def test_without_a_record_of_this_kind_nothing_is_said(tmp_path: Path, changes: dict[str, Any]) -> None:
    with patch.dict(EXPERIMENTS, {"study": STUDY}):
        assert strengths_text(tmp_path, COMPARISON) == ""
        write(tmp_path, **changes)
        assert strengths_text(tmp_path, COMPARISON) == ""
    assert strengths_text(tmp_path, COMPARISON) == ""  # of an experiment that the suite does not know
