"""Random networks: whatever is stacked, removing empty channels changes nothing, in both scopes."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.utils.prune
from hypothesis import HealthCheck, example, given, settings
from hypothesis import seed as random_seed
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import oicsr
from oicsr import Coupling
from oicsr.networks.copying import copy_model
from oicsr.selection import MacsModel
from tests.oicsr.networks import drop_third, exported_once, randomize_norms, zero_channels
from tests.oicsr.random_steps import MORE


class Step(nn.Module):
    """One step of a random network: `(batch, width, h, w)` to `(batch, self.width, h', w')`, widths multiples of 4."""

    def __init__(self, kind: str, width: int, wide: int) -> None:
        super().__init__()
        self.kind, self.width = kind, width
        self.first = self.second = self.norm = nn.Identity()
        if kind in ("conv", "strided"):
            self.first, self.width = nn.Conv2d(width, wide, 3, stride=1 + (kind == "strided"), padding=1), wide
        elif kind in TRANSPOSED_GROUPS:
            groups = TRANSPOSED_GROUPS[kind] or width
            self.width = width if groups == width else wide
            self.first = nn.ConvTranspose2d(width, self.width, 2, stride=2, groups=groups)
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
        elif kind in ("glu", "glu_operator"):
            self.first, self.width = nn.Conv2d(width, 2 * wide, 1), wide
        elif kind in ("pixel_shuffle", "pixel_shuffle_by_hand"):
            self.first, self.width = nn.Conv2d(width, 4 * wide, 1), wide
        elif kind == "pixel_unshuffle":
            self.first, self.width = nn.Conv2d(4 * width, wide, 1), wide
        elif kind == "generator":
            self.first, self.width = nn.Linear(width, 4 * wide), width + wide
        elif kind == "tokens":
            self.first, self.second = nn.Linear(width, wide), nn.Linear(wide, width)
        elif kind == "positions":
            self.table = nn.Parameter(torch.randn(1, width, 2, 2))
        elif kind in ("shared", "two_roles", "cached", "in_a_dictionary", "joined_in_training", *WRAPPED):
            self.first = nn.Conv2d(width, width, 3, padding=1)
        elif kind in PARAMETRIZED:
            self.first, self.width = PARAMETRIZED[kind](nn.Conv2d(width, wide, 3, padding=1)), wide
        elif kind == "tied_transpose":
            self.first = nn.Conv2d(width, wide, 2, stride=2, bias=False)
        elif kind == "blur":
            self.register_buffer("kernel", torch.rand(width, 1, 3, 3))
        elif kind == "rows_and_columns":
            self.rows, self.columns = (nn.Parameter(torch.randn(1, 1, width // 2)) for _ in range(2))
        elif kind == "layer_norm":
            self.norm = nn.LayerNorm(width)
        elif kind == "functional_group_norm":
            self.scale, self.shift = nn.Parameter(torch.rand(width)), nn.Parameter(torch.rand(width))
        elif kind in ("norm", "plain_norm", "zero_centred_norm"):
            self.norm = nn.BatchNorm2d(width, affine=kind != "plain_norm")
        elif kind == "group_norm":
            self.norm = nn.GroupNorm(4, width)
        elif kind == "prelu":
            self.norm = nn.PReLU(width)
        elif kind == "padded":
            self.first, self.width = nn.Conv2d(width, width + 4, 3, padding=1), width + 4
        elif kind == "repeated":
            self.width = 2 * width
        elif kind in MORE:
            MORE[kind][0](self, width, wide)

    def forward(self, x: Tensor) -> Tensor:
        return FORWARDS.get(self.kind, lambda step, x: step.norm(step.first(x)))(self, x)


TRANSPOSED_GROUPS = {"transposed": 1, "transposed_groups": 4, "transposed_few": 2, "transposed_depthwise": 0}
WRAPPED = ("no_grad", "autocast", "checkpoint")
PARAMETRIZED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": nn.utils.parametrizations.weight_norm,
    "old_weight_norm": nn.utils.weight_norm,
    "spectral_norm": nn.utils.parametrizations.spectral_norm,
    "masked": lambda conv: nn.utils.prune.l1_unstructured(conv, "weight", 0.3),
}


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


def pixel_shuffle_by_hand(step: Step, x: Tensor) -> Tensor:
    x = step.first(x)
    batch, channels, height, width = x.shape
    x = x.view(batch, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
    return functional.avg_pool2d(x.reshape(batch, channels // 4, 2 * height, 2 * width), 2)


def pixel_unshuffle(step: Step, x: Tensor) -> Tensor:
    return step.first(functional.pixel_unshuffle(functional.interpolate(x, 8), 2))


def generator(step: Step, x: Tensor) -> Tensor:
    made = step.first(x.mean((2, 3))).view(len(x), -1, 2, 2)
    return torch.cat([x, functional.interpolate(torch.tanh(made), x.shape[2:], mode="bilinear")], 1)


def tokens(step: Step, x: Tensor) -> Tensor:
    flat = x.flatten(2).transpose(1, 2)
    flat = flat + step.second(functional.gelu(step.first(flat)))
    return flat.transpose(1, 2).reshape(x.shape)


def unpool(step: Step, x: Tensor) -> Tensor:
    small, places = functional.max_pool2d(functional.interpolate(x, 4), 2, return_indices=True)
    return functional.max_unpool2d(torch.tanh(small), places, 2)


def zero_centred_norm(step: Step, x: Tensor) -> Tensor:
    norm = step.norm
    return functional.batch_norm(x, norm.running_mean, norm.running_var, 1 + norm.weight, norm.bias, step.training)


def by_fours(step: Step, x: Tensor) -> Tensor:
    fours = x.view(len(x), -1, 4, *x.shape[2:])
    return x + torch.tanh(fours.mean(2, keepdim=True)).expand(fours.shape).reshape(x.shape)


def selections(step: Step, x: Tensor) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    x = torch.where(x > mean, x, mean).masked_fill(x < -2, 0.5)
    return torch.addcmul(torch.lerp(x, torch.tanh(x), 0.3), x.clamp(min=mean), torch.ones_like(x) / 2)


def scans(step: Step, x: Tensor) -> Tensor:
    return x.flip(1).roll(1, 2).cumsum(3) / x.shape[3] + x.sort(2)[0] * x.amax((2, 3), keepdim=True).sigmoid()


def no_grad(step: Step, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.relu(step.first(x))


def autocast(step: Step, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return torch.relu(step.first(x))


def tied_transpose(step: Step, x: Tensor) -> Tensor:
    small = torch.tanh(step.first(functional.interpolate(x, 4)))
    return functional.conv_transpose2d(small, step.first.weight, stride=2)


def rows_and_columns(step: Step, x: Tensor) -> Tensor:
    height, width = x.shape[2:]
    table = torch.cat([step.columns.expand(height, width, -1), step.rows.expand(height, width, -1)], 2)
    return x + table.permute(2, 0, 1)


def cached(step: Step, x: Tensor) -> Tensor:
    step.last = torch.relu(step.first(x))
    step.calls = getattr(step, "calls", 0) + 1
    return step.last + 0 * step.calls


def in_a_dictionary(step: Step, x: Tensor) -> Tensor:
    held = {"maps": [x, step.first(x)], "none": None}
    return torch.relu(sum(held["maps"]))  # type: ignore[arg-type]


def pool_over_channels(step: Step, x: Tensor) -> Tensor:
    rows = x.permute(0, 2, 3, 1).flatten(1, 2)
    return functional.max_pool1d(rows, 3, 1, 1).view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)


# what has no exact removal: these channels stay
LEFT: dict[str, Callable[[Step, Tensor], Tensor]] = {
    "layer_norm": lambda step, x: step.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "functional_group_norm": lambda step, x: functional.group_norm(x, 2, step.scale, step.shift),
    "own_width": lambda step, x: x * (4 / x.shape[1]),
    "own_width_in_training": lambda step, x: x / x.shape[1] if step.training else x,
    "joined_in_training": lambda step, x: step.first(x) + x if step.training else step.first(x),
    "pool_over_channels": pool_over_channels,
    "mean_over_channels": lambda step, x: x * torch.sigmoid(x.mean(1, keepdim=True)),
    "one_channel": lambda step, x: x * torch.sigmoid(x[:, :1]),
    "softmax": lambda step, x: x.softmax(1),
    "numbers": lambda step, x: x * torch.linspace(0.5, 1, x.shape[1], dtype=x.dtype).view(-1, 1, 1),
}

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
    "glu_operator": lambda step, x: functional.glu(step.first(x), 1),
    "shuffle": shuffle,
    "last_axis": last_axis,
    "radix": radix,
    "padded": lambda step, x: step.first(x) + functional.pad(x, (0, 0, 0, 0, 1, 3)),
    "pixel_shuffle": lambda step, x: functional.avg_pool2d(functional.pixel_shuffle(step.first(x), 2), 2),
    "pixel_shuffle_by_hand": pixel_shuffle_by_hand,
    "pixel_unshuffle": pixel_unshuffle,
    "upsampled": lambda step, x: functional.max_pool2d(functional.interpolate(x, scale_factor=2, mode="bicubic"), 2),
    "generator": generator,
    "tokens": tokens,
    "positions": lambda step, x: x + functional.interpolate(step.table, x.shape[2:], mode="bilinear"),
    "unpool": unpool,
    "zero_centred_norm": zero_centred_norm,
    "by_fours": by_fours,
    "selections": selections,
    "scans": scans,
    "power": lambda step, x: 2 ** torch.tanh(x) - x.abs() ** torch.sigmoid(x),
    "tied_transpose": tied_transpose,
    "rows_and_columns": rows_and_columns,
    "cached": cached,
    "in_a_dictionary": in_a_dictionary,
    "two_roles": lambda step, x: step.first(x) * step.first.bias.view(-1, 1, 1),
    "blur": lambda step, x: functional.conv2d(x, step.kernel, padding=1, groups=x.shape[1]),
    "repeated": lambda step, x: x.repeat(1, 2, 1, 1),
    "shared": lambda step, x: step.first(torch.relu(step.first(x))),
    "no_grad": no_grad,
    "autocast": autocast,
    "checkpoint": lambda step, x: checkpoint(lambda y: torch.relu(step.first(y)), x, use_reentrant=False),
    **{kind: forward for kind, (_, forward) in MORE.items()},
    **LEFT,
}


def average(model: nn.Module) -> nn.Module:
    """Wrap without the copy that PyTorch makes, which it cannot make of masked weights."""
    wrapper = AveragedModel(nn.Identity())
    wrapper.module = model
    return wrapper


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": lambda model: model,
    "DataParallel": nn.DataParallel,
    "AveragedModel": average,
    "compiled": lambda model: torch.compile(model, backend="eager"),  # type: ignore[return-value]
}
KINDS = sorted(
    {
        *FORWARDS,
        *TRANSPOSED_GROUPS,
        *PARAMETRIZED,
        *"conv strided grouped few_groups depthwise norm plain_norm group_norm prelu".split(),
    }
)


class Random(nn.Module):
    """A stem, steps, and a head on the flattened or on the averaged map."""

    def __init__(self, steps: list[tuple[str, int]], flatten: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        parts, width = [], 16
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


NETWORKS = given(
    steps=st.lists(st.tuples(st.sampled_from(KINDS), st.integers(1, 3)), min_size=1, max_size=6),
    flatten=st.booleans(),
    seed=st.integers(0, 1000),
    wrapper=st.sampled_from(sorted(WRAPPERS)),
)


@example(
    steps=[("few_groups", 3), ("residual", 2), ("radix", 3), ("few_groups", 3)], flatten=True, seed=2, wrapper="plain"
)
@example(
    steps=[("radix", 2), ("concat", 1), ("few_groups", 2), ("shuffle", 1)], flatten=False, seed=3, wrapper="compiled"
)
@example(
    steps=[("group_norm", 1), *[("concat", 1)] * 3, ("group_norm", 1)], flatten=False, seed=1, wrapper="AveragedModel"
)
@example(  # BatchNorm nearly hides what the width does in training mode
    steps=[("glu_operator", 2), ("own_width_in_training", 2), ("pixel_unshuffle", 2), ("glu_operator", 2)],
    flatten=False,
    seed=0,
    wrapper="plain",
)
@example(steps=[("functional_group_norm", 1), ("tied_transpose", 1)], flatten=False, seed=0, wrapper="plain")
@example(
    steps=[("autocast", 1), ("projected", 1), ("joined_in_training", 1)], flatten=False, seed=0, wrapper="AveragedModel"
)
@settings(max_examples=25)
@NETWORKS
def test_removing_empty_channels_of_any_network_changes_nothing(
    steps: list[tuple[str, int]], flatten: bool, seed: int, wrapper: str
) -> None:
    assert {"hidden"} <= pruned_exactly(steps, flatten, seed, wrapper)


@pytest.mark.parametrize("start", range(0, 114, 19))  # parts, for several cores
@pytest.mark.slow
def test_removing_empty_channels_of_114_networks_changes_nothing(start: int) -> None:
    @random_seed(start)
    @settings(max_examples=19, suppress_health_check=list(HealthCheck))
    @NETWORKS
    def check(steps: list[tuple[str, int]], flatten: bool, seed: int, wrapper: str) -> None:
        assert {"hidden"} <= pruned_exactly(steps, flatten, seed, wrapper)

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_step_is_pruned_exactly(kind: str) -> None:
    """Alone, and behind another layer: nothing but what cannot go stays."""
    found = pruned_exactly([("norm", 1), (kind, 2), ("conv", 2)], False, 1)
    assert {"steps.2.first", "hidden"} <= found
    assert kind in {*LEFT, "standardised"} or "stem" in found


def zero_rows(model: Random, couplings: list[Coupling], kept: dict[str, list[int]]) -> None:
    """Set rows to zero where they have a say in what stays: in a weight's spectral norm, or read by its transpose."""
    for step in model.steps:
        if step.kind in ("spectral_norm", "tied_transpose"):
            prefix = next(name for name, module in model.named_modules() if module is step.first)
            own = {
                c: tuple(m for m in c.members if m.parameter.startswith(f"{prefix}.") and m.side == "out")
                for c in couplings
            }
            rows = [Coupling(c.name, c.num_channels, members) for c, members in own.items() if members]
            zero_channels(model, rows, kept, "out")


def pruned_exactly(steps: list[tuple[str, int]], flatten: bool, seed: int, wrapper: str = "plain") -> set[str]:
    """Assert that channels of zeros can go in both scopes and both modes; return the couplings' names."""
    torch.manual_seed(seed)
    wrapped = WRAPPERS[wrapper](randomize_norms(Random(steps, flatten), seed).double().eval()).eval()
    model = oicsr.unwrap(wrapped)
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with warnings.catch_warnings(), exported_once():
        warnings.simplefilter("ignore", oicsr.UnprunedChannelsWarning)
        found = {scope: oicsr.find_couplings(wrapped, images, scope=scope) for scope in ("inner", "all")}  # type: ignore[arg-type]
    for scope, couplings in found.items():
        kept = drop_third(couplings, seed)
        emptied = copy_model(model)
        zero_channels(emptied, couplings, kept, "in")
        zero_rows(emptied, couplings, kept)
        small = oicsr.remove_channels(emptied, oicsr.PruningPlan.from_kept(couplings, kept))
        assert small.hidden.out_features == 4
        stays = torch.cat([torch.tensor([i in set(kept[c.name]) for i in range(c.num_channels)]) for c in couplings])
        assert oicsr.count_macs(small, images) == MacsModel(couplings, model, images).macs(stays)
        for training in (False, True):
            with torch.no_grad():
                before, after = emptied.train(training)(images), small.train(training)(images)
            assert torch.allclose(before, after, rtol=1e-9, atol=1e-9 * float(before.abs().max())), (scope, training)
        small(images).sum().backward()
    return {coupling.name for coupling in couplings}
