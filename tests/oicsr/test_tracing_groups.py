"""Channels in groups and parts: halves, split attention, few or many groups, statistics over groups."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import oicsr
from tests.oicsr.networks import check_every_channel
from tests.oicsr.test_tracing import members_of

IMAGES = torch.zeros(2, 3, 8, 8)


class Halves(nn.Module):
    """Eight channels as two halves of four, or four pairs, that are summed, normalised over, or picked from."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        width = 8 if kind.startswith("softmax") else 4
        self.one, self.two, self.three = nn.Conv2d(3, 8, 1), nn.Conv2d(width, 5, 1), nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        batch, width, *pixels = x.shape
        shapes = {"halves": (2, width // 2), "half": (2, width // 2), "pairs": (width // 2, 2), "fours": (-1, 4)}
        x = x.view(batch, *shapes[self.kind.split()[-1]], *pixels)
        if self.kind.startswith("sum"):
            x = x.sum(2 if self.kind.endswith("pairs") else 1)
        elif self.kind.startswith("softmax"):
            x = x.softmax(2 if self.kind.endswith("pairs") else 1).reshape(batch, width, *pixels)
        else:
            x = x[:, -1]
        return self.three(torch.relu(self.two(x)))


@pytest.mark.parametrize("kind", ["sum of halves", "softmax over halves", "last half"])
def test_the_axis_of_tied_groups_may_be_reduced(kind: str) -> None:
    torch.manual_seed(0)
    assert check_every_channel(Halves(kind), torch.randn(2, 3, 4, 4)) == {"one": 4, "two": 5}
    (one, _) = oicsr.find_couplings(Halves(kind), IMAGES)
    rows = [0, 1, 2, 3] if kind != "softmax over halves" else [0, 1, 2, 3] * 2
    assert members_of(one) == {
        ("one.weight", 0): ("out", [0, 1, 2, 3] * 2),
        ("one.bias", 0): ("out", [0, 1, 2, 3] * 2),
        ("two.weight", 1): ("in", rows),
    }


@pytest.mark.parametrize(("kind", "size"), [("sum of pairs", 2), ("softmax over pairs", 2), ("sum of fours", 4)])
def test_channels_that_are_reduced_together_go_together(kind: str, size: int) -> None:
    torch.manual_seed(0)
    assert check_every_channel(Halves(kind), torch.randn(2, 3, 4, 4)) == {"one": 8 // size, "two": 5}
    (one, _) = oicsr.find_couplings(Halves(kind), IMAGES)
    assert members_of(one)["one.weight", 0] == ("out", [i // size for i in range(8)])


class SplitAttention(nn.Module):
    """Two paths as the groups of a convolution, summed with weights from a softmax over them (ResNeSt)."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.one, self.paths = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2 * width, 3, groups=2)
        self.norm, self.squeeze = nn.BatchNorm2d(2 * width), nn.Conv2d(width, 5, 1)
        self.excite, self.fc = nn.Conv2d(5, 2 * width, 1), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.paths(self.one(x))))
        batch, width, *pixels = x.shape
        x = x.reshape(batch, 2, width // 2, *pixels)
        gate = self.excite(torch.relu(self.squeeze(x.sum(1).mean((2, 3), keepdim=True))))
        gate = gate.view(batch, 1, 2, -1).transpose(1, 2).softmax(1).reshape(batch, -1, 1, 1)
        x = (x * gate.reshape(batch, 2, width // 2, 1, 1)).sum(1)
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("width", [3, 6])  # with 3 the trial leaves groups as narrow as there are groups
def test_split_attention_is_followed(width: int) -> None:
    torch.manual_seed(0)
    widths = {"one": 4, "paths": width, "squeeze": 5}
    assert check_every_channel(SplitAttention(width), torch.randn(2, 3, 8, 8)) == widths


def test_split_attention_has_hand_told_couplings() -> None:
    couplings = {c.name: members_of(c) for c in oicsr.find_couplings(SplitAttention(), IMAGES)}
    twice = ("out", [*range(6)] * 2)
    assert couplings["paths"]["paths.weight", 0] == couplings["paths"]["excite.weight", 0] == twice
    assert couplings["paths"]["squeeze.weight", 1] == couplings["paths"]["fc.weight", 1] == ("in", [*range(6)])


class SelectiveKernel(nn.Module):
    """Two convolutions, stacked, and summed with weights from a softmax over them (SKNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 1)
        self.squeeze, self.select, self.fc = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 12, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(torch.stack([self.left(x), self.right(x)], 1))
        gate = self.select(torch.relu(self.squeeze(x.sum(1).mean((2, 3), keepdim=True))))
        gate = gate.view(len(x), 2, x.shape[2], 1, 1).softmax(1)
        return self.fc((x * gate).sum(1).mean((2, 3)))


def test_selective_kernels_are_followed() -> None:
    torch.manual_seed(0)
    assert check_every_channel(SelectiveKernel(), torch.randn(2, 3, 8, 8)) == {"left": 6, "squeeze": 4}
    left, _ = oicsr.find_couplings(SelectiveKernel(), IMAGES)
    members = members_of(left)
    assert members["right.weight", 0] == ("out", [*range(6)]) and members["select.weight", 0] == (
        "out",
        [*range(6)] * 2,
    )


class FewGroups(nn.Module):
    """A residual convolution of two groups of four, between layers that are free."""

    def __init__(self, groups: int = 2, out: int = 12) -> None:
        super().__init__()
        self.one, self.grouped, self.norm = nn.Conv2d(3, 8, 1), nn.Conv2d(8, out, 3, groups=groups), nn.BatchNorm2d(out)
        self.same, self.fc = nn.Conv2d(out, out, 3, padding=1, groups=groups), nn.Linear(out, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.grouped(torch.relu(self.one(x)))))
        return self.fc((x + self.same(x)).mean((2, 3)))


def test_few_wide_groups_lose_channels_of_each() -> None:
    """In- and out-channels of the grouped convolution are apart, and its two groups stay."""
    torch.manual_seed(0)
    assert check_every_channel(FewGroups(), torch.randn(2, 3, 8, 8)) == {"one": 4, "grouped": 6}
    one, grouped = oicsr.find_couplings(FewGroups(), IMAGES, scope="all")
    assert members_of(one) == {
        ("one.weight", 0): ("out", [0, 1, 2, 3] * 2),
        ("one.bias", 0): ("out", [0, 1, 2, 3] * 2),
        ("grouped.weight", 1): ("in", [0, 1, 2, 3]),
    }
    members = members_of(grouped)
    assert members["grouped.weight", 0] == members["same.weight", 0] == ("out", [*range(6)] * 2)
    assert members["same.weight", 1] == ("in", [*range(6)])
    plan = oicsr.PruningPlan.from_kept([one, grouped], {"one": [0, 2, 3], "grouped": [1, 3, 5]})
    small = oicsr.remove_channels(FewGroups(), oicsr.PruningPlan.from_json(plan.to_json()))
    assert (small.grouped.groups, small.grouped.in_channels, small.grouped.out_channels) == (2, 6, 6)
    assert tuple(small.grouped.weight.shape) == (6, 3, 3, 3)
    found = oicsr.find_couplings(small, IMAGES, scope="all")
    assert [members_of(c) for c in oicsr.shrink_couplings([one, grouped], plan)] == [members_of(c) for c in found]


@pytest.mark.parametrize(("groups", "out"), [(4, 12), (8, 8), (2, 4)])
def test_many_or_narrow_groups_go_as_a_whole(groups: int, out: int) -> None:
    """Where a layer has no more channels in a group than groups."""
    torch.manual_seed(0)
    assert check_every_channel(FewGroups(groups, out), torch.randn(2, 3, 8, 8)) == {"one": groups}
    (coupling,) = oicsr.find_couplings(FewGroups(groups, out), IMAGES, scope="all")
    small = oicsr.remove_channels(FewGroups(groups, out), oicsr.PruningPlan.from_kept([coupling], {"one": [0]}))
    assert (small.grouped.groups, small.grouped.in_channels, small.grouped.out_channels) == (
        1,
        8 // groups,
        out // groups,
    )


class ResponseNorm(nn.Module):
    """Filter response normalisation, in float32 whatever comes in: the exporter notes the types as it goes."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 3, 1)
        self.scale, self.floor = nn.Parameter(torch.rand(6)), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        x = x * x.float().square().mean((2, 3), keepdim=True).add(1e-5).rsqrt().to(x.dtype)
        x = x * self.scale.view(1, -1, 1, 1).to(x.dtype)
        return self.two(torch.maximum(x, self.floor.reshape(1, -1, 1, 1)))


def test_checks_of_types_are_passed_over() -> None:
    torch.manual_seed(0)
    assert check_every_channel(ResponseNorm(), torch.randn(2, 3, 8, 8)) == {"one": 6}
    exported = torch.export.export(ResponseNorm(), (IMAGES,))
    assert any("_assert_tensor_metadata" in str(node.target) for node in exported.graph.nodes)


class GroupStatistics(nn.Module):
    """Deviations over groups of channels, by hand (EvoNorm): removing one would change the others'."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        groups = x.reshape(len(x), 2, x.shape[1] // 2, *x.shape[2:])
        return self.two(x / groups.std((2, 3, 4), keepdim=True).expand(groups.shape).reshape(x.shape))


def test_statistics_over_groups_of_channels_leave_them() -> None:
    with pytest.warns(oicsr.UnprunedChannelsWarning, match="'one' .*number in the model's code"):
        assert oicsr.find_couplings(GroupStatistics(), IMAGES, scope="all") == []


class Standardized(nn.Module):
    """A convolution whose filters are standardised in every call."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.two.weight
        flat = nn.functional.batch_norm(weight.reshape(1, len(weight), -1), None, None, training=True, momentum=0.0)
        x = nn.functional.conv2d(self.one(x), flat.reshape_as(weight))
        return self.three(torch.relu(x))


def test_standardised_weights_lose_rows_and_no_columns() -> None:
    with pytest.warns(oicsr.UnprunedChannelsWarning, match="batch_norm.* standardises a weight over the channels"):
        couplings = oicsr.find_couplings(Standardized(), IMAGES, scope="all")
    assert [(coupling.name, coupling.num_channels) for coupling in couplings] == [("two", 6)]


class TwoImages(nn.Module):
    """A head that only runs in training, and normalises single pixels: one image alone is too little for it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.side, self.norm = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 1), nn.BatchNorm2d(5)
        self.fc, self.aux = nn.Linear(6, 4), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.conv(x).mean((2, 3), keepdim=True)
        out = self.fc(x.flatten(1))
        return (out, self.aux(self.norm(self.side(x)).flatten(1))) if self.training else out


def test_one_image_is_enough_to_trace_by() -> None:
    couplings = oicsr.find_couplings(TwoImages(), IMAGES[:1])
    assert [c.name for c in couplings] == ["conv", "side"]
    assert ("side.weight", 1) in members_of(couplings[0])


class Auxiliary(nn.Module):
    """A head that only runs in training."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.fc, self.aux = nn.Conv2d(3, 4, 1), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.one(x).mean((2, 3))
        return (self.fc(x), self.aux(x)) if self.training else self.fc(x)


def test_heads_that_only_run_in_training_are_followed() -> None:
    (coupling,) = oicsr.find_couplings(Auxiliary(), IMAGES)
    assert ("aux.weight", 1) in members_of(coupling)
