"""The examples of CONTRIBUTING.md are complete: together they make a run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.config import Cell
from benchmarks.datasets import DATASETS
from benchmarks.methods.registry import METHODS
from benchmarks.models import MODELS
from benchmarks.running.bench import load_splits
from benchmarks.running.run import run_cell
from tests.benchmarks.small import small_bench

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text("utf-8")
EXAMPLES = {re.findall(r"# (\S+)", block)[0]: block for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)}


def example(file: str) -> dict[str, Any]:
    scope: dict[str, Any] = {"__name__": file}
    exec(compile(EXAMPLES[file], file, "exec"), scope)
    return scope


def test_each_example_is_a_file_of_its_own() -> None:
    assert list(EXAMPLES) == [
        "baselines/squared_energy.py",
        "benchmarks/models/tiny.py",
        "benchmarks/datasets/stripes.py",
        "benchmarks/experiments/stripes.py",
    ]


@pytest.mark.parametrize("method", ["squared", "none"])
def test_the_examples_make_a_run(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "squared", example("baselines/squared_energy.py")["METHOD"])
    monkeypatch.setitem(MODELS, "digits-tiny", example("benchmarks/models/tiny.py")["tiny"])
    monkeypatch.setitem(DATASETS, "stripes", example("benchmarks/datasets/stripes.py")["load_stripes"])
    load_splits.cache_clear()
    experiment = example("benchmarks/experiments/stripes.py")["EXPERIMENT"]
    record = run_cell(small_bench(tmp_path), Cell(experiment, "quick", method, 0, 0.5))
    assert record.complete, record.failure
    assert record.states["finetuned"]["macs"] < record.states["dense"]["macs"]


def test_the_regulariser_of_the_example_is_what_its_formula_says() -> None:
    import oicsr

    model = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.ReLU(), torch.nn.Conv2d(3, 2, 1))
    couplings = oicsr.find_couplings(model, torch.zeros(1, 1, 8, 8))
    penalty = example("baselines/squared_energy.py")["SQUARED"].make(couplings, 0.5)(model)
    weights = (layer.weight for layer in model if isinstance(layer, torch.nn.Conv2d))
    assert penalty.item() == pytest.approx(0.5 * sum(w.square().sum().item() for w in weights), rel=1e-5)


def test_every_file_of_the_map_exists() -> None:
    files = re.findall(r"`((?:oicsr|baselines|benchmarks|tests|docs)/[\w/.]+)`", TEXT)
    missing = [file for file in files if not (Path(__file__).parents[1] / file).exists()]
    assert len(files) > 20 and missing == []
