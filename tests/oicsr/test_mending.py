"""Mending: how remedies are looked for and proved. What is mended, test_proof.py and the users' networks say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from oicsr import mending as mending_module
from oicsr import trace_couplings


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
