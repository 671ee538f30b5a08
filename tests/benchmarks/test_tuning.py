"""The search for strengths: where it tries, what it chooses, and what its record holds."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks import cli
from benchmarks.commands import tune as tune_command
from benchmarks.commands.tune import Part
from benchmarks.config import Cell, Phase
from benchmarks.datasets.contract import MissingDataError
from benchmarks.experiments import EXPERIMENTS
from benchmarks.methods.registry import find_method
from benchmarks.records import strengths
from benchmarks.records.strengths import (
    UNTUNED,
    Strength,
    TuningError,
    choose_strength,
    is_tuned_source,
    read_tuning,
    search_state,
)
from benchmarks.running import tuning
from benchmarks.running.bench import Bench
from benchmarks.running.cells import cells_of
from benchmarks.running.run import execute, run_cell
from benchmarks.running.tuning import by_method, check_joins, choose, keep, next_strength, search, tune_method
from benchmarks.training.loop import Score
from tests.benchmarks.fakes import write_at_once
from tests.benchmarks.small import small_bench, small_cell, small_experiment

IN_PROCESS = tune_command._in_process


def tries(losses: Mapping[float, list[float | None]], top1: float = 0.9) -> dict[str, Any]:
    return {
        f"{strength:g}": {"loss": values, "top1": [None if value is None else top1 for value in values]}
        for strength, values in losses.items()
    }


def tune(bench: Bench, cells: list[Cell]) -> Path:
    """Tune one method after the other on one network, as the command does; return the path of the tuning record."""
    for tuned in by_method(cells).values():
        path = keep(bench, tuned, [1000], tune_method(bench, tuned, [1000], lambda *trial: None).tries)
    return path


def valley(lowest: float) -> Any:
    """Return what asks a loss that is smallest at one strength, and rises with the logarithm to both sides."""

    def ask(strength: float) -> Mapping[str, Any]:
        asked.append(strength)
        return {"loss": [abs(math.log(strength / lowest))], "top1": [0.9]}

    asked: list[float] = []
    return ask, asked


@pytest.mark.parametrize("lowest", [0.001, 0.013, 0.05, 3.0])
def test_every_search_takes_the_same_number_of_tries_and_brackets_the_best(lowest: float) -> None:
    ask, asked = valley(lowest)
    found = search([0.01, 0.02, 0.04], 7, ask)
    assert len(asked) == len(found) == 7 and asked[:3] == [0.01, 0.02, 0.04]
    nearest = min(asked, key=lambda strength: abs(math.log(strength / lowest)))
    if 0.0007 < lowest < 0.6:  # within four steps of two beyond the grid
        assert min(asked) < nearest < max(asked)
        assert abs(math.log(nearest / lowest)) < math.log(2)


def test_a_long_grid_is_begun_in_its_middle() -> None:
    ask, asked = valley(0.04)
    search([0.01, 0.02, 0.04, 0.08, 0.16], 3, ask)
    assert asked == [0.02, 0.04, 0.08]


def test_next_strength_goes_beyond_an_edge_and_between_neighbours() -> None:
    assert next_strength(tries({0.1: [1.0], 0.2: [2.0]}), 2) == 0.05
    assert next_strength(tries({0.1: [2.0], 0.2: [1.0]}), 2) == 0.4
    inside = tries({0.1: [3.0], 0.2: [1.0], 0.4: [2.0]})
    assert next_strength(inside, 2) == pytest.approx(math.sqrt(0.2 * 0.4))
    assert next_strength(tries({0.1: [2.0], 0.2: [1.0], 0.4: [None]}), 2) == pytest.approx(math.sqrt(0.1 * 0.2))


def test_ties_go_to_the_geometric_middle() -> None:
    # differences to the best (0.2): 0.01 ± 0.01 at 0.4 and 0.8 tie, 1.0 at 1.6 does not; 0.4 is between 0.2 and 0.8
    losses = {0.1: [2.0, 2.0], 0.2: [1.0, 1.0], 0.4: [1.0, 1.02], 0.8: [1.02, 1.0], 1.6: [2.0, 2.0]}
    assert choose(tries(losses), 10, 1000) == (0.4, "inside")


def test_a_gap_ends_the_row_of_ties() -> None:
    losses = {0.1: [1.0, 1.0], 0.2: [2.0, 2.0], 0.4: [1.0, 1.02]}
    assert choose(tries(losses), 10, 1000) == (0.1, "edge")


def test_one_network_ties_only_where_losses_are_equal() -> None:
    assert choose(tries({0.1: [2.0], 0.2: [1.0], 0.4: [1.001], 0.8: [2.0]}), 10, 1000) == (0.2, "inside")


def test_what_diverges_on_any_network_is_not_chosen() -> None:
    assert choose(tries({0.1: [2.0, 2.0], 0.2: [1.5, 1.5], 0.4: [0.1, None]}), 10, 1000) == (0.2, "inside")
    assert choose(tries({0.1: [None], 0.2: [None]}), 10, 1000) == (None, "diverged")


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_that_of_a_diverged_trial(loss: float) -> None:
    assert choose(tries({0.1: [loss, 2.0], 0.2: [1.5, 1.5], 0.4: [2.0, 2.0]}), 10, 1000) == (0.2, "inside")
    assert choose(tries({0.1: [loss], 0.2: [loss]}), 10, 1000) == (None, "diverged")
    assert next_strength(tries({0.1: [loss], 0.2: [1.0], 0.4: [2.0]}), 2) == pytest.approx(math.sqrt(0.2 * 0.4))


def test_a_trial_whose_loss_is_no_number_is_written_as_diverged(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def score(bench: Bench, cell: Cell, strength: float) -> Score:
        return Score(math.nan, 0.1) if strength < 0.0015 else Score(strength, 0.9)

    monkeypatch.setattr(tuning, "validate", score)
    assert tune_small("--methods", "gl-out", "--seeds", "1000") == 0
    record = read_tuning(small)
    assert [None] in [found["loss"] for found in record["scores"]["gl-out"]["0.5"].values()]
    assert record["chosen"]["gl-out"]["0.5"] is not None and "NaN" not in small.read_text()


@pytest.mark.parametrize(("top1", "expected"), [(0.12, (None, "chance")), (0.14, (0.2, "inside"))])
def test_a_choice_at_chance_level_is_none(top1: float, expected: tuple[float | None, str]) -> None:
    # ten classes, 1000 images: 0.1 + 3 * sqrt(0.1 * 0.9 / 1000) = 0.1285
    assert choose(tries({0.1: [2.0], 0.2: [1.0], 0.4: [3.0]}, top1), 10, 1000) == expected


def test_where_nothing_works_the_nearest_weaker_target_lends_its_strength(tmp_path: Path) -> None:
    bench, cell = small_bench(tmp_path), small_cell(macs_kept=0.3)
    path = bench.tuning / "small-quick.json"
    path.parent.mkdir()
    record = {"schema": "oicsr-tuning-2", "chosen": {"oicsr-gl": {"0.7": 0.5, "0.5": 0.25, "0.3": None}}, "scores": {}}
    path.write_text(json.dumps(record))
    strength = choose_strength(bench.tuning, cell, find_method("oicsr-gl"))
    assert strength.value == 0.25 and strength.source.startswith("no strength works at this target, that of 0.5")
    assert not is_tuned_source(strength.source)


def test_the_strength_of_another_experiment_for_the_nearest_target_is_tuned(tmp_path: Path) -> None:
    bench, cell = small_bench(tmp_path), small_cell(macs_kept=0.47619, strengths_of="owner")
    bench.tuning.mkdir()
    record = {"schema": "oicsr-tuning-2", "chosen": {"oicsr-gl": {"0.5": 0.25, "0.3": 0.5}}, "scores": {}}
    (bench.tuning / "owner-quick.json").write_text(json.dumps(record))
    strength = choose_strength(bench.tuning, cell, find_method("oicsr-gl"))
    assert strength.value == 0.25
    assert strength.source == "that of 0.5, the nearest target; tuned on validation (owner-quick.json)"
    assert is_tuned_source(strength.source) and is_tuned_source("none needed") and not is_tuned_source(UNTUNED)


def test_records_of_the_first_schema_are_read(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    scores = {"gl-out": {"0.5": {"0.1": [0.5, None]}}}
    path.write_text(json.dumps({"schema": "oicsr-tuning-1", "chosen": {"gl-out": {"0.5": 0.1}}, "scores": scores}))
    assert read_tuning(path)["scores"] == {"gl-out": {"0.5": {"0.1": {"loss": [], "top1": [0.5, None]}}}}


def test_the_command_tunes_side_by_side_to_the_same_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(EXPERIMENTS, "small", small_experiment(tries=3))
    command = ["tune", "small", "--methods", "oicsr-gl,gl-out", "--macs-kept", "0.5", "--seeds", "1000"]
    found = []
    for folder, jobs in (("a", "1"), ("b", "2")):
        options = ["--results", folder, "--checkpoints", "c", "--threads", "1", "--jobs", jobs]
        assert cli.main([*command, *options]) == 1  # with so few images no strength works
        found.append(read_tuning(tmp_path / folder / "tuning" / "small-quick.json"))
    assert [len(found[0]["scores"][method]["0.5"]) for method in ("oicsr-gl", "gl-out")] == [3, 3]
    assert found[0]["scores"] == found[1]["scores"] and found[0]["chosen"] == found[1]["chosen"]


def test_tuning_never_touches_the_test_set_and_is_read_by_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = small_bench(tmp_path)
    cells = cells_of(small_experiment(grid_scale=10.0), "quick", methods=["oicsr-gl", "none"])
    path = tune(bench, cells)
    record = json.loads(path.read_text())
    assert list(record["chosen"]) == ["oicsr-gl"] and len(record["scores"]["oicsr-gl"]["0.5"]) == 7
    for found in record["scores"]["oicsr-gl"]["0.5"].values():
        assert len(found["loss"]) == len(found["top1"]) == 1 and 0 <= found["top1"][0] <= 1 < found["loss"][0]
    for checkpoint in bench.store.folder.glob("[0-9a-f]*"):
        state = bench.store.load(checkpoint.name)
        assert state is not None and not state["scores"]["test"]
    record["chosen"]["oicsr-gl"]["0.5"] = 0.0123  # (one epoch on 128 images: no strength is above chance)
    path.write_text(json.dumps(record))
    after = run_cell(bench, cells[0])
    assert after.strength == 0.0123 and "tuned on validation" in after.strength_source


def test_tuning_again_replaces_scores_and_keeps_other_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score_valley(monkeypatch)
    bench = small_bench(tmp_path)
    cells = cells_of(small_experiment(grid_scale=10.0), "quick", methods=["oicsr-gl", "gl-out"])
    path = tune(bench, cells)
    before = json.loads(path.read_text())
    stronger = cells_of(small_experiment(grid_scale=20.0), "quick", methods=["oicsr-gl"])
    after = json.loads(tune(bench, stronger).read_text())
    tried = [set(map(float, record["scores"]["oicsr-gl"]["0.5"])) for record in (before, after)]
    assert max(tried[1]) >= 0.16 and tried[0] != tried[1]
    assert after["scores"]["gl-out"] == before["scores"]["gl-out"]


def write_tuning(path: Path, chosen: Mapping[str, Any], **others: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schema": "oicsr-tuning-2", "chosen": chosen, "scores": {}, **others}))
    return path


def score_valley(monkeypatch: pytest.MonkeyPatch, lowest: float = 0.05) -> list[tuple[str, int]]:
    """Let trials cost nothing: the loss is smallest at one strength. Return the methods and seeds that are tried."""

    def score(bench: Bench, cell: Cell, strength: float) -> Score:
        tried.append((cell.method, cell.seed))
        return Score(abs(math.log(strength / lowest)), 0.9)

    tried: list[tuple[str, int]] = []
    monkeypatch.setattr(tuning, "validate", score)
    return tried


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder for the command, with a small experiment and a folder of published records."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(EXPERIMENTS, "small", small_experiment(tries=3))
    monkeypatch.setattr(strengths, "PUBLISHED_TUNING", tmp_path / "published")
    return tmp_path / "r" / "tuning" / "small-quick.json"


def tune_small(*arguments: str) -> int:
    return cli.main(["tune", "small", "--results", "r", "--checkpoints", "c", "--jobs", "1", *arguments])


def test_tuning_one_more_method_takes_the_seeds_of_the_record_and_keeps_its_strengths(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = score_valley(monkeypatch)
    assert tune_small("--methods", "gl-out", "--seeds", "1000-1002") == 0
    before = read_tuning(small)
    assert tune_small("--methods", "oicsr-gl") == 0
    after = read_tuning(small)
    assert {seed for method, seed in tried if method == "oicsr-gl"} == {1000, 1001, 1002}
    assert list(after["chosen"]) == ["gl-out", "oicsr-gl"] and after["chosen"]["gl-out"] == before["chosen"]["gl-out"]


def test_a_search_says_what_it_will_do_and_that_it_trains(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tune_command, "HEARTBEAT", 0.0)  # every epoch, not one in half a minute
    tune_small("--methods", "gl-out", "--seeds", "1000")  # an epoch of a few images ends at chance level
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "small (quick): 1 search of 3 strengths, on networks of seed 1000, on cpu"
    epochs = [line.strip() for line in lines if "epoch" in line]
    label = "small/quick-gl-out-keep50-seed1000"
    assert epochs[0] == f"{label} dense: epoch 1 of 1"
    assert epochs.count(f"{label} regularized: epoch 1 of 1") == 3  # one a strength; the dense network is trained once
    assert sum("dense" in line for line in epochs) == 1
    monkeypatch.setattr(tune_command, "HEARTBEAT", 1e9)
    tune_small("--methods", "oicsr-gl")
    assert sum("epoch" in line for line in capsys.readouterr().out.splitlines()) == 1


def test_a_record_says_what_its_earlier_trials_were_made_with(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score_valley(monkeypatch)
    made_with = iter(({"device": "a GPU"}, {"device": "a CPU"}, {"device": "a CPU"}))
    monkeypatch.setattr(tuning, "provenance", lambda *_: next(made_with))
    for method in ("gl-out", "oicsr-gl", "gl-separate"):
        assert tune_small("--methods", method, "--seeds", "1000") == 0
    record = read_tuning(small)
    assert (record["provenance"], record["earlier_provenance"]) == ({"device": "a CPU"}, [{"device": "a GPU"}])


@pytest.mark.parametrize(("published", "seeds"), [([1000, 1003], [1000, 1003]), (None, [1000, 1001])])
def test_a_folder_without_a_record_takes_the_seeds_of_the_published_one(
    published: list[int] | None, seeds: list[int], small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if published:
        write_tuning(strengths.PUBLISHED_TUNING / small.name, {}, seeds=published)
    score_valley(monkeypatch)
    assert tune_small("--methods", "gl-out") == 0
    assert read_tuning(small)["seeds"] == seeds


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "has seeds [1000, 1001], not [1000]:"),
        ({"schema": "oicsr-tuning-1"}, "has schema 'oicsr-tuning-1', not 'oicsr-tuning-2'; seeds"),
        ({"criterion": "luck"}, "has criterion 'luck', not 'validation loss of the pruned and recalibrated network"),
        ({"config": {}}, "model None, not 'digits-resnet'; dataset None, not 'digits'"),
        ({"config": None}, "model None, not 'digits-resnet'"),
    ],
)
def test_trials_that_cannot_join_a_record_are_refused_before_any_training(
    change: dict[str, Any], said: str, small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = score_valley(monkeypatch)
    assert tune_small("--methods", "gl-out") == 0
    small.write_text(json.dumps({**json.loads(small.read_text()), **change}))
    before = small.read_text()
    tried.clear()
    assert tune_small("--methods", "oicsr-gl", "--seeds", "1000") == 2
    error = capsys.readouterr().err
    assert "r/tuning/small-quick.json has " in error and said in error and "move the file away to begin again" in error
    assert not tried and small.read_text() == before


@pytest.mark.parametrize(
    ("target", "lowest", "expected"),
    [
        ("0.7", 0.04, {"0.02", "0.04", "0.08"}),  # as expected, it asks for less
        ("0.7", 0.08, {"0.04", "0.08", "0.16"}),
        ("0.7", 0.01, {"0.02", "0.04", "0.08"}),
        ("0.3", 0.16, {"0.08", "0.16", "0.32"}),  # a harder target asks for more
    ],
)
def test_a_search_starts_at_the_strength_of_another_target(
    target: str, lowest: float, expected: set[str], small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score_valley(monkeypatch, 0.08)
    assert tune_small("--methods", "gl-out", "--seeds", "1000") == 0
    record = json.loads(small.read_text())
    record["chosen"]["gl-out"]["0.5"] = 0.08
    small.write_text(json.dumps(record))
    score_valley(monkeypatch, lowest)
    assert tune_small("--methods", "gl-out", "--macs-kept", target, "--start-from", "0.5", "--tries", "3") == 0
    scores = read_tuning(small)["scores"]["gl-out"]
    assert set(scores[target]) == expected and set(scores) == {"0.5", target}


def test_tries_are_those_of_the_command(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = score_valley(monkeypatch)
    assert tune_small("--methods", "gl-out,oicsr-gl", "--seeds", "1000", "--tries", "4") == 0
    assert len(tried) == 8
    assert tune_small("--methods", "none", "--tries", "4") == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--start-from", "0.4"],
            "--start-from 0.4: r/tuning/small-quick.json has no strength of gl-out at this share",
        ),
        (["--start-from", "0.4,0.5"], "'0.4,0.5' names several shares; one is needed"),
        (["--start-from", "half"], "'half' is not a comma-separated list of numbers"),
        (["--tries", "2"], "tries is 2; it must be 3 or more"),
        (["--tries", "0"], "'0'"),
    ],
)
def test_a_start_or_a_number_of_tries_that_cannot_serve_is_refused_before_any_training(
    options: list[str], said: str, small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = score_valley(monkeypatch)
    try:
        code: object = tune_small("--methods", "gl-out", "--seeds", "1000", *options)
    except SystemExit as ended:
        code = ended.code
    assert code == 2 and said in capsys.readouterr().err and not tried


def score_by_seed(monkeypatch: pytest.MonkeyPatch, lowest: Mapping[int, float]) -> list[tuple[str, int, float]]:
    """Let trials cost nothing: the loss is smallest at a strength of each network's own. Return what is tried."""

    def score(bench: Bench, cell: Cell, strength: float) -> Score:
        tried.append((cell.method, cell.seed, strength))
        return Score(abs(math.log(strength / lowest[cell.seed])), 0.9)

    tried: list[tuple[str, int, float]] = []
    monkeypatch.setattr(tuning, "validate", score)
    return tried


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_the_best_two_are_tried_again_on_further_networks_and_chosen_from_over_all(
    jobs: str, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = score_by_seed(monkeypatch, {1000: 0.009, 1001: 0.019})  # 0.01 is nearest to the first, 0.02 to both
    if jobs == "2":  # in processes, which the counting of trials does not reach
        monkeypatch.setattr(tune_command, "_in_process", search_by_seed)
    both = ["--methods", "gl-out,oicsr-gl", "--jobs", jobs]
    grid = small_experiment(tries=3, grids={"gl-out": (0.01, 0.02, 0.04), "oicsr-gl": (0.005, 0.01, 0.02)})
    monkeypatch.setitem(EXPERIMENTS, "small", grid)
    assert tune_small(*both, "--seeds", "1000") == 0
    first = read_tuning(small)
    assert {name: chosen["0.5"] for name, chosen in first["chosen"].items()} == {"gl-out": 0.01, "oicsr-gl": 0.01}
    tried.clear()
    assert tune_small(*both, "--again", "1001") == 0
    after = read_tuning(small)
    if jobs == "1":
        assert tried == [(name, 1001, value) for name in ("gl-out", "oicsr-gl") for value in BEST_TWO[name]]
    assert (after["seeds"], after["again"]) == ([1000], {"gl-out": {"0.5": [1001]}, "oicsr-gl": {"0.5": [1001]}})
    for name, (low, high) in BEST_TWO.items():
        before, scores = first["scores"][name]["0.5"], after["scores"][name]["0.5"]
        assert {value for value, found in scores.items() if len(found["loss"]) == 2} == {f"{low:g}", f"{high:g}"}
        assert all(found["loss"][0] == before[value]["loss"][0] for value, found in scores.items())
        means = {value: (abs(math.log(value / 0.009)) + abs(math.log(value / 0.019))) / 2 for value in (low, high)}
        assert tuning.mean_losses(tuning.on_most_networks(scores)) == pytest.approx(means, abs=1e-6)
    assert after["chosen"]["gl-out"]["0.5"] == 0.01 and after["reason"]["gl-out"]["0.5"] == "edge"
    assert after["reason"]["oicsr-gl"]["0.5"] == "inside"
    assert tune_small("--methods", "gl-out") == 0  # a new search begins anew
    assert read_tuning(small)["again"] == {"oicsr-gl": {"0.5": [1001]}}


BEST_TWO = {"gl-out": (0.01, 0.02), "oicsr-gl": (0.005, 0.01)}


def search_by_seed(*arguments: Any) -> Part:
    """Search in a process of the pool, where trials cost nothing and each network has its own best strength."""
    with pytest.MonkeyPatch.context() as patch:
        score_by_seed(patch, {1000: 0.009, 1001: 0.019})
        return IN_PROCESS(*arguments)


def test_further_networks_turn_the_choice_and_the_weaker_one_is_taken_where_two_disagree() -> None:
    found = tries({0.1: [3.0], 0.2: [1.0, 3.0, 3.0], 0.4: [1.1, 1.0, 1.2], 0.8: [2.0]})
    assert choose(found, 10, 1000) == (0.4, "inside")
    assert tuning.best_two(found) == [0.2, 0.4]
    two = tries({0.1: [3.0], 0.2: [1.1, 1.0], 0.4: [1.0, 1.3], 0.8: [2.0]})
    assert choose(two, 10, 1000) == (0.2, "inside")
    assert choose(tries({0.1: [3.0], 0.2: [1.1, 1.0], 0.4: [1.0, None], 0.8: [2.0]}), 10, 1000) == (0.2, "inside")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--again", "1001", "--tries", "3"],
            "--again tries the best two strengths of the record, so that --tries has",
        ),
        (["--again", "1001", "--start-from", "0.5"], "so that --start-from has no effect"),
        (["--again", "0"], "--again: seed 0 is one of comparisons; take seeds of 1000 or more"),
        (["--again", "1000"], "--again: gl-out at 0.5 was tried on seed 1000 already"),
        (["--again", "1001", "--macs-kept", "0.7"], "--again: gl-out has no trials at 0.7; tune it there first"),
        (["--again", "1001", "--methods", "gl-separate"], "--again: gl-separate has no trials at 0.5"),
        (["--again", "1001", "--seeds", "1002"], "has seeds [1000], not [1002]"),
        (["--again", "1002"], "--again: gl-out at 0.5 was tried on seed 1002 already"),
        (
            ["--again", "1001", "--methods", "oicsr-gl"],
            "of the strengths 0.1, 0.2, 0.4 fewer than two could be trained",
        ),
    ],
)
def test_further_networks_that_cannot_serve_are_refused_before_any_training(
    options: list[str], said: str, small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = score_valley(monkeypatch)
    assert tune_small("--methods", "gl-out", "--seeds", "1000") == 0
    assert tune_small("--methods", "gl-out", "--again", "1002") == 0
    record = json.loads(small.read_text())
    record["scores"]["oicsr-gl"] = {"0.5": tries({0.1: [None], 0.2: [1.0], 0.4: [None]})}
    small.write_text(json.dumps(record))
    tried.clear()
    arguments = options if "--methods" in options else ["--methods", "gl-out", *options]
    assert tune_small(*arguments) == 2
    assert said in capsys.readouterr().err
    assert not tried


def test_a_strength_that_was_confirmed_on_a_network_of_comparisons_is_not_tuned(tmp_path: Path) -> None:
    scores = {"oicsr-gl": {"0.5": tries({0.1: [1.0, 1.0], 0.2: [2.0, 2.0]})}}
    again = {"oicsr-gl": {"0.5": [0]}}
    path = write_tuning(
        tmp_path / "small-quick.json", {"oicsr-gl": {"0.5": 0.1}}, seeds=[1000], scores=scores, again=again
    )
    assert strengths.tuned_strengths(path) == {}
    write_tuning(path, {"oicsr-gl": {"0.5": 0.1}}, seeds=[1000], again={"oicsr-gl": {"0.5": ["a"]}})
    with pytest.raises(TuningError, match="the further seeds of 'oicsr-gl' are no integers"):
        read_tuning(path)


def test_a_method_that_was_tuned_alone_leaves_the_others_their_published_strengths(small: Path) -> None:
    write_tuning(strengths.PUBLISHED_TUNING / small.name, {"gl-out": {"0.5": 0.1}, "oicsr-gl": {"0.5": 0.2}})
    write_tuning(small, {"oicsr-gl": {"0.5": 0.3}})
    found = [choose_strength(small.parent, small_cell(name), find_method(name)) for name in ("oicsr-gl", "gl-out")]
    assert found[0] == Strength(0.3, "tuned on validation (small-quick.json)")
    assert found[1] == Strength(0.1, "tuned on validation, as published (small-quick.json)")
    assert is_tuned_source(found[1].source)


def test_where_no_strength_works_in_a_folder_of_ones_own_none_is_taken_from_the_published_record(small: Path) -> None:
    write_tuning(strengths.PUBLISHED_TUNING / small.name, {"oicsr-gl": {"0.5": 0.2}})
    write_tuning(small, {"oicsr-gl": {"0.5": None}})
    assert choose_strength(small.parent, small_cell(), find_method("oicsr-gl")).source == UNTUNED


def test_seeds_of_comparisons_are_refused(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = score_valley(monkeypatch)
    assert tune_small("--methods", "gl-out", "--seeds", "1000,7,999") == 2
    assert "seed 7 is one of comparisons" in capsys.readouterr().err
    write_tuning(small, {"gl-out": {"0.5": 0.1}}, seeds=[0])
    assert tune_small("--methods", "gl-out") == 2
    assert "seed 0 is one of comparisons" in capsys.readouterr().err
    assert not tried


@pytest.mark.parametrize(
    ("seeds", "source"), [([1000], "tuned on validation (small-quick.json)"), ([1000, 0], UNTUNED)]
)
def test_a_strength_that_was_chosen_on_a_network_of_comparisons_is_not_tuned(
    seeds: list[int], source: str, small: Path
) -> None:
    write_tuning(small, {"oicsr-gl": {"0.5": 0.3}}, seeds=seeds)
    assert choose_strength(small.parent, small_cell(), find_method("oicsr-gl")).source == source


@pytest.mark.parametrize("seeds", [7, ["1000"], [True], {"1000": 1}])
def test_seeds_that_are_no_integers_are_no_readable_record(seeds: Any, tmp_path: Path) -> None:
    with pytest.raises(TuningError, match="are no list of integers"):
        read_tuning(write_tuning(tmp_path / "odd.json", {}, seeds=seeds))


@pytest.mark.parametrize("change", [{"config": 7}, {"experiment": "other"}, {"profile": ["quick"]}])
def test_a_record_of_another_experiment_or_without_a_configuration_is_refused(
    change: dict[str, Any], small: Path
) -> None:
    write_tuning(small, {"oicsr-gl": {"0.5": 0.3}}, **{"experiment": "small", "profile": "quick", **change})
    with pytest.raises(TuningError, match=r"the config '7' is no table|holds what belongs in ['\"](other|small-\[)"):
        choose_strength(small.parent, small_cell(), find_method("oicsr-gl"))


def test_a_strength_of_hundreds_of_digits_is_refused(small: Path) -> None:
    write_tuning(small, {"oicsr-gl": {"0.5": 10**400}})
    with pytest.raises(TuningError, match="the strengths of 'oicsr-gl' are no numbers"):
        choose_strength(small.parent, small_cell(), find_method("oicsr-gl"))


def test_a_strength_that_was_tuned_before_the_experiment_was_changed_is_not_tuned(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score_valley(monkeypatch)
    assert tune_small("--methods", "oicsr-gl") == 0
    method = find_method("oicsr-gl")
    tuned = choose_strength(small.parent, small_cell(), method)
    assert tuned.source == "tuned on validation (small-quick.json)"
    assert choose_strength(small.parent, small_cell(finetune=Phase(9, 0.1), seeds=(0, 1)), method) == tuned
    longer = small_cell(regularized=Phase(3, 0.02), batch_size=32)
    found = choose_strength(small.parent, longer, method)
    said = "tuned under other training: batch_size 64, not 32; regularized.epochs 1, not 3; (small-quick.json)"
    assert (found.value, found.source) == (tuned.value, said)
    assert is_tuned_source(tuned.source) and not is_tuned_source(found.source)


def test_trials_on_other_data_do_not_join_a_record(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = score_valley(monkeypatch)
    assert tune_small("--methods", "gl-out") == 0
    record = json.loads(small.read_text())
    record["provenance"]["data_sha256"] = "0" * 64
    small.write_text(json.dumps(record))
    tried.clear()
    assert tune_small("--methods", "oicsr-gl") == 2
    assert f"data_sha256 '{64 * '0'}', not '" in capsys.readouterr().err and not tried


def test_a_method_of_which_no_strength_works_is_a_failure(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "validate", lambda *_: Score(math.nan, 0.1))
    assert tune_small("--methods", "gl-out") == 1
    assert read_tuning(small)["reason"]["gl-out"] == {"0.5": "diverged"}
    score_valley(monkeypatch)
    assert tune_small("--methods", "oicsr-gl") == 0  # of what was tuned now


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_method_that_cannot_be_run_is_named_and_the_others_are_tuned(
    jobs: str, small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if jobs == "1":
        monkeypatch.setattr(tuning, "validate", score_unless_impossible)
    else:
        monkeypatch.setattr(tune_command, "_in_process", search_without_training)
    arguments = ["--methods", "gl-out,oicsr-gl", "--macs-kept", "0.7,0.5", "--seeds", "1000"]
    assert tune_small(*arguments, "--jobs", jobs) == 1
    output = capsys.readouterr().out
    assert "failed: small/gl-out at 0.5: ValueError: 0.5 is out of reach" in output and "oicsr-gl: 0.0" in output
    found = {method: set(targets) for method, targets in read_tuning(small)["chosen"].items()}
    assert found == {"gl-out": {"0.7"}, "oicsr-gl": {"0.7", "0.5"}}


def score_unless_impossible(bench: Bench, cell: Cell, strength: float) -> Score:
    if (cell.method, cell.macs_kept) == ("gl-out", 0.5):
        raise ValueError("0.5 is out of reach")
    return Score(abs(math.log(strength / 0.05)), 0.9)


def search_without_training(*arguments: Any) -> Part:
    """Search in a process of the pool, where trials cost nothing."""
    tuning.validate = score_unless_impossible  # type: ignore[assignment]
    return IN_PROCESS(*arguments)


def test_an_error_in_one_search_stops_the_others_and_loses_nothing(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tune_command, "_in_process", search_until_told)
    assert tune_small("--methods", "gl-out,oicsr-gl", "--seeds", "1000", "--jobs", "2") == 1
    assert "the disk is full; work done so far is safe" in capsys.readouterr().err
    assert list(read_tuning(small)["chosen"]) == ["oicsr-gl"]


def search_until_told(place: tune_command.Place, plan: tune_command.Plan, method: str) -> Part:
    """Fail for one method; for the others, search in a process of the pool until told to stop."""
    if method == "gl-out":
        raise OSError("the disk is full")
    (told,) = tune_command._told
    for _ in range(1000):
        if told():
            return Part({"0.5": tries({0.1: [2.0], 0.2: [1.0], 0.4: [2.0]})}, "interrupted")
        time.sleep(0.02)
    return Part({})  # nobody told


def test_two_commands_that_tune_one_experiment_keep_each_others_strengths(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, found = small_bench(small.parent), {"0.5": tries({0.1: [2.0], 0.2: [1.0], 0.4: [2.0]})}
    writers = [partial(keep, bench, [small_cell(name)], [1000], found) for name in ("gl-out", "oicsr-gl")]
    path = write_at_once(monkeypatch, tuning, writers)
    assert set(read_tuning(path)["chosen"]) == {"gl-out", "oicsr-gl"}


def test_missing_data_are_no_failure_of_a_method(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: Any) -> Score:
        raise MissingDataError("the images are missing")

    monkeypatch.setattr(tuning, "validate", fail)
    assert tune_small("--seeds", "1000") == 2
    assert capsys.readouterr().err == "python -m benchmarks: the images are missing\n"


def test_a_combination_takes_the_strength_of_its_regulariser(tmp_path: Path) -> None:
    bench = small_bench(tmp_path)
    cells = cells_of(small_experiment(grid_scale=10.0, tries=3), "quick", methods=["oicsr-gl"])
    path = tune(bench, cells)
    record = json.loads(path.read_text())
    record["chosen"]["oicsr-gl"]["0.5"] = 0.0123
    path.write_text(json.dumps(record))
    (combined,) = cells_of(small_experiment(grid_scale=10.0, tries=3), "quick", methods=["oicsr-gl+out"])
    own, borrowed = (run_cell(bench, cell) for cell in (cells[0], combined))
    assert borrowed.strength == own.strength
    assert "tuned on validation for oicsr-gl" in borrowed.strength_source


def test_a_search_for_the_fine_tuned_network_compares_what_its_run_ends_with(tmp_path: Path) -> None:
    bench = small_bench(tmp_path)
    cells = cells_of(small_experiment(search_state="finetuned", tries=3), "quick", methods=["oicsr-gl"])
    path = tune(bench, cells)
    record = read_tuning(path)
    assert record["criterion"] == "validation loss of the fine-tuned network, mean over networks"
    assert search_state(record) == "finetuned" and search_state({"schema": "oicsr-tuning-1"}) == "recalibrated"
    tried, found = next(iter(record["scores"]["oicsr-gl"]["0.5"].items()))
    ran = execute(small_bench(tmp_path / "again"), replace(cells[0], seed=1000), Strength(float(tried), "tried"))
    assert found["top1"] == [pytest.approx(ran.record.states["finetuned"]["val_top1"], abs=1e-6)]
    other = cells_of(small_experiment(tries=3), "quick", methods=["oicsr-gl"])
    with pytest.raises(TuningError, match="criterion 'validation loss of the fine-tuned network"):
        check_joins(bench.tuning, other[0], [1000], "cpu")  # the criteria are not mixed in one record
    assert read_tuning(path) == record


def test_an_unknown_state_to_compare_is_refused() -> None:
    with pytest.raises(ValueError, match="search_state is 'pruned'; it must be one of"):
        small_experiment(search_state="pruned")
