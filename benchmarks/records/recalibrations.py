"""Measurements of what the number and the augmentation of images do to recalibration, one file per experiment.

`results/recalibration/<experiment>-<profile>.json`. The command `recalibration` writes them; `report` reads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.config import check_name
from benchmarks.machine.atomic_write import write_atomically
from benchmarks.machine.leases import only_writer
from benchmarks.machine.paths import inside
from benchmarks.machine.plain_files import read_plain
from benchmarks.records.record import RecordError

FOLDER = "recalibration"

SCHEMA = "oicsr-recalibration-1"

KINDS = ("augmented", "clean")


@dataclass(frozen=True)
class Recalibrations:
    """Validation accuracy of one pruned network after recalibration on different images.

    Attributes:
        method: Name of the method.
        macs_kept: Target.
        seed: Of the network.
        strength: Of the regulariser.
        pruned: Top-1 in [0, 1] on validation images before recalibration.
        protocol: The same after recalibration as runs do it.
        augmented: The same by number of images, augmented as in training.
        clean: The same by number of images as they are.
    """

    method: str
    macs_kept: float
    seed: int
    strength: float
    pruned: float
    protocol: float
    augmented: Mapping[int, float]
    clean: Mapping[int, float]

    @property
    def key(self) -> tuple[str, float, int]:
        """What another measurement of the same network replaces."""
        return self.method, -self.macs_kept, self.seed

    def of(self, kind: str) -> Mapping[int, float]:
        """Return top-1 by number of images, augmented or clean."""
        return self.augmented if kind == "augmented" else self.clean


@dataclass(frozen=True)
class Measured:
    """All measurements of an experiment's profile.

    Attributes:
        experiment: Name of the experiment.
        profile: Name of the profile.
        version: Of the protocol.
        images: Augmented training images that a run recalibrates with.
        rows: One per network, method and target.
        provenance: Of the command that measured last.
    """

    experiment: str
    profile: str
    version: int
    images: int
    rows: tuple[Recalibrations, ...]
    provenance: Mapping[str, Any]


def recalibrations_path(results: Path, experiment: str, profile: str) -> Path:
    """Return the path of an experiment's measurements."""
    return inside(results / FOLDER, f"{experiment}-{profile}.json")


def write_recalibrations(results: Path, measured: Measured) -> Path:
    """Write measurements; rows of the same network, method and target are replaced, others are kept.

    Rows of another version of the protocol, or of another number of images, are dropped.
    """
    path = recalibrations_path(results, measured.experiment, measured.profile)
    with only_writer(path):
        earlier = read_recalibrations(path) if path.is_file() else None
        kept = earlier.rows if earlier and _alike(earlier, measured) else ()
        rows = {row.key: row for row in (*kept, *measured.rows)}
        data = {"schema": SCHEMA, **asdict(measured), "rows": [asdict(rows[key]) for key in sorted(rows)]}
        write_atomically(path, (json.dumps(data, indent=1) + "\n").encode())
    return path


def _alike(one: Measured, other: Measured) -> bool:
    return (one.version, one.images) == (other.version, other.images)


def read_recalibrations(path: Path) -> Measured:
    """Read measurements.

    Raises:
        RecordError: The file cannot be read, or holds something else.
    """
    try:
        data = json.loads(read_plain(path))
        if data["schema"] != SCHEMA:
            raise ValueError(f"its schema is {str(data['schema'])[:40]!r}, not {SCHEMA!r}")
        rows = tuple(_row(row) for row in data["rows"])
        for name in ("experiment", "profile"):
            check_name(name, data[name])
        version, images, provenance = int(data["version"]), int(data["images"]), dict(data["provenance"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        message = f"{path} holds no readable measurements of recalibration: {error!r}. Restore it, or measure again."
        raise RecordError(message) from error
    return Measured(data["experiment"], data["profile"], version, images, rows, provenance)


def _row(row: Mapping[str, Any]) -> Recalibrations:
    by_images = {kind: {int(count): _top1(value) for count, value in row[kind].items()} for kind in KINDS}
    target, seed, strength = float(row["macs_kept"]), int(row["seed"]), float(row["strength"])
    if not 0 < target <= 1:
        raise ValueError(f"the target {target!r} is no share of the MACs")
    return Recalibrations(
        str(row["method"]), target, seed, strength, _top1(row["pruned"]), _top1(row["protocol"]), **by_images
    )


def _top1(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{str(value)[:40]!r} is no accuracy in [0, 1]")
    return float(value)


def all_recalibrations(results: Path) -> Sequence[Measured]:
    """Return all measurements of a results folder, by name.

    Raises:
        RecordError: One of them cannot be read.
    """
    return [read_recalibrations(path) for path in sorted((results / FOLDER).glob("*.json"))]
