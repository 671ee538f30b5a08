"""An older version of the suite, to share results and checkpoints with the present one."""

from __future__ import annotations

import subprocess
import tarfile
from io import BytesIO
from itertools import pairwise
from pathlib import Path

from benchmarks.machine.paths import ROOT

FARTHEST = 10  # commits back

PARTS = ("oicsr", "baselines", "benchmarks", "results/tuning", "results/published")  # what a sweep reads

FIELDS = "benchmarks/config.py"  # where those of profiles are

AFFECTS = "results-affecting:"  # how the subject of a commit begins after which numbers may differ


def older_commit(root: Path = ROOT) -> str | None:
    """Return the commit up to ten before the present one whose results are the same; None where there is none.

    Only first parents count: the other side of a merge may lack what this side had before. Nor do versions whose
    profiles have other fields: they refuse each other's sweeps.
    """
    try:
        commits = _git(root, "rev-list", "--first-parent", f"-n{FARTHEST + 1}", "HEAD").decode().split()
        older = None
        for newer, commit in pairwise(commits):
            subjects = _git(root, "log", "--format=%s", f"{commit}..{newer}").decode().splitlines()
            fields = _git(root, "diff", "--name-only", commit, newer, "--", FIELDS)
            if fields or any(subject.startswith(AFFECTS) for subject in subjects):
                break
            older = commit
    except (OSError, subprocess.CalledProcessError):
        return None
    return older


def check_out(commit: str, folder: Path, root: Path = ROOT) -> Path:
    """Write the code of a commit into a folder, and return the folder."""
    archive = _git(root, "archive", commit, "--", *PARTS)
    with tarfile.open(fileobj=BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    return folder


def _git(folder: Path, *arguments: str) -> bytes:
    return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, check=True).stdout
