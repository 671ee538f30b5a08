"""`gpu`: on a machine with a CUDA device, run the GPU tests, measure speed, and do missing runs, in this order.

It needs PyTorch, torchvision, timm, Triton and pytest; torch-pruning, wandb and Ray may be absent. Each part runs in a
separate process and is stopped when its time is up; what it has written by then is kept.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Timer

import torch

from benchmarks.commands.options import EachOnce, add_folders, folder, word
from benchmarks.machine.paths import ROOT
from benchmarks.suggest import unknown_name

OK, FAILURE = 0, 1

LIMIT = 540.0  # seconds; machines with time limits often give ten minutes

LEAST = 30.0  # seconds; no part starts with less

ENDING = 20.0  # seconds that runs may take for their last checkpoint

GPU_TESTS = (
    "tests/benchmarks/test_cuda_graphs_on_a_gpu.py",
    "tests/oicsr/test_kernels.py",
    "tests/oicsr/test_fast_compiled.py",
)


@dataclass(frozen=True)
class Part:
    """One part of the command.

    Attributes:
        arguments: Arguments for Python, from the options and the part's time limit in seconds.
        share: Largest share of the time; what is left over goes to later parts.
        needs_card: Whether the part is skipped without a CUDA device.
    """

    arguments: Callable[[argparse.Namespace, float], list[str]]
    share: float
    needs_card: bool = True


def _tests(options: argparse.Namespace, seconds: float) -> list[str]:
    report = f"--junitxml={options.out / 'gpu-tests.xml'}"
    return ["-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-rs", report, *GPU_TESTS]


def _perf(options: argparse.Namespace, seconds: float) -> list[str]:
    chosen = ["train", "penalty", "--models", "resnet20,resnet56", "--repeats", "12"]
    return ["-m", "benchmarks", "perf", *chosen, "--device", "cuda", "--results", str(options.out)]


def _runs(options: argparse.Namespace, seconds: float) -> list[str]:
    folders = ["--results", str(options.results), "--checkpoints", str(options.checkpoints)]
    budget = ["--budget-minutes", f"{(seconds - ENDING) / 60:.2f}", "--wandb", "disabled"]
    graphs = [] if options.graphs else ["--no-graphs"]
    chosen = [*options.experiments, "--pending", "--profile", options.profile]
    return ["-m", "benchmarks", "run", *chosen, *folders, *budget, *graphs, "--device", "cuda"]


PARTS = {
    "tests": Part(_tests, 0.35, needs_card=False),
    "perf": Part(_perf, 0.5),
    "runs": Part(_runs, 1.0),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "parts", nargs="*", action=EachOnce, metavar="PART", help=f"{', '.join(PARTS)} (default: all, in this order)"
    )
    parser.add_argument(
        "--out",
        type=folder,
        default=Path("outputs/gpu"),
        metavar="DIR",
        help="folder for the test report and the measurements (default: outputs/gpu)",
    )
    add_folders(parser)
    parser.add_argument(
        "--minutes", type=float, default=8.5, metavar="N", help="time limit for all parts, at most 9 (default: 8.5)"
    )
    parser.add_argument("--profile", type=word, default="study", help="profile of the runs (default: study)")
    parser.add_argument(
        "--experiments",
        nargs="+",
        action=EachOnce,
        default=[],
        metavar="EXPERIMENT",
        help="experiments to run (default: all, by priority)",
    )
    parser.add_argument(
        "--graphs",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="replay training steps from CUDA graphs (default: on)",
    )


def command(options: argparse.Namespace) -> int:
    """Run the parts in order; return 0 if all of them succeeded.

    Raises:
        ValueError: There is no such part, or the time is too short or too long.
    """
    for name in options.parts:
        if name not in PARTS:
            raise ValueError(unknown_name("part", name, PARTS))
    if not 0 < options.minutes * 60 <= LIMIT:
        raise ValueError(f"--minutes is {options.minutes:g}; it must be above 0 and {LIMIT / 60:g} at the most")
    for name in ("out", "results", "checkpoints"):  # the parts run in the project's root
        folder = getattr(options, name).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        setattr(options, name, folder)
    return do_parts(options, options.parts or list(PARTS), torch.cuda.is_available())


def do_parts(options: argparse.Namespace, names: Sequence[str], card: bool) -> int:
    """Run the parts that this machine can run, and print the result of each."""
    end = time.monotonic() + options.minutes * 60
    code = OK
    for name in names:
        part = PARTS[name]
        if part.needs_card and not card:
            built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
            print(
                f"gpu: there is no CUDA device here (PyTorch {torch.__version__}, built for {built}): {name} left out"
            )
            code = FAILURE
            continue
        seconds = (end - time.monotonic()) * part.share
        if seconds < LEAST:
            print(f"gpu: {name} left out: {max(0.0, seconds):.0f} seconds are left for it, {LEAST:.0f} are the least")
            continue
        said, failed = _do(part.arguments(options, seconds), options.out / f"{name}.log", seconds)
        print(f"gpu: {name}: {said}", flush=True)
        code = FAILURE if failed else code
    return code


def _do(arguments: Sequence[str], log: Path, seconds: float) -> tuple[str, bool]:
    """Run Python, showing and keeping its output; return its result in words, and whether it failed."""
    start, over = time.monotonic(), Event()
    command = [sys.executable, "-u", *arguments]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace"
    ) as process:

        def end() -> None:
            over.set()
            process.kill()

        timer = Timer(seconds, end)
        timer.start()
        try:
            assert process.stdout is not None
            with log.open("w", encoding="utf-8", buffering=1) as kept:
                for line in process.stdout:
                    print(line, end="", flush=True)
                    kept.write(line)
            code = process.wait()
        finally:
            timer.cancel()
            process.kill()
    took = f"{time.monotonic() - start:.0f} seconds"
    if over.is_set():
        return f"ended after {took}, its time was over; what it wrote stays", False
    return f"exit code {code} after {took}; {log}", code != 0
