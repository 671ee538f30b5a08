"""Numbers as text: per cent, points, intervals, and the true minus sign (U+2212)."""

from __future__ import annotations

import math

NOT_RUN = "not run"

NONE = "–"  # where there can be no number


def signed(value: float, digits: int = 2) -> str:
    """Return a number with its sign; what rounds to zero is neither a gain nor a loss, and has none."""
    rounded = round(value, digits) + 0.0
    return f"{rounded:{'+' if rounded else ''}.{digits}f}".replace("-", "−")


def percent(mean: float, sd: float = math.nan) -> str:
    """Return an accuracy in per cent, with its standard deviation where there is one; NaN was not run."""
    if math.isnan(mean):
        return NOT_RUN
    return f"{100 * mean:.2f}" if math.isnan(sd) else f"{100 * mean:.2f} ± {100 * sd:.2f}"


def change(mean: float, half_width: float = math.nan) -> str:
    """Return a difference in points, with half the width of its 95 % interval where there is one."""
    if math.isnan(mean):
        return NOT_RUN
    text = signed(100 * mean)
    return text if math.isnan(half_width) else f"{text} (±{100 * half_width:.2f})"


def share(value: float, digits: int = 1) -> str:
    """Return a share of the MACs."""
    return f"{100 * value:.{digits}f} %"
