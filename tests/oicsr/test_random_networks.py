"""Random networks: whatever is stacked, removing empty channels changes nothing, in both scopes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import oicsr
from oicsr.selection import MacsModel
from tests.oicsr.networks import drop_third, randomize_norms, zero_channels


class Step(nn.Module):
    """One step of a random network: `(batch, width, h, w)` to `(batch, self.width, h', w')`, widths multiples of 4."""

    def __init__(self, kind: str, width: int, wide: int) -> None:
        super().__init__()
        self.kind, self.width = kind, width
        self.first = self.second = self.norm = nn.Identity()
        if kind in ("conv", "strided"):
            self.first, self.width = nn.Conv2d(width, wide, 3, stride=1 + (kind == "strided"), padding=1), wide
        elif kind == "transposed":
            self.first, self.width = nn.ConvTranspose2d(width, wide, 2, stride=2), wide
        elif kind in ("grouped", "few_groups"):
            self.first, self.width = nn.Conv2d(width, wide, 3, padding=1, groups=4 if kind == "grouped" else 2), wide
        elif kind == "radix":
            self.first, self.width = nn.Conv2d(width, 2 * wide, 3, padding=1, groups=2), wide
            self.second, self.norm = nn.Conv2d(wide, 2 * wide, 1), nn.BatchNorm2d(2 * wide)
        elif kind == "depthwise":
            self.first = nn.Conv2d(width, 2 * width, 3, padding=1, groups=width, bias=False)
            self.width = 2 * width
        elif kind in ("residual", "gate", "preact"):
            self.first, self.second = nn.Conv2d(width, wide, 1), nn.Conv2d(wide, width, 1)
            self.norm = nn.BatchNorm2d(wide)
        elif kind == "projected":
            self.first, self.second, self.width = nn.Conv2d(width, wide, 3, padding=1), nn.Conv2d(width, wide, 1), wide
        elif kind in ("concat", "twice"):
            self.first, self.width = nn.Conv2d(width, wide, 3, padding=1), width + wide
        elif kind == "glu":
            self.first, self.width = nn.Conv2d(width, 2 * wide, 1), wide
        elif kind in ("norm", "plain_norm"):
            self.norm = nn.BatchNorm2d(width, affine=kind == "norm")
        elif kind == "group_norm":
            self.norm = nn.GroupNorm(4, width)
        elif kind == "prelu":
            self.norm = nn.PReLU(width)
        elif kind == "padded":
            self.first, self.width = nn.Conv2d(width, width + 4, 3, padding=1), width + 4

    def forward(self, x: Tensor) -> Tensor:
        return FORWARDS.get(self.kind, lambda step, x: step.norm(step.first(x)))(self, x)


def shuffle(step: Step, x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).flatten(1, 2)


def glu(step: Step, x: Tensor) -> Tensor:
    left, right = step.first(x).chunk(2, 1)
    return left * torch.sigmoid(right)


def radix(step: Step, x: Tensor) -> Tensor:
    x = torch.relu(step.norm(step.first(x)))
    x = x.view(x.shape[0], 2, x.shape[1] // 2, *x.shape[2:])
    gate = step.second(x.sum(1).mean((2, 3), True))
    return (x * gate.view(x.shape[0], 2, x.shape[2], 1, 1).softmax(1)).sum(1)


def last_axis(step: Step, x: Tensor) -> Tensor:
    return functional.silu(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


FORWARDS: dict[str, Callable[[Step, Tensor], Tensor]] = {
    "relu": lambda step, x: torch.relu(x),
    "pool": lambda step, x: functional.max_pool2d(x, 2, ceil_mode=True),
    "average": lambda step, x: functional.avg_pool2d(x, 3, 1, 1),
    "residual": lambda step, x: x + step.second(torch.relu(step.norm(step.first(x)))),
    "preact": lambda step, x: step.second(torch.relu(step.norm(step.first(torch.relu(x))))) + x,
    "gate": lambda step, x: x * torch.sigmoid(step.second(torch.relu(step.norm(step.first(x.mean((2, 3), True)))))),
    "projected": lambda step, x: step.first(x) + step.second(x),
    "concat": lambda step, x: torch.cat([x, step.first(x)], 1),
    "twice": lambda step, x: torch.cat([torch.relu(step.first(x)), x], 1),
    "glu": glu,
    "shuffle": shuffle,
    "last_axis": last_axis,
    "radix": radix,
    "padded": lambda step, x: step.first(x) + functional.pad(x, (0, 0, 0, 0, 1, 3)),
}
KINDS = """conv strided transposed grouped few_groups radix depthwise residual preact gate projected concat twice glu
norm plain_norm group_norm prelu padded relu pool average shuffle last_axis""".split()


class Random(nn.Module):
    """A stem, steps, and a head on the flattened or on the averaged map."""

    def __init__(self, steps: list[tuple[str, int]], flatten: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        parts, width = [], 8
        for kind, wide in steps:
            parts.append(Step(kind, width, 4 * wide))
            width = parts[-1].width
        self.steps = nn.Sequential(*parts)
        self.flatten = flatten
        self.hidden = nn.Linear(width * (4 if flatten else 1), 6)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.adaptive_avg_pool2d(self.steps(self.stem(x)), 2 if self.flatten else 1)
        return self.fc(torch.relu(self.hidden(x.flatten(1))))


@example(steps=[("few_groups", 3), ("residual", 2), ("radix", 3), ("few_groups", 3)], flatten=True, seed=2)
@example(steps=[("radix", 2), ("concat", 1), ("few_groups", 2), ("shuffle", 1)], flatten=False, seed=3)
@example(steps=[("group_norm", 1), *[("concat", 1)] * 3, ("group_norm", 1)], flatten=False, seed=1)
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    steps=st.lists(st.tuples(st.sampled_from(KINDS), st.integers(1, 3)), min_size=1, max_size=6),
    flatten=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_removing_empty_channels_of_any_network_changes_nothing(
    steps: list[tuple[str, int]], flatten: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    model = randomize_norms(Random(steps, flatten), seed).double().eval()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for scope in ("inner", "all"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", oicsr.UnprunedChannelsWarning)
            couplings = oicsr.find_couplings(model, images, scope=scope)  # type: ignore[arg-type]
        kept = drop_third(couplings, seed)
        emptied = copy.deepcopy(model)
        zero_channels(emptied, couplings, kept, "in")
        small = oicsr.remove_channels(emptied, oicsr.PruningPlan.from_kept(couplings, kept))
        with torch.no_grad():
            before, after = emptied(images), small(images)
        assert torch.allclose(before, after, rtol=1e-9, atol=1e-9 * float(before.abs().max())), scope
        assert "hidden" in {c.name for c in couplings}
        assert small.hidden.out_features == 4
        stays = torch.cat([torch.tensor([i in set(kept[c.name]) for i in range(c.num_channels)]) for c in couplings])
        assert oicsr.count_macs(small, images) == MacsModel(couplings, model, images).macs(stays)
        small(images).sum().backward()
