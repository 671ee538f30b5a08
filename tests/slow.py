"""Long series of cases: a few of each run in every run of the tests, the others are marked `slow`."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def but_few_slow(cases: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """Return cases for `parametrize`, all but the `quick` ones marked `slow`."""
    every = list(cases)
    assert set(quick) <= set(every), f"there are no {set(quick) - set(every)}"
    return [pytest.param(case, marks=() if case in quick else pytest.mark.slow) for case in every]
