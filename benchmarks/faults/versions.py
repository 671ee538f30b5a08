"""An older version of the suite, to share results and checkpoints with the present one."""

from __future__ import annotations

import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

from benchmarks.machine.paths import ROOT

FARTHEST = 10  # commits back

PARTS = ("oicsr", "baselines", "benchmarks", "results/tuning", "results/published")  # what a sweep reads

AFFECTS = "results-affecting:"  # how the subject of a commit begins after which numbers may differ


def older_commit(root: Path = ROOT) -> str | None:
    """Return the commit up to ten before the present one whose results are the same; None where there is none."""
    try:
        log = _git(root, "log", "--format=%H %s", f"-n{FARTHEST + 1}").decode()
    except (OSError, subprocess.CalledProcessError):
        return None
    commits = [line.partition(" ") for line in log.splitlines()]
    unchanged = 0
    while unchanged < len(commits) - 1 and not commits[unchanged][2].startswith(AFFECTS):
        unchanged += 1
    return commits[unchanged][0] if unchanged else None


def check_out(commit: str, folder: Path, root: Path = ROOT) -> Path:
    """Write the code of a commit into a folder, and return the folder."""
    archive = _git(root, "archive", commit, "--", *PARTS)
    with tarfile.open(fileobj=BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    return folder


def _git(folder: Path, *arguments: str) -> bytes:
    return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, check=True).stdout
