"""How many runs at a time: as many as suit the machine, with the same records as one after the other."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.commands import running, tune
from benchmarks.commands.options import add_jobs
from benchmarks.commands.tune import Place
from benchmarks.records.record import read_record, record_path
from benchmarks.running import side_by_side
from benchmarks.running.cells import cells_of
from benchmarks.running.engines.driver import Driver
from benchmarks.running.engines.local import InProcess, Processes
from benchmarks.running.side_by_side import MEMORY, choose_jobs
from benchmarks.running.stopping import Control
from tests.benchmarks.small import small_bench, small_cell, small_experiment

CPU = torch.device("cpu")


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("runs", "memory", "jobs"), [(9, 99, 4), (3, 99, 3), (1, 99, 1), (9, 2, 2), (9, 0, 1)])
def test_one_run_per_core_as_far_as_there_are_runs_and_memory(
    runs: int, memory: int, jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side_by_side, "_memory", lambda: memory * MEMORY)
    assert choose_jobs([small_cell()], CPU, runs) == jobs


@pytest.mark.parametrize(
    ("text", "runs"), [(f"{2 * MEMORY}\n", 2), ("max\n", 4), ("9223372036854771712\n", 4), ("0\n", 1)]
)
@pytest.mark.usefixtures("threads")
def test_a_container_may_allow_less_memory_than_the_machine_has(
    text: str, runs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, sizes = {"SC_PHYS_PAGES": 0, "SC_PAGE_SIZE": 1}, {"SC_PHYS_PAGES": 99, "SC_PAGE_SIZE": MEMORY}
    monkeypatch.setattr(side_by_side.os, "sysconf_names", names)
    monkeypatch.setattr(side_by_side.os, "sysconf", sizes.__getitem__)
    monkeypatch.setattr(side_by_side, "CONTAINER", (tmp_path / "none", tmp_path / "limit"))
    (tmp_path / "limit").write_text(text)
    assert choose_jobs([small_cell()], CPU, 9) == runs


def test_large_networks_and_gpus_are_left_to_one_run() -> None:
    large = replace(small_cell(), experiment=replace(small_experiment(), model="imagenet-resnet50"))
    assert choose_jobs([small_cell(), large], CPU, 9) is None
    assert choose_jobs([small_cell()], torch.device("cuda"), 9) is None
    assert side_by_side._memory() > 2**28


def options(*arguments: str, **others: Any) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_jobs(parser, "runs")
    return argparse.Namespace(**{"engine": "local", **others, **vars(parser.parse_args(arguments))})


@pytest.mark.usefixtures("threads")
def test_runs_are_done_side_by_side_unless_another_number_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    cells, said = cells_of(small_experiment(), "quick"), list[str]()
    assert running._jobs(options("--jobs", "2"), cells, CPU, said.append) == 2
    assert running._jobs(options(engine="ray"), cells, CPU, said.append) == 1
    assert running._jobs(options(), cells, torch.device("cuda"), said.append) == 1
    assert torch.get_num_threads() == 4 and not said
    assert running._jobs(options("--jobs", "auto"), cells, CPU, said.append) == len(cells) == 3
    assert torch.get_num_threads() == 3 and said == [
        "3 at a time, one thread each; --jobs 1 gives all 4 threads to one run"
    ]
    with pytest.raises(SystemExit):
        options("--jobs", "many")
    assert "'many' is not an integer of 1 or more, and not auto" in capsys.readouterr().err


@pytest.mark.usefixtures("threads")
def test_methods_are_tuned_side_by_side_unless_another_number_is_given(tmp_path: Path) -> None:
    cells, place = cells_of(small_experiment(), "quick"), Place("cpu", tmp_path, tmp_path, None)
    assert tune._shared_out(place, cells, 2, None) == (replace(place, threads=1), 2)
    assert tune._shared_out(place, cells, 2, 1) == (place, 1)
    assert tune._shared_out(replace(place, device="cuda"), cells, 2, None) == (replace(place, device="cuda"), 1)


def test_runs_side_by_side_leave_the_records_of_runs_one_after_the_other(tmp_path: Path) -> None:
    cells, found = cells_of(small_experiment(), "quick")[:2], []
    for name in ("after", "beside"):
        bench, control = small_bench(tmp_path / name), Control()
        engine = Processes(bench, control, 2, {}) if name == "beside" else InProcess(bench, control)
        assert len(Driver(bench, engine, control, []).drive(cells).records) == 2
        found.append([read_record(record_path(bench.results, cell)) for cell in cells])
    for one, other in zip(*found, strict=True):
        assert one.complete and one.provenance["threads"] == other.provenance["threads"] == 1
        assert replace(one, timing={}, provenance={}) == replace(other, timing={}, provenance={})
