"""Small networks whose couplings can be told by eye, and what the tests do to networks."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor, nn

import oicsr
from oicsr import Coupling
from oicsr.graph import Graph, export_graph
from oicsr.networks.inputs import Inputs


class Chain(nn.Module):
    """conv -> BatchNorm -> conv -> BatchNorm -> flatten -> linear: every coupling overlaps with the next."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1, bias=True)
        self.bn2 = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(4)
        self.fc = nn.Linear(8 * 2 * 2, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.pool(torch.relu(self.bn2(self.conv2(x))))
        return self.fc(torch.flatten(x, 1))


class Basic(nn.Module):
    """A stem, a basic block with identity shortcut and one with a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.a1, self.an1 = nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.a2, self.an2 = nn.Conv2d(6, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.b1, self.bn1 = nn.Conv2d(4, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.b2, self.bn2 = nn.Conv2d(5, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.project = nn.Conv2d(4, 8, 1, bias=False)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.an2(self.a2(torch.relu(self.an1(self.a1(x))))))
        x = torch.relu(self.project(x) + self.bn2(self.b2(torch.relu(self.bn1(self.b1(x))))))
        return self.fc(x.mean((2, 3)))


class Mixed(nn.Module):
    """Depthwise and grouped convolutions, squeeze-and-excitation, concatenation, GroupNorm, a channel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 12, 1)
        self.depthwise, self.norm = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.GroupNorm(6, 12)
        self.squeeze, self.excite = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.left, self.right = nn.Conv2d(12, 8, 1), nn.Conv2d(12, 8, 3, padding=1)
        self.grouped = nn.Conv2d(16, 8, 3, padding=1, groups=4)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.depthwise(self.expand(x))))
        gate = self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True))))
        x = x * torch.sigmoid(gate)
        x = torch.cat([self.left(x), self.right(x)], 1)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)
        return self.fc(self.grouped(x).mean((2, 3)))


def randomize_norms(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give normalisation layers scales, shifts and statistics that a trained network could have; biases too."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            if module.affine:
                module.weight.data.uniform_(0.5, 1.5, generator=generator)
                module.bias.data.normal_(0, 0.2, generator=generator)
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
        elif isinstance(module, nn.GroupNorm) and module.affine:
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.2, generator=generator)
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            module.bias.data.normal_(0, 0.2, generator=generator)
    return model


def narrowed(model: nn.Module, images: Tensor, divisor: int = 16) -> nn.Module:
    """Return the same architecture with a fraction of the channels."""
    couplings = oicsr.find_couplings(model, images, scope="all", verify="off")
    kept = {c.name: range(max(1, c.num_channels // divisor)) for c in couplings}
    return oicsr.remove_channels(model, oicsr.PruningPlan.from_kept(couplings, kept))


@contextmanager
def exported_once() -> Iterator[None]:
    """Let both scopes of one network share what PyTorch's exporter gives, which is the same and half of the time."""
    held: dict[tuple[bool, type[nn.Module], int], Graph] = {}

    def export(twin: nn.Module, inputs: Inputs, *, training: bool) -> Graph:
        key = training, type(twin), sum(1 for _ in twin.modules())  # a part of the network may be exported, too
        if key not in held:
            held[key] = export_graph(twin, inputs, training=training)
        return held[key]

    with patch("oicsr.tracing.trace.export_graph", export):
        yield


def drop_third(couplings: Sequence[Coupling], seed: int = 0) -> dict[str, list[int]]:
    """Keep about two thirds of the channels of each coupling, chosen at random."""
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for coupling in couplings:
        order = torch.randperm(coupling.num_channels, generator=generator).tolist()
        kept[coupling.name] = sorted(order[: coupling.num_channels - coupling.num_channels // 3])
    return kept


def check_every_channel(model: nn.Module, images: Tensor, scope: str = "all") -> dict[str, int]:
    """Remove each channel by itself, emptied for those that read it: outputs stay to 1e-9. Returns the widths.

    Were a channel joined to too few others, what is left of it would change the outputs, or not fit.
    """
    model = randomize_norms(model).double().eval()
    images = images.double()
    couplings = oicsr.find_couplings(model, images, scope=scope)  # type: ignore[arg-type]
    for coupling in couplings:
        for gone in range(coupling.num_channels):
            kept = {c.name: list(range(c.num_channels)) for c in couplings}
            kept[coupling.name].remove(gone)
            emptied = copy.deepcopy(model)
            zero_channels(emptied, couplings, kept, "in")
            small = oicsr.remove_channels(emptied, oicsr.PruningPlan.from_kept(couplings, kept))
            with torch.no_grad():
                before, after = emptied(images), small(images)
            assert float((before - after).abs().max()) < 1e-9 * float(before.abs().max()), (coupling.name, gone)
            assert oicsr.count_params(small) < oicsr.count_params(model)
    return {c.name: c.num_channels for c in couplings}


@torch.no_grad()
def zero_channels(model: nn.Module, couplings: Sequence[Coupling], kept: dict[str, list[int]], side: str) -> None:
    """Set the weights of one side of the channels that are not kept to zero.

    No layer reads the channels of queries and keys, which meet in a product: they are emptied whole, biases included.
    """
    for coupling in couplings:
        gone = set(range(coupling.num_channels)) - set(kept[coupling.name])
        whole = all(member.side != side for member in coupling.members)
        for member in coupling.members:
            if whole or (member.side == side and member.counts):
                index = [i for i, channel in enumerate(member.channels.tolist()) if channel in gone]
                model.get_parameter(member.parameter).index_fill_(member.dim, torch.tensor(index, dtype=torch.int64), 0)
