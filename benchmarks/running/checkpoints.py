"""Checkpoints that survive a killed process: written atomically, in two generations, each with a checksum.

A checkpoint is read with `weights_only=True`, after its SHA-256 was verified. Nothing in a file is executed.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine.atomic_write import write_atomically
from benchmarks.machine.leases import Lease, Owner, lease_path, wait_for_lease
from benchmarks.machine.paths import inside
from benchmarks.machine.plain_files import read_plain
from benchmarks.machine.weights_files import READ_ERRORS

MAGIC = b"oicsr-checkpoint-1\n"

GENERATIONS = 2

GENERATION = re.compile(r"[0-9]{6}\.ckpt")

PROGRESS = "progress.json"


class CheckpointWarning(UserWarning):
    """A checkpoint was damaged; an older one is used, or none."""


class CheckpointStore:
    """Checkpoints of stages of training, by key, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, key: str, state: dict[str, Any], progress: Mapping[str, Any] | None = None) -> None:
        """Write a new generation of the checkpoint `key`; keep the previous one, delete older ones.

        Args:
            key: Names the stage.
            state: Tensors, numbers, texts, and dictionaries and lists of them.
            progress: What the method `progress` returns without reading the weights.

        Raises:
            OSError: It cannot be written; existing files are kept.
        """
        folder = inside(self.folder, key)
        folder.mkdir(parents=True, exist_ok=True)
        earlier = self._generations(key)
        number = int(earlier[-1].stem) + 1 if earlier else 0
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        header = MAGIC + hashlib.sha256(content).hexdigest().encode() + b"\n"
        write_atomically(folder / f"{number:06d}.ckpt", header + content)
        for old in earlier[: max(0, len(earlier) + 1 - GENERATIONS)]:
            old.unlink(missing_ok=True)
        if progress is not None:
            write_atomically(folder / PROGRESS, json.dumps(progress).encode())

    def progress(self, key: str) -> dict[str, Any] | None:
        """Return the recorded progress of the newest checkpoint of `key`, for people and estimates, or None."""
        try:
            data = json.loads(read_plain(self.folder / key / PROGRESS))
        except (OSError, ValueError, RecursionError):
            return None
        return data if isinstance(data, dict) and self._generations(key) else None

    def lease(self, key: str, pause: Callable[[], None], say: Callable[[Owner], None]) -> Lease:
        """Wait until no other process trains the stage `key`, then hold its lease; see `wait_for_lease`."""
        return wait_for_lease(lease_path(self.folder, key), pause, say)

    def load(self, key: str) -> dict[str, Any] | None:
        """Return the newest undamaged state of `key`, on the CPU, or None.

        Warns:
            CheckpointWarning: A generation is damaged and is skipped.
        """
        for path in reversed(self._generations(key)):
            state = read_checkpoint(path)
            if state is not None:
                return state
        return None

    def _generations(self, key: str) -> list[Path]:
        """Return the checkpoints of `key`, oldest first; unrelated files are ignored."""
        return sorted(path for path in (self.folder / key).glob("*.ckpt") if GENERATION.fullmatch(path.name))


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """Return the state in a checkpoint file, or warn and return None if it is damaged.

    Raises:
        OSError: It cannot be read now, and may be whole.
    """
    try:
        content = path.read_bytes() if path.is_file() else None
    except FileNotFoundError:  # another command deleted it
        content = None
    try:
        if content is None:
            raise ValueError("it is no plain file")
        prefix = len(MAGIC) + 65
        header, payload = content[:prefix], content[prefix:]
        if header != MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n":
            raise ValueError("its checksum is wrong")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about a file that another program made
            state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}")
    except READ_ERRORS as error:
        warnings.warn(f"checkpoint {path} is damaged ({error}) and is skipped", CheckpointWarning, stacklevel=3)
        return None
    return state
