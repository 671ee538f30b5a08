"""Leases: one owner at a time, dead ones taken over, no clock trusted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks.machine import leases as locking
from benchmarks.machine.leases import (
    LeaseLostError,
    Watch,
    lease_path,
    new_owner,
    process_started,
    read_owner,
    try_lease,
    wait_for_lease,
)
from benchmarks.machine.paths import OutsideError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return lease_path(tmp_path, "experiment", "quick-l1-keep47.619-seed0")


def hold(path: Path, **changes: object) -> None:
    """Let somebody else hold the lease."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(new_owner()) | {"token": "other"} | changes))


def test_one_owner_at_a_time(path: Path) -> None:
    with try_lease(path) as first:  # type: ignore[union-attr]
        assert first is not None and read_owner(path) == first.owner
        assert try_lease(path) is None
        first.check()
    assert not path.exists()
    with try_lease(path) as second:  # type: ignore[union-attr]
        assert second is not None and second.owner.token != first.owner.token


def test_lease_of_a_process_that_is_gone_is_taken_over(path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    hold(path, pid=gone.pid, started="123")
    with try_lease(path) as lease:  # type: ignore[union-attr]
        assert lease is not None


def test_process_number_that_was_given_out_again_holds_nothing(path: Path) -> None:
    hold(path, pid=os.getpid(), started="1")
    with try_lease(path) as lease:  # type: ignore[union-attr]
        assert lease is not None


def test_living_owner_keeps_its_lease_however_old_its_file_looks(path: Path) -> None:
    hold(path)
    os.utime(path, (0, 0))
    assert try_lease(path) is None


@pytest.mark.parametrize("moment", [0.0, time.time() + 1e9], ids=["long ago", "far ahead"])
def test_silent_owner_on_another_machine_is_dead_after_a_while_by_ones_own_clock(
    path: Path, monkeypatch: pytest.MonkeyPatch, moment: float
) -> None:
    hold(path, machine="elsewhere")
    os.utime(path, (moment, moment))  # its clock may be anything
    now, watch = [1000.0], Watch()
    monkeypatch.setattr(locking.time, "monotonic", lambda: now[0])
    assert try_lease(path, watch) is None
    now[0] += locking.STALE_AFTER - 1
    assert try_lease(path, watch) is None
    os.utime(path, (moment + 1, moment + 1))  # a sign of life
    now[0] += 2
    assert try_lease(path, watch) is None
    now[0] += locking.STALE_AFTER + 1
    with try_lease(path, watch) as lease:  # type: ignore[union-attr]
        assert lease is not None


def test_owner_notices_that_it_lost_its_lease(path: Path) -> None:
    lease = try_lease(path)
    assert lease is not None
    hold(path, machine="elsewhere")
    with pytest.raises(LeaseLostError, match="taken over"):
        lease.check()
    lease.release()
    assert read_owner(path) is not None  # the other's lease is left alone


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": 1}', b"\xff\xfe", b'{"a": ' * 5000])
def test_torn_owner_file_holds_nobody_up(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with try_lease(path) as lease:  # type: ignore[union-attr]
        assert lease is not None


@pytest.mark.parametrize("suffix", [".owner", ".lock"])
def test_a_pipe_in_place_of_a_lease_is_not_waited_for(path: Path, suffix: str) -> None:
    path.parent.mkdir(parents=True)
    os.mkfifo(path.with_suffix(suffix))
    with try_lease(path) as lease:  # type: ignore[union-attr]
        assert path.is_file() and read_owner(path) == lease.owner
    assert not path.exists()


@pytest.mark.parametrize("suffix", [".owner", ".lock"])
@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_folder_or_a_link_in_place_of_a_lease_is_an_error_that_names_it(path: Path, suffix: str, kind: str) -> None:
    path.parent.mkdir(parents=True)
    place, elsewhere = path.with_suffix(suffix), path.parent.parent / "elsewhere"
    elsewhere.write_text("kept")
    place.mkdir() if kind == "folder" else place.symlink_to(elsewhere)
    if (kind, suffix) == ("link", ".owner"):  # followed by no one: a new file takes its place
        with try_lease(path) as lease:  # type: ignore[union-attr]
            assert read_owner(path) == lease.owner
    else:
        with pytest.raises((OSError, OutsideError), match=place.name):
            try_lease(path)
    assert elsewhere.read_text() == "kept"


def test_heartbeat_touches_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "HEARTBEAT", 0.01)
    with try_lease(path) as lease:  # type: ignore[union-attr]
        assert lease is not None
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0


def test_heartbeat_goes_on_after_a_read_that_failed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "HEARTBEAT", 0.01)
    monkeypatch.setattr(locking.Lease, "__post_init__", lambda self: None)  # no thread: this test beats
    lease = try_lease(path)
    assert lease is not None
    answers = iter([None, lease.owner, None, lease.owner, replace(lease.owner, token="other")])
    monkeypatch.setattr(locking, "read_owner", lambda path: next(answers))
    touched: list[Path] = []
    monkeypatch.setattr(locking.os, "utime", touched.append)
    lease._beat()  # ends where another owner is read
    assert len(touched) == 4


def test_a_read_that_failed_is_tried_again_before_a_lease_counts_as_lost(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with try_lease(path) as lease:  # type: ignore[union-attr]
        assert lease is not None
        answers = iter([None, lease.owner])
        with monkeypatch.context() as patch:
            patch.setattr(locking, "read_owner", lambda path: next(answers))
            lease.check()


def test_many_processes_never_hold_it_together(path: Path, tmp_path: Path) -> None:
    code = (
        "import sys, os; from pathlib import Path; from benchmarks.machine.leases import wait_for_lease; import time\n"
        "path, mark = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "for _ in range(10):\n"
        "    with wait_for_lease(path, lambda: time.sleep(0.001)):\n"
        "        with open(mark, 'x'): time.sleep(0.001)\n"
        "        os.unlink(mark)\n"
        "print('done')\n"
    )
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "mark")]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for run in runs:
        out, err = run.communicate(timeout=120)
        assert out == "done\n", err


def test_start_of_this_process_is_known() -> None:
    owner = new_owner()
    assert process_started(owner.pid) == owner.started
    assert replace(owner, token="") == replace(new_owner(), token="")


def test_a_wait_for_another_owner_is_told_once_with_machine_and_process(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(locking.time, "monotonic", lambda: now)
    hold(path, machine="node7/boot/4026", pid=321)
    looks: list[float] = []
    told: list[tuple[float, str]] = []

    def pause() -> None:
        nonlocal now
        now += 1.0
        looks.append(now)
        if len(looks) == 10:  # another owner, whom a person must hear of too
            hold(path, machine="node8/boot/4026", pid=7, token="third")
        if len(looks) == 20:
            path.unlink()

    with wait_for_lease(path, pause, lambda owner: told.append((now, str(owner)))):
        assert told == [(103.0, "process 321 on node7"), (113.0, "process 7 on node8")]


def test_a_short_wait_is_not_told(path: Path) -> None:
    hold(path)
    with wait_for_lease(path, path.unlink, lambda owner: pytest.fail(f"told of {owner}")) as lease:
        assert read_owner(path) == lease.owner
