"""Mending: how remedies are looked for and proved. What is mended, test_proof.py and the users' networks say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from oicsr import PruningPlan, find_couplings, remove_channels, trace_couplings
from oicsr.proving import mending as mending_module
from oicsr.proving.repair import ShapeBench


class Split(nn.Module):
    """A block whose layer gives two halves of one width, which is a number of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.both = nn.Linear(8, 2 * width)
        self.back = nn.Linear(width, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Gate one half with the other."""
        value, gate = torch.split(self.both(x), self.width, 1)
        return x + self.back(value * gate.sigmoid())


class ThreeOfEight(nn.Module):
    """A layer whose width stands in three numbers, one after the other, beside five that could be it and are not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = 6, 12, 18, 24, 30
        self.once, self.twice, self.thrice = 6, 12, 18
        self.inner = nn.Linear(8, 6)
        self.last = nn.Linear(18, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Read all eight."""
        small = min(self.a, self.b, self.c, self.d, self.e, 5) / 5
        x = self.inner(x).relu().view(-1, self.once)
        x = torch.cat([x, x * small], 1).view(-1, self.twice)
        return self.last(torch.cat([x, x[:, : self.once].sin()], 1).view(-1, self.thrice))


class OneWidthOfTwo(nn.Module):
    """Two layers of one width, which is one number."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.width = width
        self.left, self.right = nn.Linear(8, width), nn.Linear(8, width)
        self.back = nn.Linear(width, 8)
        self.also = nn.Linear(width, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Take both ways."""
        left, right = self.left(x).view(-1, self.width), self.right(x).view(-1, self.width)
        return self.back(left.relu()) + self.also(right.tanh())


def test_remedies_of_several_couplings_take_one_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[list[str]] = []
    prove = mending_module.prove

    def counted(model: nn.Module, inputs: Any, couplings: Any) -> Any:
        tried.append([coupling.name for coupling in couplings])
        return prove(model, inputs, couplings)

    monkeypatch.setattr(mending_module, "prove", counted)
    model = nn.Sequential(*(Split(width) for width in (6, 6, 7, 10)), nn.Linear(8, 3))
    trace = trace_couplings(model, torch.randn(2, 8))
    names = [f"{block}.both" for block in range(4)]
    assert [c.name for c in trace.couplings] == names
    assert tried == [names, names]  # the remedies together, then they and whatever stood without


def test_numbers_that_change_nothing_are_not_combined_further(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    run = ShapeBench._without_one

    def counted(bench: ShapeBench, couplings: Any) -> Any:
        runs.append(len(couplings))
        return run(bench, couplings)

    monkeypatch.setattr(ShapeBench, "_without_one", counted)
    (coupling,) = trace_couplings(ThreeOfEight(), torch.randn(2, 8)).couplings
    assert {a.name for a in coupling.attributes} == {"once", "twice", "thrice"}
    assert len(runs) == 1 + 8 + 28 + 6  # none, each, pairs, and one more than (once, twice); there are 56 triples


def test_a_long_search_ends_but_what_a_coupling_needs_at_once_is_always_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(Split(7), OneWidthOfTwo(), Split(10), nn.Linear(8, 3))
    names = ["0.both", "1.left", "2.both"]
    assert [c.name for c in trace_couplings(model, torch.randn(2, 8)).couplings] == names
    monkeypatch.setattr(mending_module, "MOST_SEARCHED", -1)
    trace = trace_couplings(model, torch.randn(2, 8))
    assert [c.name for c in trace.couplings] == ["0.both", "2.both"]
    assert "its width is a number in the model's code" in trace.unpruned["1.left"]


def test_what_a_search_finds_does_not_count_against_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []
    mend = mending_module._mended

    def noted(tries: Any, *rest: Any, **named: Any) -> Any:
        mended = mend(tries, *rest, **named)
        found.append(0 if mended is None else tries.searched)
        return mended

    monkeypatch.setattr(mending_module, "_mended", noted)
    monkeypatch.setattr(mending_module, "MOST_SEARCHED", 4)  # one pair takes two runs of copies and a proof
    model = nn.Sequential(*(OneWidthOfTwo(width) for width in (5, 6, 7, 9, 10)), nn.Linear(8, 3))
    trace = trace_couplings(model, torch.randn(2, 8))
    assert [c.name for c in trace.couplings] == [f"{block}.left" for block in range(5)]
    assert max(found) == 0


class Aside(nn.Module):
    """Reshapes to a width that it keeps, in training mode alone."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 12
        self.first, self.second = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 10, 3)
        self.out, self.aux = nn.Linear(10, 4), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.first(x).relu()
        y = self.out(self.second(x).relu().mean((2, 3)))
        return (y, self.aux(x.view(x.shape[0], self.width, -1).mean(2))) if self.training else y


def test_a_width_that_only_training_mode_reads_follows() -> None:
    model, images = Aside(), torch.randn(2, 3, 8, 8)
    couplings = find_couplings(model, images)  # warnings are errors
    small = remove_channels(model, PruningPlan.from_kept(couplings, {"first": range(5), "second": range(4)}))
    assert small.width == 5 and [y.shape for y in small.train()(images)] == [(2, 4), (2, 2)]


class OneByOne(nn.Module):
    """Runs in training mode on two inputs at least; one width is a number that it keeps, another one of the code."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 12
        self.first, self.second = nn.Linear(6, 12), nn.Linear(12, 10)
        self.norm, self.out = nn.BatchNorm1d(10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu().view(x.shape[0], self.width))
        x = x.view(x.shape[0], 10) if self.training else x
        scores: Tensor = self.out(self.norm(x).relu())
        return scores


def test_what_evaluation_mode_needs_is_mended_where_one_input_is_too_few_for_training() -> None:
    trace = trace_couplings(OneByOne(), torch.randn(1, 6))
    assert [coupling.name for coupling in trace.couplings] == ["first"]
    assert "training mode fails without them" in trace.unpruned["second"]
