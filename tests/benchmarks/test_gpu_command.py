"""`gpu`: its parts one after the other, each within its time; without a card it says so."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.cli import main
from benchmarks.commands import gpu
from benchmarks.commands.gpu import GPU_TESTS, PARTS, Part, do_parts
from benchmarks.commands.options import choose_graphs
from benchmarks.machine.paths import ROOT
from benchmarks.records.record import record_path, write_record
from tests.benchmarks.fakes import fake_history, fake_record
from tests.benchmarks.small import small_cell


def options_in(folder: Path, minutes: float = 8.5) -> argparse.Namespace:
    return argparse.Namespace(
        out=folder,
        results=folder / "results",
        checkpoints=folder / "checkpoints",
        minutes=minutes,
        profile="paper",
        experiments=[],
        graphs=True,
    )


def script(code: str) -> Callable[[argparse.Namespace, float], list[str]]:
    return lambda options, seconds: ["-c", code]


def test_without_a_card_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert do_parts(options_in(tmp_path), ["perf", "runs"], card=False) == 1
    said = capsys.readouterr().out.splitlines()
    assert [line.partition("(")[0] for line in said] == ["gpu: there is no CUDA device here "] * 2
    assert [line.rpartition(": ")[2] for line in said] == ["perf left out", "runs left out"]
    assert not list(tmp_path.iterdir())


def test_parts_are_done_in_turn_and_their_output_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PARTS, "tests", Part(script("print('fine')"), 0.5, needs_card=False))
    monkeypatch.setitem(PARTS, "perf", Part(script("import sys; print('bad', file=sys.stderr); sys.exit(3)"), 0.5))
    assert do_parts(options_in(tmp_path), ["tests"], card=False) == 0
    assert do_parts(options_in(tmp_path), ["perf", "tests"], card=True) == 1
    assert (tmp_path / "tests.log").read_text() == "fine\n" and (tmp_path / "perf.log").read_text() == "bad\n"
    said = capsys.readouterr().out
    assert "gpu: perf: exit code 3 after" in said and said.count("gpu: tests: exit code 0 after") == 2


class AfterTheFirstLine:
    """A timer that is over as soon as the log has a line, however slow the machine is."""

    def __init__(self, log: Path, function: Callable[[], None]) -> None:
        self._log, self._function = log, function

    def start(self) -> None:
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        while not (self._log.is_file() and self._log.read_text()):
            time.sleep(0.01)
        self._function()

    def cancel(self) -> None:
        pass


def test_a_part_ends_with_its_time_and_keeps_what_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "perf.log"
    monkeypatch.setattr(gpu, "Timer", lambda seconds, function: AfterTheFirstLine(log, function))
    endless = script("import time\nprint('begun')\nwhile True: time.sleep(1)")
    monkeypatch.setitem(PARTS, "perf", Part(endless, 1.0))
    assert do_parts(options_in(tmp_path), ["perf"], card=True) == 0
    assert log.read_text() == "begun\n"
    assert "its time was over" in capsys.readouterr().out
    assert do_parts(options_in(tmp_path, minutes=0.1), ["perf"], card=True) == 0
    assert re.search(r"perf left out: \d seconds are left for it, 30 are the least", capsys.readouterr().out)


def test_runs_get_the_folders_and_end_before_their_time(tmp_path: Path) -> None:
    options = options_in(tmp_path)
    arguments = PARTS["runs"].arguments(options, 200.0)
    assert arguments[:6] == ["-m", "benchmarks", "run", "--pending", "--profile", "paper"]
    given = dict(zip(arguments[6:-1:2], arguments[7::2], strict=False))
    assert given["--results"] == str(options.results) and given["--checkpoints"] == str(options.checkpoints)
    assert float(given["--budget-minutes"]) == 3.0 and given["--wandb"] == "disabled"
    assert "--no-graphs" not in arguments
    options.experiments, options.graphs = ["cifar10-resnet20"], False
    named = PARTS["runs"].arguments(options, 200.0)
    assert named[3:5] == ["cifar10-resnet20", "--pending"] and "--no-graphs" in named


@pytest.mark.parametrize(
    ("asked", "device", "expected"), [(None, "cuda", True), (None, "cpu", False), (False, "cuda", False)]
)
def test_steps_are_replayed_from_graphs_wherever_there_is_a_gpu(
    asked: bool | None, device: str, expected: bool
) -> None:
    assert choose_graphs(argparse.Namespace(graphs=asked), torch.device(device)) is expected


def test_all_tests_that_need_a_card_are_called() -> None:
    mark = "pytest.mark." + "gpu"  # not to be found in this file
    found = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py") if mark in path.read_text()}
    assert found == set(GPU_TESTS)


@pytest.mark.parametrize(
    ("arguments", "problem"), [(["test"], "Did you mean 'tests'"), (["--minutes", "10"], "above 0 and 9 at the most")]
)
def test_wrong_parts_and_times_are_refused(
    arguments: list[str], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gpu", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert problem in capsys.readouterr().err and not (tmp_path / "out").exists()


ABSENT = """
import sys
for name in ("wandb", "ray", "torch_pruning", "pydantic", "jinja2", "markupsafe", "html5lib"):
    sys.modules[name] = None
import benchmarks.commands.gpu, benchmarks.commands.perf, benchmarks.commands.run, benchmarks.reporting.build
from pathlib import Path
from benchmarks.records.record import read_record
print(read_record(Path(sys.argv[1])).method)
"""


def test_what_trains_needs_neither_peers_nor_report_tools(tmp_path: Path) -> None:
    cell = small_cell()
    write_record(tmp_path, fake_record(cell), fake_history())
    command = [sys.executable, "-c", ABSENT, str(record_path(tmp_path, cell))]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [cell.method]
    assert "pydantic is not installed: the values of records are read unchecked" in run.stderr
