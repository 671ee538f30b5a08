"""Means over seeds with intervals, differences paired by seed, and the correction for many comparisons.

With 3 to 10 seeds the percentile bootstrap of a mean has far too little coverage (about 75 % at n = 3 instead of 95 %)
and the bootstrap-t has resamples without any spread; Student's t on the paired differences keeps its nominal coverage.
So t decides, and the bootstrap interval is reported too. Both facts are tested by simulation.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit  # scipy.stats takes seconds to import

CONFIDENCE = 0.95

ENOUGH_SEEDS = 3

RESAMPLES = 4_000

SMALLEST_SD = 1e-3  # accuracies are counts over a test set: equal differences in a few seeds are no certainty


@dataclass(frozen=True)
class Summary:
    """A mean over seeds.

    Attributes:
        mean: Arithmetic mean.
        sd: Sample standard deviation (n - 1); NaN for one value.
        n: Number of values.
        half_width: Of the 95 % interval of the mean by Student's t; NaN for one value.
    """

    mean: float
    sd: float
    n: int
    half_width: float


def summarize(values: Sequence[float]) -> Summary:
    """Summarise values of independent seeds.

    Raises:
        ValueError: There is none.
    """
    if not len(values):
        raise ValueError("there are no values to summarise")
    array = np.asarray(values, dtype=np.float64)
    n = len(array)
    if n == 1:
        return Summary(float(array[0]), math.nan, 1, math.nan)
    sd = float(array.std(ddof=1))
    half_width = _t_quantile(n - 1) * sd / math.sqrt(n)
    return Summary(float(array.mean()), sd, n, half_width)


def _t_quantile(df: float) -> float:
    return float(stdtrit(df, (1 + CONFIDENCE) / 2))


@dataclass(frozen=True)
class Effect:
    """A mean of paired differences over independent strata (experiments), each with its own seeds.

    Attributes:
        mean: Weighted mean of the strata's means.
        se: Its standard error.
        df: Degrees of freedom (Welch and Satterthwaite where there are several strata).
        seeds: Number of seeds of each stratum.
    """

    mean: float
    se: float
    df: float
    seeds: tuple[int, ...]

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval by Student's t."""
        half = _t_quantile(self.df) * self.se
        return self.mean - half, self.mean + half

    def p_above(self, bound: float) -> float:
        """Return the one-sided p value against "the true effect is at most `bound`"."""
        return float(stdtr(self.df, (bound - self.mean) / self.se))

    def p_below(self, bound: float) -> float:
        """Return the one-sided p value against "the true effect is at least `bound`"."""
        return float(stdtr(self.df, (self.mean - bound) / self.se))


def paired_effect(
    strata: Sequence[Sequence[float]], smallest: Sequence[float] = (), weights: Sequence[float] = ()
) -> Effect:
    """Return the effect that paired differences show, one sequence of differences (a value a seed) per stratum.

    Args:
        strata: The differences.
        smallest: Standard deviation that each stratum has at least (default: `SMALLEST_SD`, that of accuracies).
        weights: Of each stratum's mean, with a sum of one (default: the same for all); 1 and -1 make of two samples
            the difference of their means.

    Raises:
        ValueError: There is no stratum, or one with fewer than two seeds.
    """
    sizes = [len(stratum) for stratum in strata]
    if not strata or min(sizes) < 2:
        raise ValueError(f"strata have {sizes} seeds; at least one stratum of two or more is needed")
    means = [float(np.mean(stratum)) for stratum in strata]
    floors = smallest or [SMALLEST_SD] * len(strata)
    spreads = [max(float(np.std(stratum, ddof=1)), floor) for stratum, floor in zip(strata, floors, strict=True)]
    shares = _shares(strata, weights)
    variances = [share**2 * sd**2 / n for share, sd, n in zip(shares, spreads, sizes, strict=True)]
    total = sum(variances)
    df = total**2 / sum(v**2 / (n - 1) for v, n in zip(variances, sizes, strict=True))
    return Effect(float(np.dot(shares, means)), math.sqrt(total), df, tuple(sizes))


def _shares(strata: Sequence[Sequence[float]], weights: Sequence[float]) -> Sequence[float]:
    return weights or [1 / len(strata)] * len(strata)


def bootstrap_interval(
    strata: Sequence[Sequence[float]], weights: Sequence[float] = (), seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % percentile interval of the effect, seeds drawn with replacement within each stratum."""
    generator = np.random.default_rng(seed)
    means = np.zeros(RESAMPLES)
    for stratum, share in zip(strata, _shares(strata, weights), strict=True):
        values = np.asarray(stratum, dtype=np.float64)
        drawn = generator.integers(0, len(values), (RESAMPLES, len(values)))
        means += share * values[drawn].mean(1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values adjusted by Holm's step-down method: the chance of any false decision stays at the level."""
    order = sorted(range(len(p_values)), key=lambda position: p_values[position])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, position in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[position]))
        adjusted[position] = highest
    return adjusted


def tied_with_best(columns: Sequence[Mapping[Hashable, float]]) -> list[str]:
    """Mark each row of values by network: `"best"` by mean; of the others the interval of the difference decides.

    They are `"tied"` where it holds zero, else `"worse"`. It is that of paired differences where a row shares three
    networks or more with the best, else Welch's of two independent samples, which is the wider one. Rows of fewer than
    three networks are `"unknown"`, unless their means are equal.
    """
    means = [sum(values.values()) / len(values) for values in columns]
    best = max(range(len(columns)), key=lambda position: means[position])
    # equal counts of images may give means that differ in the last bit
    equal = [math.isclose(mean, means[best], rel_tol=1e-12) for mean in means]
    return ["best" if equal[i] else _tie(columns[best], columns[i]) for i in range(len(columns))]


def _tie(best: Mapping[Hashable, float], other: Mapping[Hashable, float]) -> str:
    shared = [network for network in best if network in other]
    if len(shared) >= ENOUGH_SEEDS:
        effect = paired_effect([[best[network] - other[network] for network in shared]])
    elif min(len(best), len(other)) >= ENOUGH_SEEDS:
        effect = paired_effect([list(best.values()), list(other.values())], weights=[1, -1])
    else:
        return "unknown"
    low, high = effect.interval
    return "tied" if low <= 0 <= high else "worse"
