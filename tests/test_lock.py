"""The lock: every package with its hashes, no address, and all that the project asks for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent

LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")

PIN = re.compile(r"^([a-z0-9][a-z0-9._-]*)==(\S+)( ; .+)? \\$")


def test_every_locked_package_has_hashes_and_no_address() -> None:
    lines = [line for line in LOCK.splitlines() if not line.lstrip().startswith("#")]
    pins = [number for number, line in enumerate(lines) if PIN.match(line)]
    assert len(pins) > 100 and not any("://" in line or "--index" in line for line in LOCK.splitlines())
    for begin, end in zip(pins, [*pins[1:], len(lines)], strict=True):
        hashes = lines[begin + 1 : end]
        assert hashes and all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line) for line in hashes)


def test_everything_that_the_project_asks_for_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(name for extra in project["optional-dependencies"].values() for name in extra)]
    names = {re.split(r"[\[<>=; ]", name)[0].lower() for name in asked}
    assert names <= {found[1] for line in LOCK.splitlines() if (found := PIN.match(line))}


def test_setup_installs_by_hash_alone() -> None:
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "--require-hashes --requirement requirements.lock" in recipe and "--no-build-isolation" in recipe
