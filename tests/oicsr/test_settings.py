"""Widths that a module keeps in containers within containers follow the channels."""

from __future__ import annotations

import copy
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import oicsr
from oicsr.changes import numbers_of_class, whole_numbers

Sizes = namedtuple("Sizes", "first second")
SETTINGS: dict[str, tuple[Any, Callable[[Any], int]]] = {
    "dictionary of dictionaries": ({"enc": {"dim": 16}, "dec": {"dim": 3}}, lambda s: s["enc"]["dim"]),
    "list of lists": ([[3, 16], [5]], lambda s: s[0][1]),
    "tuple of tuples": (((3, 16), (5,)), lambda s: s[0][1]),
    "named tuple of dictionaries": (Sizes({"dim": 16}, {}), lambda s: s.first["dim"]),
    "settings": (SimpleNamespace(sizes={"enc": [5, 16]}), lambda s: s.sizes["enc"][1]),
    "three deep": ({"a": [[1], ({"x": 2}, 16)]}, lambda s: s["a"][1][1]),
}


class Reshapes(nn.Module):
    """Reshapes to a width that it keeps in settings."""

    def __init__(self, settings: Any, width: Callable[[Any], int]) -> None:
        super().__init__()
        self.settings, self.width = settings, width
        self.one, self.two = nn.Linear(5, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(x)).view(-1, self.width(self.settings)))


@pytest.mark.parametrize("name", SETTINGS)
def test_widths_in_settings_follow(name: str, tmp_path: Path) -> None:
    settings, width = SETTINGS[name]
    before = copy.deepcopy(settings)
    network, x = Reshapes(settings, width), torch.randn(4, 5)
    couplings = oicsr.find_couplings(network, x)  # warnings are errors
    assert [coupling.name for coupling in couplings] == ["one"]
    plan = oicsr.PruningPlan.from_kept(couplings, {"one": range(10)})
    assert oicsr.PruningPlan.from_json(plan.to_json()) == plan
    assert "16 -> 10" in str(oicsr.describe(network, couplings, plan))
    small = oicsr.remove_channels(network, plan)
    assert width(small.settings) == 10 and small(x).shape == (4, 3)
    assert settings == before and network.settings is settings and type(small.settings) is type(settings)
    oicsr.save_pruned(tmp_path / "small.safetensors", small, plan)
    loaded = oicsr.load_pruned(tmp_path / "small.safetensors", lambda: Reshapes(settings, width))
    assert width(loaded.settings) == 10 and bool((loaded(x) == small(x)).all())


def test_numbers_are_looked_for_to_a_small_depth() -> None:
    module = nn.Module()
    module.deep = [[[[7]], 6], 5]
    module.round = [4]
    module.round.append(module.round)
    found = dict(whole_numbers(module))
    assert {name: number for name, number in found.items() if name.startswith("deep")} == {"deep.0.1": 6, "deep.1": 5}
    assert found["round.0"] == found["round.1.1.0"] == 4 and len(found) == 2 + 3 + sum(n == "training" for n in found)


class OfItsClass(nn.Module):
    """Reshapes to a width that its class, or the module itself, holds as `width`."""

    width: int = 16

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(5, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(x)).view(-1, self.width))


@pytest.mark.parametrize("width", [None, np.int64(16), np.int32(16)], ids=["of its class", "int64", "int32"])
def test_numbers_of_a_class_and_of_numpy_follow(width: Any, tmp_path: Path) -> None:
    def build() -> nn.Module:
        network = OfItsClass()
        if width is not None:
            network.width = width
        return network

    network, x = build(), torch.randn(4, 5)
    couplings = oicsr.find_couplings(network, x)  # warnings are errors
    plan = oicsr.PruningPlan.from_kept(couplings, {"one": range(10)})
    small = oicsr.remove_channels(network, oicsr.PruningPlan.from_json(plan.to_json()))
    assert small.width == 10 and small(x).shape == (4, 3)
    assert OfItsClass.width == 16 and network.width == 16
    oicsr.save_pruned(tmp_path / "small.safetensors", small, plan)
    loaded = oicsr.load_pruned(tmp_path / "small.safetensors", build)
    assert loaded.width == 10 and bool((loaded(x) == small(x)).all())


def test_numbers_of_classes_are_those_of_the_user() -> None:
    class Wider(OfItsClass):
        """Has another width, and what is none."""

        width, enabled, _version = 24, True, 7

    class Hidden(Wider):
        """Has no number of that name any more."""

        width = "sixteen"  # type: ignore[assignment]

    assert dict(numbers_of_class(Wider)) == {"width": 24} and not numbers_of_class(Hidden)
    assert not numbers_of_class(nn.Linear) and not numbers_of_class(nn.Transformer)
