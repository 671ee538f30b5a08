"""The results folder that the golden files were made from, and the command that makes them again.

`python -m tests.benchmarks.golden` writes `tests/benchmarks/golden/`; look at the difference before it is committed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import matplotlib as mpl

from benchmarks.experiments import EXPERIMENTS
from benchmarks.records.record import write_record
from benchmarks.reporting import build as report
from tests.benchmarks.synthetic import experiment, history_of, records_of, write_records, write_tuning

GOLDEN = Path(__file__).resolve().parent / "golden"
FIGURES = "figures.json"
PERF = {
    "device": "A CPU, 1 thread",
    "sections": {
        "latency": {
            "rows": [
                {
                    "model": model,
                    "batch": batch,
                    "widths": widths,
                    "x measured": measured,
                    "x MACs": 2.0,
                    "backend": "eager",
                }
                for model, batch, widths, measured in (
                    ("resnet56", 1, "any", 1.1),
                    ("resnet56", 128, "multiples of 8", 1.8),
                    ("vgg16", 128, "any", 1.5),
                )
            ]
        }
    },
}


def fixture_results(folder: Path) -> Path:
    """Write a results folder with every kind of record there is; return it."""
    results = folder / "results"
    study = experiment(
        methods=(
            "oicsr-gl",
            "gl-out",
            "gl-separate",
            "l1-weights",
            "none",
            "random",
            "oicsr-gl-uniform",
            "l1",
            "fpgm",
            "growl",
        ),
        macs_kept=(0.5, 0.3),
    )
    write_records(results, records_of(study))
    write_tuning(results, study)
    write_records(results, records_of(experiment("demo", macs_kept=(0.5,), seeds=(0,)), "quick", tuned=False))
    steps = experiment("iterative", steps=4, methods=("oicsr-gl", "gl-out"), macs_kept=(0.3,))
    for record in records_of(steps):  # without energies, fine-tuning and channels: what needs them is not drawn
        bare = replace(record, structure={}, epochs={"dense": 20, "regularized": 40})
        write_record(results, bare, history_of(bare))
    broken = records_of(experiment("failing", methods=("oicsr-gl",), macs_kept=(0.5,), seeds=(0,)))[0]
    states = {"dense": broken.states["dense"]}
    failed = replace(broken, status="failed", states=states, failure={"reason": "training diverged"})
    (results / "perf").mkdir()
    (results / "perf" / "a-cpu.json").write_text(json.dumps(PERF))
    write_records(results, [replace(failed, epochs={"dense": 2})])
    return results


def build(results: Path) -> report.Artefacts:
    """Make everything from the fixture's records; what experiments the suite has does not matter to it."""
    known = {name: experiment(name) for name in ("cifar10-resnet56", "never-run")}
    with patch.dict(EXPERIMENTS, known, clear=True):
        return report.build(results)


def digests(artefacts: report.Artefacts) -> dict[str, str]:
    """Return a hash of every drawing by name."""
    svg = {path.name: content for path, content in artefacts.items() if path.suffix == ".svg"}
    return {name: hashlib.sha256(content).hexdigest()[:16] for name, content in sorted(svg.items())}


def texts(artefacts: report.Artefacts) -> dict[str, str]:
    """Return every table, the ledger and the page of results by name."""
    return {
        path.name: content.decode()
        for path, content in sorted(artefacts.items())
        if path.suffix in (".csv", ".md", ".tex", ".json")
    }


def main() -> None:
    """Make the golden files again."""
    shutil.rmtree(GOLDEN, ignore_errors=True)
    GOLDEN.mkdir()
    with tempfile.TemporaryDirectory() as folder:
        artefacts = build(fixture_results(Path(folder)))
    for name, text in texts(artefacts).items():
        (GOLDEN / name).write_text(text, encoding="utf-8")
    found = {"matplotlib": mpl.__version__, "svg": digests(artefacts)}
    (GOLDEN / FIGURES).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
