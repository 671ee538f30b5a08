"""The micro-benchmarks on tiny settings: what they write, not how fast this machine is."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import sys
import weakref
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.cli import main
from benchmarks.models import find_builder
from benchmarks.perf import measure, peers, prune, roofline, sections, train, workers
from benchmarks.perf.measure import Settings, in_turns, median_ms, median_ratio, quiet_couplings
from oicsr import GroupLasso, count_macs
from tests.oicsr.networks import Chain

CPU = torch.device("cpu")
TINY = ["--models", "resnet20", "--repeats", "1", "--batch-size", "4", "--backends", "eager", "--device", "cpu"]


def read_sections(folder: Path) -> dict[str, Any]:
    (path,) = (folder / "perf").glob("*.json")
    assert path.name == f"{sections.slug(CPU)}.json"
    found: dict[str, Any] = json.loads(path.read_text())["sections"]
    return found


def test_penalty_latency_and_training_write_their_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["perf", "penalty", "latency", *TINY, "--results", str(tmp_path)]) == 0
    assert main(["perf", "train", *TINY, "--results", str(tmp_path)]) == 0  # keeps the sections that are there
    found = read_sections(tmp_path)
    assert list(found) == ["penalty", "latency", "train"]
    inner, everything = found["penalty"]["rows"]
    assert (inner["scope"], everything["scope"]) == ("inner", "all")
    for row in (inner, everything):
        assert row["penalised weights"] <= row["parameters"] and row["share of step"] > 0
        assert all(row[f"{form} ms"] > 0 for form in ("step", "direct", "autograd", "proximal", "naive"))
        assert row["x naive"] > 0
        assert (row["x torch-pruning"] or 0) > 0 or row["torch-pruning ms"] == "torch-pruning is not installed"
    latencies = found["latency"]["rows"]
    assert [(row["batch"], row["widths"]) for row in latencies] == [
        (batch, widths) for batch in (1, 4) for widths in ("any", "multiples of 8")
    ]
    assert all(1.9 < row["x MACs"] < 2.1 for row in latencies)
    assert {row["precision"] for row in found["train"]["rows"]} >= {"float32"}
    assert all(row["x plain"] > 0 for row in found["train"]["rows"])
    (markdown,) = (tmp_path / "perf").glob("*.md")
    text = markdown.read_text()
    assert text.count("\n## ") == 3 and "| resnet20 | inner |" in text
    assert "| resnet20 | inner |" in capsys.readouterr().out


def mark(path: Path) -> measure.Candidate:
    """Return a candidate that notes its process and its threads."""

    def note() -> None:
        (path / f"{os.getpid()}-{torch.get_num_threads()}").touch()

    return note


def refuse() -> measure.Candidate:
    """Fail before there is anything to measure."""
    raise ValueError("no such network")


def test_workers_run_at_once_in_processes_of_one_thread(tmp_path: Path) -> None:
    with workers.Workers(2, partial(mark, tmp_path)) as both:
        assert not list(tmp_path.iterdir())
        both()
        noted = {path.name.split("-")[0]: path.name.split("-")[1] for path in tmp_path.iterdir()}
        assert len(noted) == 2 and str(os.getpid()) not in noted and set(noted.values()) == {"1"}
        both()
    assert len(list(tmp_path.iterdir())) == 2 and not any(process.is_alive() for process in both._processes)


def test_workers_end_quietly_with_the_process_that_started_them() -> None:
    mine, theirs = multiprocessing.Pipe()
    mine.close()
    workers._serve(theirs, lambda: pytest.fail, torch.get_num_threads())  # comes back, and raises nothing


def test_worker_that_ends_says_so() -> None:
    with pytest.raises(RuntimeError, match="has ended"):
        workers.Workers(1, refuse)


def test_a_run_per_core_counts_the_images_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(CPU, repeats=1, batch_size=4, models=("resnet20",))
    seconds = {"plain": 4.0, "engine": 2.0, "penalised": 2.0, train.PLAIN_EACH: 6.0, train.ENGINE_EACH: 3.0}
    started: list[str] = []

    class Fake:
        def __init__(self, count: int, make: partial[measure.Candidate], threads: int = 1) -> None:
            started.append(" ".join([str(count), make.func.__name__, str(threads), *make.args[3:]]))

        def __enter__(self) -> str:
            return "a candidate"

        def __exit__(self, *error: object) -> None:
            started.append("ended")

    monkeypatch.setattr(train, "Workers", Fake)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(
        train, "in_turns", lambda candidates, *rest, **more: {key: [seconds[key]] for key in candidates}
    )
    monkeypatch.setattr(train, "counted_step", lambda *arguments: None)
    monkeypatch.setattr(train, "against_roofline", lambda *arguments: {})
    monkeypatch.setattr(train, "has_bfloat16", lambda device: True)
    row, other = train.run(settings)
    all_ended = ["ended"] * 3
    assert started[:6] == ["1 _plain 2", "2 _plain 1", "2 _engine 1 float32", *all_ended]
    assert started[6:] == ["1 _plain 2", "2 _plain 1", "2 _engine 1 bfloat16", *all_ended]
    assert [row["precision"], other["precision"]] == ["float32", "bfloat16"] and row["rounds"] == 1
    assert row["plain images/s"] == 4 and row["engine images/s"] == 8  # 16 images an epoch
    assert row["plain, a run per core images/s"] == pytest.approx(32 / 6, abs=0.1)
    assert row["engine, a run per core images/s"] == pytest.approx(32 / 3, abs=0.1)
    assert row["x plain, a run per core"] == pytest.approx(2 * 4 / 3, abs=1e-3)
    assert row["x plain, both a run per core"] == 2


def test_pruning_times_and_their_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prune, "_once", lambda name: (dict.fromkeys((*prune.STAGES, "wall"), 0.1), 336))
    (row,) = prune.run(Settings(CPU, repeats=1, models=("resnet20",)))
    assert row["channels"] == 336 and row["total s"] == pytest.approx(0.3)


def test_one_network_is_traced_selected_and_cut() -> None:
    seconds, channels = prune._once("resnet20")
    assert channels == 3 * (16 + 32 + 64) and all(seconds[stage] > 0 for stage in prune.STAGES)


def test_fit_of_a_line_is_exact() -> None:
    rows = [{"channels": 1000 * k, "total s": 0.5 + 2.0 * k} for k in (1, 2, 5)]
    assert prune.fit(rows, "all") == {"model": "all", "line": "0.500 + 2.000 x (channels / 1000)", "R²": 1.0}


def test_turns_rotate_and_ratios_are_taken_within_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    candidates = {name: (lambda name=name: order.append(name)) for name in "abc"}
    times = in_turns(candidates, repeats=2, device=CPU, warmup=1)
    assert "".join(order) == "abc" + "bca" + "cab"
    assert {name: len(found) for name, found in times.items()} == {"a": 2, "b": 2, "c": 2}
    times = {"slow": [2.0, 40.0, 6.0], "fast": [1.0, 10.0, 2.0]}  # a busy second round
    assert median_ratio(times, "slow", "fast") == 3.0 and median_ms(times, "fast") == 2000.0


def test_the_naive_peer_gives_the_same_gradient() -> None:
    torch.manual_seed(0)
    model = Chain()
    couplings = quiet_couplings(model, torch.zeros(2, 3, 8, 8))
    peers.naive_group_lasso(model, couplings, 0.3)()
    wanted = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    GroupLasso(couplings, strength=0.3).add_gradient(model)
    got = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(got) == len(wanted) == 3
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(got, wanted, strict=True))


def test_a_missing_peer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(RuntimeError, match="torch-pruning is not installed"):
        peers.torch_pruning_regularize(Chain(), torch.zeros(2, 3, 8, 8), 0.1)


def test_the_peer_from_torch_pruning_really_adds_to_the_gradients() -> None:
    pytest.importorskip("torch_pruning")
    model = Chain()
    step = peers.torch_pruning_regularize(model, torch.zeros(2, 3, 8, 8), 0.1)
    (pruner,) = [c.cell_contents for c in step.__closure__ if hasattr(c.cell_contents, "regularize")]  # type: ignore[attr-defined]
    twin = pruner.model
    before = twin.conv1.weight.grad.clone()
    step()
    assert not torch.equal(twin.conv1.weight.grad, before)


def test_the_plain_loop_sees_every_image_as_floats() -> None:
    dataset = train.PlainDataset(train.synthetic(8).train)
    image, label = dataset[3]
    assert len(dataset) == 8 and image.shape == (3, 32, 32) and image.dtype is torch.float32 and 0 <= label < 10


def test_the_peak_of_a_device_is_positive() -> None:
    reached = roofline.peaks(CPU, "float32", seconds=0.01)
    assert reached.arithmetic > 0 and reached.bandwidth > 0


def test_operations_and_bytes_are_counted_as_by_hand() -> None:
    a, b = torch.ones(4, 8, requires_grad=True), torch.ones(8, 2)
    counted = roofline.count(lambda: (a.detach() @ b).t().add_(1))
    assert counted.work == [
        (2 * 4 * 8 * 2, 4 * (32 + 16 + 8)),
        (0, 4 * (8 + 8)),
    ]  # the transpose and `detach` are views
    assert roofline.count(lambda: torch.empty(7)).bytes == 0
    both = roofline.count(lambda: (a @ b).sum().backward())
    assert both.arithmetic == 2 * 2 * 4 * 8 * 2  # forward, and backward for one of the factors
    assert counted.seconds(roofline.Peaks(1e3, 1e9)) == pytest.approx(0.128 + 64e-9)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_each_gradient_of_a_convolution_costs_its_forward_pass(kind: type[nn.Conv2d], groups: int) -> None:
    layer = kind(4, 4, 3, padding=1, groups=groups, bias=False)
    images = torch.ones(3, 4, 5, 5)
    # 3 images, 25 positions, 3 x 3 x 4 x 4 / groups weights
    once = 2 * 3 * 25 * 9 * 4 * 4 // groups
    assert roofline.count(lambda: layer(images)).arithmetic == once
    assert roofline.count(lambda: layer(images).sum().backward()).arithmetic == 2 * once  # of the weight alone
    images.requires_grad_()
    assert roofline.count(lambda: layer(images).sum().backward()).arithmetic == 3 * once


def test_a_step_is_three_times_the_forward_arithmetic() -> None:
    settings = Settings(CPU, batch_size=2)
    counted = train.counted_step("resnet20", train.synthetic(4), settings, "float32")
    first = 2 * 3 * 16 * 9 * 32 * 32  # the images need no gradient
    macs = count_macs(find_builder("resnet20")(10), torch.zeros(1, 3, 32, 32))
    assert counted.arithmetic == 2 * (3 * 2 * macs - first)
    assert counted.bytes > 3 * 4 * 269_722


@pytest.mark.parametrize("arguments", [["penalty", "--repeats", "0"], ["penalty", "--batch-size", "x"]])
def test_bad_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["perf", *arguments])
    assert arguments[-1] in capsys.readouterr().err


def test_unknown_benchmark_gets_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["perf", "penality"]) == 2
    assert "Did you mean 'penalty'?" in capsys.readouterr().err


def test_unknown_backend_is_quoted() -> None:
    from benchmarks.perf import latency

    with pytest.raises(ValueError, match="backend is 'jit'"):
        list(latency.run(Settings(CPU, repeats=1, batch_size=2, models=("resnet20",), backends=("jit",))))
    assert measure.timed(lambda: None, CPU) >= 0


def test_a_replay_keeps_alive_what_its_graph_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    class Graph:
        def replay(self) -> None:
            replayed.append(True)

    replayed: list[bool] = []
    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda device: stream)
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda value: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    model = nn.Linear(2, 2)
    read = weakref.ref(model)
    replay = measure.captured(partial(model, torch.zeros(1, 2)), torch.device("cuda"))
    del model
    gc.collect()
    replay()
    assert read() is not None and replayed == [True]


def test_processors_of_one_name_are_kept_apart_by_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sections, "device_name", lambda device: "AMD EPYC")
    monkeypatch.setattr(sections, "has_bfloat16", lambda kind: False)
    threads = torch.get_num_threads()
    assert (sections.name_of(CPU), sections.slug(CPU)) == ("AMD EPYC", f"amd-epyc-{threads}-threads")
    monkeypatch.setattr(sections, "has_bfloat16", lambda kind: True)
    assert sections.name_of(CPU) == "AMD EPYC, bfloat16 in hardware"
    assert sections.slug(CPU) == f"amd-epyc-bfloat16-{threads}-threads"
