"""Strata: experiments that share networks count once, and their correlation makes no false verdict likelier."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from benchmarks.analysis.claims import CLAIMS, Arm, Claim, recovered_after
from benchmarks.analysis.statistics import SMALLEST_SD, paired_effect
from benchmarks.analysis.strata import over_targets, pooled, rows_of, strata_of
from benchmarks.analysis.tuned import searched_state
from benchmarks.analysis.verdicts import judge
from benchmarks.config import Phase
from benchmarks.experiments import EXPERIMENTS
from benchmarks.records.histories import Details
from benchmarks.records.record import Record, read_record, write_record
from benchmarks.records.rows import EpochRow
from tests.benchmarks.synthetic import experiment, records_of

NOTHING = Details(Path("nowhere"))
PAIR = ("oicsr-gl", "gl-out")
ONE = CLAIMS[0]


def study(name: str, **changes: object) -> list[Record]:
    return records_of(experiment(name, methods=PAIR, macs_kept=(0.5,), **changes))


def with_top1(record: Record, top1: float) -> Record:
    states = {name: {**state, "top1": top1} for name, state in record.states.items()}
    return replace(record, states={**states, "dense": record.states["dense"]})


def planted(records: list[Record], difference: dict[int, float]) -> list[Record]:
    """Give ours `difference` of its seed more than the rival."""
    return [with_top1(r, 0.7 + (difference[r.seed] if r.method == PAIR[0] else 0.0)) for r in records]


def test_experiments_on_the_same_networks_are_one_stratum() -> None:
    first = planted(study("first"), {0: 0.01, 1: 0.02, 2: 0.03})
    second = planted(study("second", max_removed=0.5), {0: 0.03, 1: 0.06, 2: 0.09})
    [found] = judge([*first, *second], NOTHING, [ONE])
    [stratum] = found.strata
    assert list(stratum.by_network.values()) == pytest.approx([0.02, 0.04, 0.06])
    assert found.n == 3 and stratum.where == "first (cpu); second (cpu)" and len(stratum.runs) == 12
    assert list(stratum.by_target) == [("first (cpu)", 0.5), ("second (cpu)", 0.5)]


def test_other_dense_networks_and_other_models_count_apart() -> None:
    first = study("first")
    longer = study("longer", dense=Phase(40, 0.1))
    [stratum] = strata_of(ONE, rows_of([*first, *longer]), NOTHING)["small"]
    assert len(stratum.by_network) == 6
    again = [replace(r, states={**r.states, "dense": {**r.states["dense"], "loss": 0.25}}) for r in study("again")]
    [stratum] = strata_of(ONE, rows_of([*first, *again]), NOTHING)["small"]
    assert len(stratum.by_network) == 6  # the same seeds, trained a second time
    other = [replace(r, config={**r.config, "model": "resnet20"}) for r in study("other")]
    found = strata_of(ONE, rows_of([*first, *other]), NOTHING)["small"]
    assert [(s.model, len(s.by_network)) for s in found] == [("resnet20", 3), ("resnet56", 3)]


def test_tiers_are_judged_apart_and_told_together() -> None:
    small = planted(study("natural"), {0: -0.2, 1: -0.21, 2: -0.19})
    toy = [
        replace(r, config={**r.config, "dataset": "digits", "model": "digits-resnet"})
        for r in planted(study("toys", seeds=tuple(range(5))), dict(enumerate((0.2, 0.21, 0.19, 0.2, 0.2))))
    ]
    [found] = judge([*small, *toy], NOTHING, [ONE])
    assert found.sentence == "holds on digits; does not hold on CIFAR-10"
    assert found.verdict == "refuted" and found.best.tier == "small" and found.best.lost and found.n == 3
    assert found.at("toy") is not None and found.at("full") is None


def test_a_target_counts_once_enough_networks_were_run_at_it() -> None:
    records = records_of(experiment(methods=PAIR, macs_kept=(0.5, 0.3)))
    part = [r for r in records if not (r.seed == 0 and r.macs_kept == 0.3 and r.method == PAIR[1])]
    [stratum] = strata_of(ONE, rows_of(part), NOTHING)["small"]
    [at_half] = strata_of(ONE, rows_of(r for r in records if r.macs_kept == 0.5), NOTHING)["small"]
    assert stratum.by_network == at_half.by_network and len(stratum.by_network) == 3
    assert {target for _, target in stratum.by_target} == {0.5, 0.3}


def test_a_target_that_was_run_on_networks_of_its_own_takes_none_away() -> None:
    records = records_of(experiment(methods=PAIR, macs_kept=(0.5, 0.3, 0.7), seeds=tuple(range(6))))
    apart = [r for r in records if (r.seed >= 3) == (r.macs_kept == 0.7)]
    [stratum] = strata_of(ONE, rows_of(apart), NOTHING)["small"]
    assert len(stratum.by_network) == 6
    two_at_70 = [r for r in apart if r.seed != 5]  # too few to be judged by themselves
    [stratum] = strata_of(ONE, rows_of(two_at_70), NOTHING)["small"]
    assert len(stratum.by_network) == 3


def weighed(*cells: dict[str, float]) -> list[tuple[dict[str, float], float]]:
    groups = over_targets({("recipe", float(target)): values for target, values in enumerate(cells)})
    return [(pytest.approx(group.by_network), pytest.approx(group.weight)) for group in groups]


def test_means_are_over_the_targets_that_a_network_was_run_at() -> None:
    mild = {"a": 1.0, "b": 2.0, "c": 3.0, "half done": 9.0}
    hard = {"a": 3.0, "b": 4.0, "c": 5.0}
    other = {"x": 6.0, "y": 7.0, "z": 8.0}
    whole = {"a": 2.0, "b": 3.0, "c": 4.0}
    assert weighed(mild, hard) == [(whole, 1.0)]
    assert weighed(mild, hard, other) == [(whole, 2 / 3), (other, 1 / 3)]
    assert weighed({"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 4.0}) == [({"a": 2.0, "b": 3.0}, 1.0)]  # too few, but whole
    assert weighed({"a": 1.0}, {"b": 3.0}) == []


def test_a_target_that_is_half_done_takes_no_network_away() -> None:
    done, begun = {"a": 1.0, "b": 2.0, "c": 3.0}, {"a": 9.0, "b": 8.0}
    assert weighed(done, begun) == [(done, 1.0)]
    whole = {name: (done[name] + value) / 2 for name, value in {**begun, "c": 7.0}.items()}
    assert weighed(done, {**begun, "c": 7.0}) == [(whole, 1.0)]


def test_every_target_weighs_the_same_however_many_networks_were_run_at_it() -> None:
    everywhere, apart = {"a": 1.0, "b": 2.0, "c": 3.0}, {"x": 10.0, "y": 11.0, "z": 12.0, "w": 14.0}
    groups = over_targets({("r", 0.7): everywhere, ("r", 0.5): {**everywhere, **apart}})
    by_target = 2.0 / 2 + (6.0 + 47.0) / 7 / 2
    means = [sum(group.by_network.values()) / len(group.by_network) for group in groups]
    assert sum(group.weight for group in groups) == pytest.approx(1)
    assert sum(group.weight * mean for group, mean in zip(groups, means, strict=True)) == pytest.approx(by_target)


def test_every_recipe_weighs_the_same_however_many_targets_it_has() -> None:
    [group] = over_targets(
        {("one", 0.5): {"a": 1.0, "b": 1.0, "c": 1.0}, **{("two", t): dict.fromkeys("abc", 3.0) for t in (0.5, 0.3)}}
    )
    assert group.by_network == pytest.approx(dict.fromkeys("abc", 2.0))


@pytest.mark.parametrize("apart", [4.0, -4.0])
def test_differences_between_targets_are_no_spread_of_networks(apart: float) -> None:
    """Three networks at a mild target, four at a hard one, three at both: the interval covers as often as it says."""
    generator = np.random.default_rng(7)
    covered = []
    for _ in range(2000):
        luck, own = generator.standard_normal(10), generator.standard_normal((2, 10))
        mild = {str(i): float(luck[i] + own[0, i]) for i in (0, 1, 2, 7, 8, 9)}
        hard = {str(i): float(apart + luck[i] + own[1, i]) for i in range(3, 10)}
        effect = paired_effect(*pooled([(over_targets({("", 0.7): mild, ("", 0.3): hard}), SMALLEST_SD)]))
        covered.append(effect.interval[0] <= apart / 2 <= effect.interval[1])
        assert effect.mean == pytest.approx((sum(mild.values()) / 6 + sum(hard.values()) / 7) / 2)
    assert 0.93 <= np.mean(covered) <= 0.98


def test_networks_that_strengths_were_chosen_on_stand_in_no_claim() -> None:
    records = study("plain")
    chosen_on = [replace(record, seed=1000) for record in records if record.seed == 0]
    [stratum] = strata_of(ONE, rows_of([*records, *chosen_on]), NOTHING)["small"]
    assert len(stratum.by_network) == 3


def test_strengths_that_were_searched_for_the_fine_tuned_network_stand_in_no_claim() -> None:
    study_of = experiment("study", methods=PAIR, macs_kept=(0.5,), search_state="finetuned")
    source = "tuned on validation (study-cpu.json)"
    records = [replace(r, strength_source=source) for r in records_of(study_of)]
    assert len(rows_of(records)) == 6  # of an experiment that the suite does not know
    with patch.dict(EXPERIMENTS, {"study": study_of}):
        assert [searched_state(record) for record in records] == ["finetuned"] * 6
        assert not rows_of(records)


def test_runs_that_leave_rescaling_out_stand_in_no_claim() -> None:
    without = [replace(r, config={**r.config, "rescale": "none"}) for r in study("plain")]
    assert strata_of(ONE, rows_of(without), NOTHING) == {}
    usual = [replace(r, config={**r.config, "rescale": "dense-norm"}) for r in study("usual")]
    own = Arm(PAIR[0]), Arm(PAIR[0], rescale="none")
    effect = Claim("x", "x", "x", "x", (own,), varies=("rescale",))
    [stratum] = strata_of(effect, rows_of([*usual, *without]), NOTHING)["small"]
    assert len(stratum.by_network) == 3 and stratum.where == "plain (cpu); usual (cpu)"


@pytest.mark.parametrize(
    ("curve", "epoch"),
    [
        ([0.1, 0.5, 0.9, 0.95, 0.95], 3),
        ([0.95, 0.95, 0.95], 0),
        ([0.91, 0.37, 0.94, 0.97], 3),  # near the end at first, then destroyed: from then on counts
        ([0.9, 0.965, 0.975, 0.97], 1),  # above the last value is recovered too
        ([0.96, 0.97], 0),  # one point is within
    ],
)
def test_recovery_counts_from_then_on_within_one_point(curve: list[float], epoch: int) -> None:
    assert recovered_after(curve) == epoch


SIMULATIONS, SEEDS, SD = 400, 5, 0.01


def correlated(templates: list[list[Record]], generator: np.random.Generator, shared: float) -> list[Record]:
    """Return experiments in which ours is no better; what a network's luck is, it is in every experiment."""
    luck = math.sqrt(shared) * SD * generator.standard_normal(SEEDS)
    own = math.sqrt(1 - shared) * SD
    found: list[Record] = []
    for records in templates:
        values = {seed: float(luck[seed] + own * generator.standard_normal()) for seed in range(SEEDS)}
        found += planted(records, values)
    return found


@pytest.mark.parametrize("shared", [0.0, 0.9])
def test_experiments_that_share_networks_make_no_false_verdict_likelier(shared: float) -> None:
    names = ("a", "b", "c")
    caps = (0.9, 0.8, 0.7)
    templates = [study(name, seeds=tuple(range(SEEDS)), max_removed=cap) for name, cap in zip(names, caps, strict=True)]
    generator = np.random.default_rng(5)
    verdicts = [judge(correlated(templates, generator, shared), NOTHING, [ONE])[0] for _ in range(SIMULATIONS)]
    assert all(verdict.n == SEEDS for verdict in verdicts)
    covered = [v.effect is not None and v.effect.interval[0] <= 0 <= v.effect.interval[1] for v in verdicts]
    assert np.mean(covered) >= 0.92
    assert np.mean([verdict.verdict == "supported" for verdict in verdicts]) <= 0.05


def test_strata_of_experiments_would_be_far_too_sure() -> None:
    """The control: the same luck counted three times covers far less often than it says."""
    generator = np.random.default_rng(5)
    covered = []
    for _ in range(SIMULATIONS):
        luck = math.sqrt(0.9) * SD * generator.standard_normal(SEEDS)
        own = math.sqrt(0.1) * SD * generator.standard_normal((3, SEEDS))
        low, high = paired_effect((luck + own).tolist()).interval
        covered.append(low <= 0 <= high)
    assert np.mean(covered) < 0.85


def recovering(epochs: int, folder: Path) -> list[Record]:
    """Return runs of three networks, each of which recovers in the first epoch of fine-tuning."""
    found = []
    for made in study("a"):
        states = {name: {**state, "val_top1": 0.5} for name, state in made.states.items()}
        record = replace(made, states=states, epochs={"finetune": epochs})
        rows = [EpochRow("finetune", 0, epoch, 0.01, 0.2, 0.1, 0.9, 0.3, 0.9, 1.0) for epoch in range(1, epochs + 1)]
        write_record(folder, record, rows)
        found.append(read_record(folder / "runs" / record.experiment / record.run_id / "record.json"))
    return found


def test_recovery_counts_in_whole_epochs_which_three_equal_networks_cannot_undercut(tmp_path: Path) -> None:
    claim = next(claim for claim in CLAIMS if claim.id == "9")
    short = judge(recovering(5, tmp_path / "short"), Details(tmp_path / "short"), [claim])[0]
    assert short.effect is not None and short.effect.mean == 0 and short.verdict == "inconclusive"
    # sd at least 0.2 / sqrt 6, over sqrt 3
    assert short.effect.se == pytest.approx(0.2 / math.sqrt(18))
    long = judge(recovering(200, tmp_path / "long"), Details(tmp_path / "long"), [claim])[0]
    assert long.verdict == "refuted"  # of two hundred epochs, none is saved in three networks
