"""Where records come from, in words: commits, library versions, devices. Every table says so for its rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.records.record import Record

NUMBERS = ("torch", "torchvision", "timm", "torch-pruning")  # packages whose version can move a number

SHORT = 8  # digits of a commit
SHORT_DATA = 12  # digits of a data set's checksum

MANY = 6  # of one kind that are listed by name


@dataclass(frozen=True)
class Origins:
    """What the records of a table were made with; each sorted and without repetition.

    Attributes:
        protocols: Versions of the protocol.
        commits: Abbreviated; `+` behind one whose tree had changes that were not committed.
        versions: By package, those that were installed.
        devices: Kind and name.
        precisions: Of the forward and backward pass.
        data: Abbreviated checksums of the data sets.
    """

    protocols: tuple[int, ...]
    commits: tuple[str, ...]
    versions: dict[str, tuple[str, ...]]
    devices: tuple[str, ...]
    precisions: tuple[str, ...]
    data: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """One sentence for the notes of a table."""
        return self.text_of("the rows")

    def text_of(self, what: str) -> str:
        """Return the sentence for something else that was made from these records."""
        packages = [f"{package} {' and '.join(found)}" for package, found in self.versions.items()]
        parts = [
            f"protocol {' and '.join(map(str, self.protocols))}" if self.protocols else "",
            f"{_counted(self.commits, 'commit')}",
            ", ".join(packages) or "versions not recorded",
            _counted(self.devices, "device"),
            " and ".join(self.precisions),
            f"different data (SHA-256 {' and '.join(self.data)})" if len(self.data) > 1 else "",
        ]
        return f"Origin of {what}: {'; '.join(part for part in parts if part)}."


def _counted(names: Sequence[str], what: str) -> str:
    if not names:
        return f"{what} not recorded"
    listed = ", ".join(names[:MANY]) + (f" and {len(names) - MANY} more" if len(names) > MANY else "")
    return f"{what}{'' if len(names) == 1 else 's'} {listed}"


def origins_of(records: Iterable[Record]) -> Origins:
    """Return what records were made with, as their provenance says."""
    records = list(records)
    return Origins(
        tuple(sorted({record.protocol for record in records})),
        *_sources([record.provenance for record in records]),
        tuple(sorted({str(r.config["precision"]) for r in records if r.config.get("precision")})),
        data_of(records),
    )


def data_of(records: Iterable[Record]) -> tuple[str, ...]:
    """Return the abbreviated checksums of the data that records were made on, as far as they say."""
    known = {str(record.provenance["data_sha256"]) for record in records if record.provenance.get("data_sha256")}
    return tuple(sorted(checksum[:SHORT_DATA] for checksum in known))


def sources_text(sources: Sequence[Mapping[str, Any]]) -> str:
    """Return in one sentence what measurements were made with, as their provenance says."""
    return Origins((), *_sources(sources), ()).text


def _sources(
    sources: Sequence[Mapping[str, Any]],
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Return commits, versions by package, and devices."""
    packages: dict[str, set[str]] = {}
    for source in sources:
        for package in NUMBERS:
            if package in (source.get("versions") or {}):
                packages.setdefault(package, set()).add(str(source["versions"][package]))
    return (
        tuple(sorted({_commit(source) for source in sources if source.get("commit")})),
        {package: tuple(sorted(packages[package])) for package in NUMBERS if package in packages},
        tuple(sorted({_device(source) for source in sources if source.get("device_type")})),
    )


def _commit(source: Mapping[str, Any]) -> str:
    return str(source["commit"])[:SHORT] + ("+" if source.get("dirty") else "")


def _device(source: Mapping[str, Any]) -> str:
    return f"{source['device_type']} ({source.get('device') or 'name not recorded'})"
