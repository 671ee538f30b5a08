"""No penalty and no importance can change without a change of the committed numbers."""

from __future__ import annotations

import pytest

from benchmarks.methods.registry import IMPORTANCES, REGULARIZERS
from tests.baselines.golden import importance, load, penalty

GOLDEN = load()


def _tolerance(name: str) -> float:
    return 1e-5 if name.startswith("tp-") else 1e-9  # torch-pruning reckons in float32


@pytest.mark.parametrize("key", list(GOLDEN["penalties"]))
def test_penalties_are_what_they_were(key: str) -> None:
    name, net = key.split(", ")
    assert penalty(name, net) == pytest.approx(GOLDEN["penalties"][key], rel=_tolerance(name), abs=1e-12)


@pytest.mark.parametrize("key", list(GOLDEN["importances"]))
def test_importances_are_what_they_were(key: str) -> None:
    name, net = key.split(", ")
    for scores, expected in zip(importance(name, net), GOLDEN["importances"][key], strict=True):
        assert scores == pytest.approx(expected, rel=_tolerance(name), abs=1e-12)


def test_only_entries_of_today_are_pinned() -> None:
    """A pinned name that is gone was renamed or removed: results recorded under it can no longer be repeated."""
    today = {"penalties": REGULARIZERS, "importances": IMPORTANCES}
    for kind, registry in today.items():
        assert {key.split(", ")[0] for key in GOLDEN[kind]} <= set(registry)
