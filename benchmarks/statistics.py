"""Means over seeds with intervals, and differences paired by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
ENOUGH_SEEDS = 3


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
    half_width = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * sd / math.sqrt(n)
    return Summary(float(array.mean()), sd, n, half_width)
