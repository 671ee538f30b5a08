"""Output that nobody reads, or that cannot be written, ends no work and is not taken for a full disk of results."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.machine.screen import Screen

WORK = (
    "import sys, time; from pathlib import Path; from benchmarks.cli import _do, lasting_screen, main\n"
    "from rich.console import Console\n"
    "import benchmarks.commands.list as listing\n"
    "def command(options):\n"
    "    for i in range(3000): Console().print('line ' * 20, i)\n"
    "    Path(sys.argv[1]).write_text('done')\n"
    "    return 0\n"
    "listing.command = command\n"
    "sys.exit(main(['list']))"
)


def run(done: Path, tail: str) -> tuple[int, str]:
    shell = f'set -o pipefail; {sys.executable} -c "$WORK" {done} {tail}'
    result = subprocess.run(
        ["bash", "-c", shell], env={**os.environ, "WORK": WORK}, capture_output=True, text=True, check=False
    )
    return result.returncode, result.stderr


def test_work_goes_on_after_its_reader_had_enough(tmp_path: Path) -> None:
    code, errors = run(tmp_path / "done", "| head -n 1")
    assert (code, errors) == (0, "") and (tmp_path / "done").read_text() == "done"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("tail", ["> /dev/full", "> /dev/full 2> /dev/full", ">&-"])
def test_a_full_device_for_the_output_ends_no_work(tmp_path: Path, tail: str) -> None:
    code, errors = run(tmp_path / "done", tail)
    assert (tmp_path / "done").read_text() == "done"
    if tail != ">&-":  # a closed output is what the user asked for
        assert code == 1
    if tail == "> /dev/full":
        assert errors == "python -m benchmarks: its output could not be written: No space left on device\n"


def test_only_text_that_somebody_wanted_counts_as_lost() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as stream:  # noqa: PTH123 (a descriptor)
        screen = Screen(stream)
        assert screen.write("text") == 4
        screen.flush()
        assert isinstance(screen.error, BrokenPipeError) and screen.lost is None
