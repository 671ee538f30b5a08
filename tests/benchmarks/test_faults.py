"""The fault-injection suite in short: every kind of fault once or twice, over a sweep of a few seconds."""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
from pathlib import Path

import pytest

from benchmarks.faults import injections as faults
from benchmarks.faults.arena import TINY, Arena, Tally
from benchmarks.faults.injections import damage, to_json
from benchmarks.faults.versions import check_out, older_commit
from benchmarks.reporting.reliability import reliability_section

pytestmark = pytest.mark.xdist_group("processes")
SHORTEST = tuple("1,1,1" if value == "2,2,1" else value.replace("oicsr-gl,none,l1", "oicsr-gl,none") for value in TINY)


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Arena:
    arena = Arena(tmp_path_factory.mktemp("arena"), SHORTEST)
    assert len(arena.reference) == 2
    return arena


def outcome(tally: Tally) -> tuple[list[str], int, int]:
    """Return what was lost, and how often a fault was tried and survived."""
    return tally.losses, tally.tried, tally.survived


@pytest.mark.parametrize("kind", ["torn", "flipped"])
def test_damaged_records_are_noticed(arena: Arena, kind: str) -> None:
    assert outcome(faults.damaged_records(arena, 25, kind)) == ([], 25, 25)


def test_damaged_checkpoints(arena: Arena) -> None:
    assert outcome(faults.damaged_checkpoints(arena, 1, "flipped")) == ([], 1, 1)


def test_full_disk(arena: Arena) -> None:
    assert outcome(faults.full_disk(arena, 1)) == ([], 1, 1)


def test_two_commands(arena: Arena) -> None:
    assert outcome(faults.two_commands(arena, 1)) == ([], 1, 1)


def test_killed_worker(arena: Arena) -> None:
    assert outcome(faults.killed_workers(arena, 1, "local")) == ([], 1, 1)


@pytest.mark.slow
def test_jumping_clock(arena: Arena) -> None:
    assert outcome(faults.jumping_clock(arena, 1)) == ([], 1, 1)


def test_stops(arena: Arena) -> None:
    assert outcome(faults.stops(arena, 1)) == ([], 1, 1)


@pytest.mark.slow
def test_frozen_owners(arena: Arena) -> None:
    assert outcome(faults.frozen_owners(arena, 2)) == ([], 2, 2)


@pytest.mark.slow
def test_two_versions(arena: Arena, tmp_path: Path) -> None:
    commit = older_commit()
    if commit is None:
        pytest.skip("no older version with the same results is in this checkout's history")
    assert outcome(faults.two_versions(arena, 1, check_out(commit, tmp_path))) == ([], 1, 1)


def test_the_older_version_has_the_same_results(tmp_path: Path) -> None:
    identity = ("-c", "user.name=n", "-c", "user.email=n@example.com", "-c", "commit.gpgsign=false")

    def git(*arguments: str) -> str:
        called = ["git", *identity, "-C", str(tmp_path), *arguments]
        return subprocess.run(called, capture_output=True, text=True, check=True).stdout.strip()

    def commit(subject: str) -> str:
        git("commit", "--allow-empty", "-m", subject)
        return git("rev-parse", "HEAD")

    assert older_commit(tmp_path) is None
    git("init", "-b", "trunk")
    first = commit("Begin")
    assert older_commit(tmp_path) is None
    commit("Go on")
    assert older_commit(tmp_path) == first
    moved = commit("results-affecting: Move a number")
    assert older_commit(tmp_path) is None  # what came before has other results
    commit("Go on")
    assert older_commit(tmp_path) == moved
    git("switch", "-c", "side", moved)
    commit("results-affecting: Move another number")
    git("switch", "trunk")
    git("merge", "--no-edit", "side")
    assert older_commit(tmp_path) is None  # the merge brought other results
    merged = git("rev-parse", "HEAD")
    commit("Go on again")
    assert older_commit(tmp_path) == merged


def test_kills(arena: Arena) -> None:
    assert outcome(faults.kills(arena, 4)) == ([], 4, 4)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra `ray` is not installed")
def test_killed_ray_worker(arena: Arena) -> None:
    tally = faults.killed_workers(arena, 1, "ray")
    if any("timed out during startup" in loss for loss in tally.losses):
        pytest.skip("Ray did not start within the 30 s that it gives itself: this machine is too busy")
    assert outcome(tally) == ([], 1, 1)


def test_loss_is_seen(arena: Arena) -> None:
    arena.clear()
    assert arena.recover() is None
    path = arena.record_paths()[0]
    text = path.read_text()
    path.write_text(text.replace('"top1": 0.', '"top1": 0.0', 1))
    assert "cannot be read" in str(arena.loss())
    path.unlink()
    assert "runs missing" in str(arena.loss())
    path.write_text(text)
    label = next(iter(arena.reference))
    values, history = arena.reference[label]
    try:
        arena.reference[label] = (values, history + "\n")
        assert "other results" in str(arena.loss())
    finally:
        arena.reference[label] = (values, history)


def test_damage_changes_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for kind in ("torn", "flipped"):
        path.write_bytes(b"0123456789")
        damage(path, kind, random.Random(1))
        assert path.read_bytes() != b"0123456789"
        assert len(path.read_bytes()) < 10 or kind == "flipped"


def test_figures_reach_the_results_page(tmp_path: Path) -> None:
    tally = Tally("SIGKILL of the command")
    tally.note(None)
    tally.note("a run was lost")
    assert reliability_section(tmp_path) == []
    text = to_json({"kill": tally}, sweep="demo", runs=12, small_runs=3, date="2026-01-01", device="a CPU")
    (tmp_path / "reliability.json").write_text(text)
    lines = reliability_section(tmp_path)
    assert "| SIGKILL of the command | 2 | 1 |" in lines and "demo` (12 runs)" in "\n".join(lines)
    assert json.loads(text)["kinds"]["kill"]["losses"] == ["a run was lost"]
