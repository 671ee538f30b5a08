"""Code that asks how wide a value is: a plan under which it decides otherwise is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import oicsr
from oicsr.proving.ways import check_way

IMAGES = torch.randn(2, 3, 8, 8)


class Block(nn.Module):
    """A residual block that projects where widths differ, as it asks while it runs."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv, self.project = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).relu()
        if x.shape != y.shape:
            x = self.project(x)
        return y + x


class Asking(nn.Module):
    """Does something that depends on its width, in one of several ways."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv, self.out, self.kind = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 4, 1), kind

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).relu()
        if self.kind == "same" and y.shape[1] < 5:
            y = y.clone()
        if self.kind == "twice" and y.shape[1] < 5:
            y = 2 * y
        if self.kind == "divides":
            y = y / (2 if y.shape[1] < 5 else 1)
        if self.kind == "gain":
            y = y * (0.5 if y.shape[1] < 5 else 1.0)
        if self.kind == "adds":
            y = y + (y.sin() if y.shape[1] < 5 else 0)
        if self.kind == "fails" and y.shape[1] < 5:
            raise ValueError("too narrow")
        out: Tensor = self.out(y)
        return out


def residual() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), Block(16, 32), Block(32, 64), nn.Conv2d(64, 4, 1))
    return nn.Sequential(*layers)


def test_widths_that_coincide_are_refused() -> None:
    model = residual()
    couplings = oicsr.find_couplings(model, IMAGES, scope="all")
    assert [coupling.num_channels for coupling in couplings] == [16, 32, 64]
    kept = {coupling.name: range(16) for coupling in couplings[:2]} | {couplings[2].name: range(24)}
    plan = oicsr.PruningPlan.from_kept(couplings, kept)
    words = r"'2' no longer calls conv2d in line \d+ of test_ways.py, `x = self.project\(x\)`"
    with pytest.raises(ValueError, match=words):
        check_way(model, IMAGES, couplings, plan)
    scores = [
        torch.arange(c.num_channels, 0.0, -1) + 99 * (torch.arange(c.num_channels) < len(kept[c.name]))
        for c in couplings
    ]
    with pytest.raises(ValueError, match=words):
        oicsr.select_channels(scores, couplings, model, IMAGES, macs_kept=0.3037, round_to=8)
    kept[couplings[1].name] = range(17)
    check_way(model, IMAGES, couplings, oicsr.PruningPlan.from_kept(couplings, kept))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("twice", r"'the network itself' now calls mul"),
        ("divides", r"calls div with \(a tensor, 2\) in place of \(a tensor, 1\)"),
        ("gain", r"calls mul with \(a tensor, 0.5\) in place of \(a tensor, 1.0\)"),
        ("adds", r"calls add with \(a tensor, a tensor\) in place of \(a tensor, 0\)"),
        ("fails", r"ValueError: too narrow"),
    ],
)
def test_a_width_that_the_code_does_not_allow_is_refused(kind: str, words: str) -> None:
    model = Asking(kind)
    couplings = oicsr.find_couplings(model, IMAGES)
    scores = [torch.arange(32.0)]
    oicsr.select_channels(scores, couplings, model, IMAGES, macs_kept=0.25)
    with pytest.raises(ValueError, match=words):
        oicsr.select_channels(scores, couplings, model, IMAGES, macs_kept=0.125)


def test_another_way_to_the_same_outputs_is_allowed() -> None:
    model = Asking("same")
    couplings = oicsr.find_couplings(model, IMAGES)
    plan = oicsr.select_channels([torch.arange(32.0)], couplings, model, IMAGES, macs_kept=0.125)
    assert len(plan.kept["conv"]) == 4
