"""Statistics against known answers: intervals cover, false verdicts are rare, planted effects are found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.analysis.claims import CLAIMS, Claim
from benchmarks.analysis.statistics import bootstrap_interval, holm, paired_effect, summarize, tied_with_best
from benchmarks.analysis.verdicts import judge
from benchmarks.records.histories import Details
from benchmarks.records.record import Record
from tests.benchmarks.synthetic import experiment, records_of

SIMULATIONS = 500
NOTHING = Details(Path("nowhere"))
SD = 0.01


def draws(n: int, count: int, kind: str = "normal", seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if kind == "normal":
        return generator.standard_normal((count, n))
    return generator.uniform(-1, 1, (count, n))


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_interval_covers_the_true_mean(n: int, kind: str) -> None:
    covered = []
    for values in draws(n, 2000, kind):
        low, high = paired_effect([values.tolist()]).interval
        covered.append(low <= 0 <= high)
    assert 0.93 <= np.mean(covered) <= 0.97


def test_interval_over_unequal_strata_covers() -> None:
    covered = []
    for first, second in zip(draws(3, 2000, seed=1), 5 * draws(6, 2000, seed=2), strict=True):
        low, high = paired_effect([first.tolist(), second.tolist()]).interval
        covered.append(low <= 0 <= high)
    assert 0.93 <= np.mean(covered) <= 0.98


def test_percentile_bootstrap_covers_too_rarely_with_three_seeds() -> None:
    intervals = [bootstrap_interval([values.tolist()]) for values in draws(3, 400)]
    assert np.mean([low <= 0 <= high for low, high in intervals]) < 0.85


def test_bootstrap_is_deterministic_and_holds_the_mean() -> None:
    values = [[0.1, 0.2, 0.4, 0.3]]
    low, high = bootstrap_interval(values)
    assert (low, high) == bootstrap_interval(values) and 0.1 <= low < 0.25 < high <= 0.4


def test_effect_by_hand() -> None:
    effect = paired_effect([[0.01, 0.02, 0.03]])
    assert effect.mean == pytest.approx(0.02) and effect.se == pytest.approx(0.01 / math.sqrt(3)) and effect.df == 2
    low, high = effect.interval
    assert (low, high) == pytest.approx((0.02 - 4.302653 * 0.0057735, 0.02 + 4.302653 * 0.0057735), rel=1e-5)
    assert effect.p_above(0) == pytest.approx(stats.ttest_1samp([0.01, 0.02, 0.03], 0, alternative="greater").pvalue)
    assert effect.p_below(0) == pytest.approx(1 - effect.p_above(0))
    with pytest.raises(ValueError, match="two or more"):
        paired_effect([[0.1]])


def test_equal_differences_are_no_certainty() -> None:
    assert paired_effect([[0.001, 0.001, 0.001]]).p_above(0) > 0.05


def test_summary_of_one_value_has_no_deviation() -> None:
    assert math.isnan(summarize([0.5]).sd) and summarize([0.5]).mean == 0.5
    with pytest.raises(ValueError, match="no values"):
        summarize([])


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_best_and_tied() -> None:
    best = {0: 0.9, 1: 0.92, 2: 0.91}
    near = {0: 0.905, 1: 0.915, 2: 0.905}
    far = {0: 0.5, 1: 0.52, 2: 0.51}
    assert tied_with_best([near, best, far, {0: 0.7}]) == ["tied", "best", "worse", "unknown"]


@pytest.mark.parametrize("less", [0.005, 0.02, 0.2])
def test_rows_of_other_networks_are_compared_as_independent_samples(less: float) -> None:
    best, others = [0.9, 0.93, 0.91], [0.9 - less, 0.94 - less, 0.9 - less, 0.91 - less]
    [_, mark] = tied_with_best([dict(enumerate(best)), {7 + i: value for i, value in enumerate(others)}])
    found = stats.ttest_ind(best, others, equal_var=False).confidence_interval(0.95)
    effect = paired_effect([best, others], weights=[1, -1])
    assert effect.interval == pytest.approx((found.low, found.high))
    assert mark == ("tied" if found.low <= 0 else "worse")


def test_equal_means_are_all_the_best_whatever_their_last_bits_are() -> None:
    columns = [{0: 0.1, 1: 0.2, 2: 0.9}, {0: 0.1, 1: 0.4, 2: 0.7}]
    assert len({sum(column.values()) for column in columns}) == 2  # in the last bit
    assert tied_with_best(columns) == ["best", "best"]


def simulated(templates: Sequence[Record], effect: float, generator: np.random.Generator) -> list[Record]:
    """Give every record an accuracy of chance alone, and OICSR-GL `effect` more."""
    found = []
    for record in templates:
        ours = effect if record.method == "oicsr-gl" else 0.0
        top1 = 0.7 + ours + SD / math.sqrt(2) * generator.standard_normal()
        states = {**record.states, **{name: {**record.states[name], "top1": top1} for name in ("pruned", "finetuned")}}
        found.append(replace(record, states=states))
    return found


def rates(claims: Sequence[Claim], methods: tuple[str, ...], effect: float, seeds: int) -> dict[str, float]:
    """Return how often at least one of the claims gets each verdict."""
    templates = records_of(experiment(methods=methods, macs_kept=(0.5,), seeds=tuple(range(seeds))))
    generator = np.random.default_rng(7)
    verdicts = [
        {v.verdict for v in judge(simulated(templates, effect, generator), NOTHING, claims)} for _ in range(SIMULATIONS)
    ]
    return {kind: float(np.mean([kind in found for found in verdicts])) for kind in ("supported", "refuted")}


ONE = CLAIMS[:1]
FAMILY = [claim for claim in CLAIMS if claim.id in ("1", "1b", "2a", "2c", "3a")]


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_no_effect_is_rarely_called_supported(seeds: int) -> None:
    assert rates(ONE, ("oicsr-gl", "gl-out"), 0.0, seeds)["supported"] <= 0.05


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_smallest_effect_that_matters_is_rarely_called_refuted(seeds: int) -> None:
    assert rates(ONE, ("oicsr-gl", "gl-out"), ONE[0].matters, seeds)["refuted"] <= 0.05


def test_a_whole_ledger_without_effect_has_rarely_one_false_verdict() -> None:
    methods = ("oicsr-gl", "gl-out", "gl-separate", "l1-weights", "none")
    superior = [claim for claim in FAMILY if claim.kind == "more"]
    assert rates(superior, methods, 0.0, 5)["supported"] <= 0.05


def test_a_loss_at_the_margin_is_rarely_called_not_worse() -> None:
    claim = next(claim for claim in CLAIMS if claim.id == "3a")
    assert rates([claim], ("oicsr-gl", "gl-out"), -claim.matters, 5)["supported"] <= 0.05


@pytest.mark.parametrize(("seeds", "effect"), [(3, 0.06), (5, 0.02), (10, 0.015)])
def test_planted_effect_is_found_at_the_stated_rate(seeds: int, effect: float) -> None:
    critical = stats.t.ppf(0.975, seeds - 1)
    power = 1 - stats.nct.cdf(critical, seeds - 1, effect * math.sqrt(seeds) / SD)
    found = rates(ONE, ("oicsr-gl", "gl-out"), effect, seeds)
    assert found["supported"] == pytest.approx(power, abs=0.06) and found["supported"] > 0.8
