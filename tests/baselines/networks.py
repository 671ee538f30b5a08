"""Networks with weights by formula, and what the contract tests do to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

import oicsr
from baselines import Scoring
from benchmarks.methods.registry import REGULARIZERS
from tests.oicsr.networks import Basic, Chain, Mixed

IMAGES = torch.linspace(-1, 1, 4 * 3 * 8 * 8, dtype=torch.float64).reshape(4, 3, 8, 8).sin()
LABELS = torch.tensor([0, 1, 2, 1])


class Depthwise(nn.Module):
    """An expansion, a depthwise convolution and a projection, as in MobileNetV2; no addition."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.norm1 = nn.Conv2d(3, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.depthwise, self.norm2 = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), nn.BatchNorm2d(6)
        self.project, self.norm3 = nn.Conv2d(6, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.expand(x)))
        x = torch.relu(self.norm2(self.depthwise(x)))
        return self.fc(torch.relu(self.norm3(self.project(x))).mean((2, 3)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "chain": Chain,
    "basic": Basic,
    "depthwise": Depthwise,
    "mixed": Mixed,
}
PEERS = [name for name in REGULARIZERS if name.startswith("tp-")]


@torch.no_grad()
def by_formula(model: nn.Module) -> nn.Module:
    """Fill a network, in float64, with values that no random number generator can change."""
    model = model.double()
    for position, parameter in enumerate(model.parameters()):
        ramp = torch.arange(parameter.numel(), dtype=torch.float64).reshape(parameter.shape)
        parameter.copy_(0.4 * torch.sin(1 + position + 1.7 * ramp) + 0.1 * torch.cos(0.3 * ramp) + 0.05)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.copy_(torch.linspace(0.5, 1.5, len(buffer)))
    return model


@cache
def couplings_of(name: str) -> list[oicsr.Coupling]:
    return oicsr.find_couplings(by_formula(NETWORKS[name]()), IMAGES)


def prepared(name: str) -> tuple[nn.Module, list[oicsr.Coupling]]:
    return by_formula(NETWORKS[name]()), couplings_of(name)


def scoring(seed: int = 0) -> Scoring:
    return Scoring(torch.Generator().manual_seed(seed), lambda: [(IMAGES[:2], LABELS[:2]), (IMAGES[2:], LABELS[2:])])


def built(name: str, model: nn.Module, couplings: Sequence[oicsr.Coupling], strength: float = 0.1) -> oicsr.Regularizer:
    """Build a regulariser, as it is after its first step where it changes while training."""
    regularizer = REGULARIZERS[name].make(couplings, strength)
    assert regularizer is not None
    if isinstance(regularizer, oicsr.ScheduledRegularizer):
        regularizer.advance(model)
    return regularizer


def gradient(regularizer: oicsr.Regularizer, model: nn.Module) -> dict[str, Tensor]:
    """Return what the regulariser adds to the gradient of every parameter, in the way that it acts."""
    model.zero_grad()
    if isinstance(regularizer, oicsr.GradientRegularizer):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        regularizer.add_gradient(model)
    else:
        value = regularizer(model)
        if value.requires_grad:
            value.backward()
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    return found


def owned(model: nn.Module, couplings: Sequence[oicsr.Coupling], sides: Sequence[str]) -> dict[str, Tensor]:
    """Return, per parameter, which elements belong to a channel on one of the sides."""
    masks = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in model.named_parameters()}
    for coupling in couplings:
        for member in coupling.members:
            if member.counts and member.side in sides:
                masks[member.parameter].index_fill_(member.dim, (member.channels >= 0).nonzero().flatten(), True)
    return masks


@torch.no_grad()
def permute(model: nn.Module, coupling: oicsr.Coupling, order: Tensor) -> None:
    """Put channel `order[i]` of a coupling in the place of channel i, everywhere."""
    for member in coupling.members:
        value = model.get_parameter(member.parameter) if "running" not in member.parameter else None
        value = model.get_buffer(member.parameter) if value is None else value
        source = torch.arange(len(member.channels))
        for channel in range(coupling.num_channels):
            here = (member.channels == channel).nonzero().flatten()
            source[here] = (member.channels == order[channel]).nonzero().flatten()
        value.copy_(value.index_select(member.dim, source))


def loss(model: nn.Module) -> Tensor:
    return functional.cross_entropy(model(IMAGES), LABELS)
