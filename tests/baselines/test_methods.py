"""Every method goes its whole way on a small network: train, score, remove half of the MACs, train on."""

from __future__ import annotations

import copy
from functools import cache, partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import oicsr
from baselines import Scoring, Target
from benchmarks.methods.registry import METHODS, REGULARIZERS
from benchmarks.models import MODELS

IMAGES = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(16) % 10


@cache
def dense() -> tuple[nn.Module, list[oicsr.Coupling]]:
    torch.manual_seed(0)
    model = MODELS["digits-resnet"](10)
    return model, oicsr.find_couplings(model, IMAGES[:1])


def train(model: nn.Module, regularizer: oicsr.Regularizer | None, steps: int = 2, rate: float = 0.05) -> float:
    """Take a few steps as the suite's training loop does; return the last loss."""
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    loss = torch.zeros(())
    for _ in range(steps):
        optimizer.zero_grad()
        if isinstance(regularizer, oicsr.ScheduledRegularizer):
            regularizer.advance(model)
        loss = functional.cross_entropy(model(IMAGES), LABELS)
        proximal = isinstance(regularizer, oicsr.ProximalRegularizer)
        direct = proximal or isinstance(regularizer, oicsr.GradientRegularizer)
        (loss if regularizer is None or direct else loss + regularizer(model)).backward()
        if isinstance(regularizer, oicsr.GradientRegularizer) and not proximal:
            regularizer.add_gradient(model)
        optimizer.step()
        if isinstance(regularizer, oicsr.ProximalRegularizer):
            regularizer.proximal_step(model, rate)
    return float(loss.detach())


@pytest.mark.parametrize("name", list(METHODS))
def test_whole_way(name: str) -> None:
    method = METHODS[name]
    start, couplings = dense()
    model = copy.deepcopy(start)
    select = partial(method.selection.select, macs_kept=0.5, max_removed=0.7)
    target = Target(0.5, 2, lambda network, scores: select(scores, couplings, network, IMAGES[:1]))
    regularizer = method.regularizer.build(couplings, 1e-3, target)
    assert regularizer is not None or not method.has_strength
    train(model, regularizer)
    changed = regularizer is None or not _equal(model, _trained_without())
    assert changed

    def batches() -> list[tuple[Tensor, Tensor]]:
        return [(IMAGES, LABELS)]

    scores = method.importance.score(model, couplings, Scoring(torch.Generator().manual_seed(0), batches))
    plan = select(scores, couplings, model, IMAGES[:1])
    small = oicsr.remove_channels(model, plan)
    assert oicsr.count_macs(small, IMAGES[:1]) / oicsr.count_macs(model, IMAGES[:1]) == pytest.approx(0.5, rel=0.01)
    before = train(small, None, steps=1)
    assert train(small, None, steps=6) < before


@cache
def _trained_without() -> nn.Module:
    model = copy.deepcopy(dense()[0])
    train(model, None)
    return model


def _equal(model: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", [name for name, spec in REGULARIZERS.items() if spec.has_strength])
def test_a_model_in_the_place_of_couplings_is_named(name: str) -> None:
    model, _ = dense()
    with pytest.raises(TypeError, match=r"a module: .* the model is given when it is called"):
        REGULARIZERS[name].make(model, 0.1)  # type: ignore[arg-type]
