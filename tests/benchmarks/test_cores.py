"""How many cores there are to use, with and without affinities."""

from __future__ import annotations

import os

import pytest

from benchmarks.machine.cores import available_cores


def test_cores_of_the_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3, 5}, raising=False)
    assert available_cores() == 3


@pytest.mark.parametrize(("count", "cores"), [(6, 6), (None, 1)])
def test_cores_where_there_is_no_affinity(monkeypatch: pytest.MonkeyPatch, count: int | None, cores: int) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert available_cores() == cores
