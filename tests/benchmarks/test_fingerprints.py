"""Checkpoints of other data, network code or regularisers are trained again; those of another machine are not."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from baselines.method import Method
from benchmarks.config import Cell
from benchmarks.faults.arena import results_of
from benchmarks.methods.registry import METHODS, find_method
from benchmarks.models import MODELS
from benchmarks.records.record import record_path
from benchmarks.running import stage_training
from benchmarks.running.bench import Bench, splits_of
from benchmarks.running.checkpoints import CheckpointWarning
from benchmarks.running.fingerprints import differences, network_numbers, regularizer_numbers
from benchmarks.running.run import run_cell, strength_of
from benchmarks.running.stage_training import FACTS
from benchmarks.running.stages import Stage, stages_of
from oicsr import find_couplings
from tests.benchmarks.small import small_bench, small_cell

SHAPE = (1, 8, 8)

Edit = Callable[[pytest.MonkeyPatch, Cell], None]


def other_activation(monkeypatch: pytest.MonkeyPatch, cell: Cell) -> None:
    monkeypatch.setattr(torch, "relu_", torch.tanh_)


def other_regularizer(monkeypatch: pytest.MonkeyPatch, cell: Cell) -> None:
    monkeypatch.setitem(METHODS, cell.method, stronger(find_method(cell.method), 1.5))


def stronger(method: Method, factor: float) -> Method:
    make = method.regularizer.make
    spec = dataclasses.replace(method.regularizer, make=lambda couplings, strength: make(couplings, factor * strength))
    return dataclasses.replace(method, regularizer=spec)


def other_data(monkeypatch: pytest.MonkeyPatch, cell: Cell) -> None:
    data: Any = splits_of(cell)
    brighter = dataclasses.replace(data.train, pixels=data.train.pixels // 2 + 50)
    changed = dataclasses.replace(data, train=brighter, checksum="1" * 64)
    monkeypatch.setattr(stage_training, "splits_of", lambda cell: changed)


def other_split(monkeypatch: pytest.MonkeyPatch, cell: Cell) -> None:
    data: Any = splits_of(cell)
    changed = dataclasses.replace(data, train=data.train.take(torch.arange(len(data.train)).flip(0)))
    monkeypatch.setattr(stage_training, "splits_of", lambda cell: changed)


def other_augmentation(monkeypatch: pytest.MonkeyPatch, cell: Cell) -> None:
    data: Any = splits_of(cell)
    changed = dataclasses.replace(data, augmentation=dataclasses.replace(data.augmentation, padding=0))
    monkeypatch.setattr(stage_training, "splits_of", lambda cell: changed)


def stages(bench: Bench, cell: Cell) -> list[Stage]:
    return stages_of(cell, find_method(cell.method), strength_of(bench, cell).value, "cpu")


def outcome(bench: Bench, cell: Cell) -> tuple[Any, str]:
    return results_of(record_path(bench.results, cell))


@pytest.mark.parametrize(
    ("edit", "first", "said"),
    [
        (other_activation, "dense", "network code"),
        (other_regularizer, "regularized", "regulariser"),
        (other_data, "dense", "data"),
        (other_split, "dense", "splits, augmentation or normalisation"),
        (other_augmentation, "dense", "splits, augmentation or normalisation"),
    ],
)
def test_stages_of_other_code_or_data_are_trained_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edit: Edit, first: str, said: str
) -> None:
    cell = small_cell()
    bench = small_bench(tmp_path)
    run_cell(bench, cell)
    edit(monkeypatch, cell)
    again = dataclasses.replace(bench, results=tmp_path / "again")
    with pytest.warns(CheckpointWarning) as caught:
        run_cell(again, cell)
    named = f"was trained with other {said} and is skipped: phase {first} is trained again"
    assert named in str(caught[0].message)
    anew = small_bench(tmp_path / "anew")
    run_cell(anew, cell)
    assert outcome(again, cell) == outcome(anew, cell) != outcome(bench, cell)


def test_checkpoints_of_earlier_versions_stay_valid(tmp_path: Path) -> None:
    cell = small_cell()
    bench = small_bench(tmp_path)
    run_cell(bench, cell)
    for stage in stages(bench, cell):
        state = bench.store.load(stage.key)
        assert state is not None
        kept = {name: value for name, value in state.items() if name != FACTS}
        assert len(kept) == len(state) - 1
        bench.store.save(stage.key, kept)
    again = dataclasses.replace(bench, results=tmp_path / "again")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_cell(again, cell)
    assert outcome(again, cell) == outcome(bench, cell)


class Branch(nn.Module):
    """A network whose only activation begins behind a zero, as in residual blocks that begin as the identity."""

    def __init__(self, activation: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)
        nn.init.zeros_(self.norm.weight)
        self.activation, self.layer = activation, layer

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stem(images)
        return self.head(self.layer(x + self.norm(self.activation(x))).mean((2, 3)))


class OneType(nn.Linear):
    """A network that computes in float32 alone."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images.flatten(1).float())


def numbers(activation: nn.Module, layer: nn.Module) -> dict[str, Any]:
    torch.manual_seed(0)
    return {"network": network_numbers(Branch(activation, layer), SHAPE)}


def test_numbers_of_a_network_tell_its_code_and_disturb_nothing() -> None:
    usual = numbers(nn.GELU(), nn.Dropout(0.1))
    assert differences(usual, numbers(nn.GELU(), nn.Dropout(0.1))) == []
    for other in (numbers(nn.GELU("tanh"), nn.Dropout(0.1)), numbers(nn.GELU(), nn.Dropout(0.2))):
        assert differences(usual, other) == ["network code"]
    model = Branch(nn.ReLU(), nn.Dropout(0.1))
    before, random = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    network_numbers(model, SHAPE)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert len(network_numbers(OneType(64, 3), SHAPE)["outputs"]) == 6


def test_rounding_and_what_is_unknown_are_no_difference() -> None:
    def network(outputs: list[float], tolerance: float = 1e-6) -> dict[str, list[float]]:
        return {"outputs": outputs, "tolerance": [tolerance]}

    facts: dict[str, Any] = {"data": "a", "network": network([1.0, 1e-9])}
    assert differences({"data": "a", "network": network([1.0000005, -1e-9])}, facts) == []
    assert differences(None, facts) == [] and differences({}, facts) == [] and differences({"network": {}}, facts) == []
    assert differences({**facts, "data": "b"}, facts) == ["data"]
    for alike in (network([math.nan, 0.0]), network([math.inf, 0.0]), network([1.0005, 0.0], 1e-3)):
        assert differences({**facts, "network": alike}, facts) == []
    for other in (network([1.001, 0.0]), network([1.0]), {"tolerance": [1.0]}):
        assert differences({**facts, "network": other}, facts) == ["network code"]


@pytest.mark.parametrize("name", ["oicsr-gl", "oicsr-gl-prox", "polarization", "half-space", "greg1", "l1"])
def test_numbers_of_a_regularizer_tell_its_strength_and_disturb_nothing(name: str) -> None:
    method = find_method(name)
    torch.manual_seed(0)
    model = MODELS["digits-resnet"](10)
    couplings = find_couplings(model, torch.zeros(1, *SHAPE))
    before, random = {key: value.clone() for key, value in model.state_dict().items()}, torch.get_rng_state()

    def facts(strength: float) -> dict[str, Any]:
        return {"regularizer": regularizer_numbers(lambda: method.regularizer.build(couplings, strength), model)}

    usual = facts(1e-3)
    assert differences(usual, facts(1e-3)) == []
    assert differences(usual, facts(1.1e-3)) == (["regulariser"] if method.has_strength else [])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random) and all(p.grad is None for p in model.parameters())
