"""Checkpoints: two generations, checksums, nothing executed."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path

import pytest
import torch

from benchmarks.machine import atomic_write
from benchmarks.machine.atomic_write import write_atomically
from benchmarks.running.checkpoints import CheckpointStore, CheckpointWarning


def test_newest_generation_is_read_and_two_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    assert store.load("a") is None
    for epoch in range(4):
        store.save("a", {"epoch": epoch, "weights": torch.full((3,), float(epoch))})
    state = store.load("a")
    assert state is not None and state["epoch"] == 3 and state["weights"].tolist() == [3.0] * 3
    assert len(list((tmp_path / "a").iterdir())) == 2


@pytest.mark.parametrize("harm", ["torn", "flipped", "empty", "foreign"])
def test_damaged_generation_falls_back_to_the_one_before(tmp_path: Path, harm: str) -> None:
    store = CheckpointStore(tmp_path)
    for epoch in range(2):
        store.save("a", {"epoch": epoch})
    newest = max((tmp_path / "a").iterdir())
    content = bytearray(newest.read_bytes())
    content[-20] ^= 1
    changed = {"torn": content[: len(content) // 2], "flipped": content, "empty": b"", "foreign": pickle.dumps({})}
    newest.write_bytes(changed[harm])
    with pytest.warns(CheckpointWarning, match="is damaged"):
        state = store.load("a")
    assert state == {"epoch": 0}


def test_what_cannot_be_read_now_is_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path)
    for epoch in range(2):
        store.save("a", {"epoch": epoch})

    def fails(path: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fails)
        with pytest.raises(OSError, match="Input/output"):
            store.load("a")
    assert store.load("a") == {"epoch": 1} and len(list((tmp_path / "a").iterdir())) == 2


def test_a_full_disk_names_the_file_and_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)
    store.save("a", {"epoch": 0})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # as from the kernel: it names no file

    monkeypatch.setattr(atomic_write.os, "fsync", full)
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/a/000001.ckpt'") as caught:
        store.save("a", {"epoch": 1})
    assert caught.value.errno == errno.ENOSPC
    assert store.load("a") == {"epoch": 0} and [path.name for path in (tmp_path / "a").iterdir()] == ["000000.ckpt"]


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
