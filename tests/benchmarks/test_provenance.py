"""What a record says of its origin, and what it keeps to itself."""

from __future__ import annotations

import sys

import pytest

from benchmarks.machine.provenance import this_command


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["run", "digits", "--seeds", "0-2"], "run digits --seeds 0-2"),
        (["run", "digits", "--results", "/home/ann/study"], "run digits --results study"),
        (["run", "digits", "--results=/home/ann/study"], "run digits --results=study"),
        (["run", "digits", "--results", "../res"], "run digits --results ../res"),
        (
            ["run", "digits", "--methods", "oicsr-gl,none", "--macs-kept=0.5"],
            "run digits --methods oicsr-gl,none --macs-kept=0.5",
        ),
        (["run", "/home/ann/my experiments/own.py"], "run own.py"),
        (["report", "--results", "my results"], "report --results 'my results'"),
        (["report", "--results", "/"], "report --results /"),
    ],
)
def test_commands_are_shown_without_the_places_of_files(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], shown: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["/home/ann/suite/benchmarks/__main__.py", *arguments])
    assert this_command() == f"python -m benchmarks {shown}"
