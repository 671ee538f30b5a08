"""How long whole commands take over 1,000 records: `python -m tests.benchmarks.thousand [EXPERIMENTS]`.

The records are synthetic, with histories, channels and all; they belong to ad-hoc experiments (one, or as many as are
named) of five methods and five targets. Each command is a process of its own, as a user would start it; the first
round, which compiles and warms caches, does not count.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.config import Cell, Experiment
from benchmarks.methods.registry import find_method
from benchmarks.records.record import Record
from benchmarks.records.strengths import choose_strength
from benchmarks.running.adhoc import save_experiment
from tests.benchmarks.fakes import NOWHERE
from tests.benchmarks.synthetic import experiment, records_of, write_records

METHODS = ("oicsr-gl", "gl-out", "gl-separate", "l1-weights", "none")
TARGETS = (0.8, 0.7, 0.5, 0.4, 0.3)
RUNS, ROUNDS = 1_000, 3


def write_runs(results: Path, experiments: int, runs: int = RUNS) -> int:
    """Write so many runs, divided among some ad-hoc experiments; return how many there are."""
    seeds = tuple(range(runs // experiments // len(METHODS) // len(TARGETS)))
    for number in range(experiments):
        study = experiment(f"sweep-cifar10-resnet56-{number}", methods=METHODS, macs_kept=TARGETS, seeds=seeds)
        save_experiment(study, results)
        write_records(results, [_untuned(study, record) for record in records_of(study, "quick", tuned=False)])
    return experiments * len(METHODS) * len(TARGETS) * len(seeds)


def _untuned(study: Experiment, record: Record) -> Record:
    """Return a record with the strength of a run without tuning, for `merge` compares."""
    cell = Cell(study, record.profile, record.method, record.seed, record.macs_kept)
    return replace(record, strength=choose_strength(NOWHERE, cell, find_method(record.method)).value)


def measure(command: list[str]) -> tuple[float, float]:
    """Return the seconds that a command takes on the clock and on the processor."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", "benchmarks", *command], check=True, capture_output=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(experiments: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "source"
        print(f"{write_runs(source, experiments)} runs in {experiments} experiments")
        taken: dict[str, list[tuple[float, float]]] = {"merge": [], "status": [], "report": []}
        for number in range(1 + ROUNDS):
            results = str(Path(name) / f"results{number}")
            commands = {"merge": [str(source), "--results", results], "report": ["--results", results]}
            commands["status"] = ["--results", results, "--checkpoints", str(Path(name) / "checkpoints")]
            for command, found in taken.items():
                found.append(measure([command, *commands[command]]))
    for command, found in taken.items():
        wall, processor = (statistics.median(values) for values in zip(*found[1:], strict=True))
        print(f"{command}: {wall:.1f} s, {processor:.1f} s of processor time (median of {ROUNDS})")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
