"""Selection: a known optimum, the cap, rounding, and targets that cannot be reached."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import oicsr
from benchmarks.models import MODELS
from oicsr import search, selection
from oicsr.limits import Limits
from oicsr.selection import MacsModel
from tests.oicsr.networks import Basic, Chain, Mixed
from tests.oicsr.users_gates import CASES

IMAGES = torch.zeros(1, 3, 8, 8)


def scores_for(couplings: list[oicsr.Coupling], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(c.num_channels, generator=generator) for c in couplings]


def test_least_important_channels_of_the_whole_network_go() -> None:
    model = Chain()
    couplings = oicsr.find_couplings(model, IMAGES)
    scores = [torch.tensor([9.0, 1, 8, 7, 6, 5]), torch.tensor([9.0, 8, 7, 2, 6, 5, 4, 3])]
    # MACs: 64 * 27 * w1 + 64 * 9 * w1 * w2 + 20 * w2; dense (6, 8): 38,176. The order is 1, 2, 3, ...
    plan = oicsr.select_channels(scores, couplings, model, IMAGES, macs_kept=28_941 / 38_176)
    assert plan.kept == {"conv1": (0, 2, 3, 4, 5), "conv2": (0, 1, 2, 4, 5, 6, 7)}
    small = oicsr.remove_channels(model, plan)
    assert oicsr.count_macs(small, IMAGES) == 64 * 27 * 5 + 64 * 9 * 5 * 7 + 20 * 7


@settings(max_examples=20)
@given(share=st.floats(0.35, 1.0), seed=st.integers(0, 10_000))
def test_target_is_met_within_one_percent(share: float, seed: int) -> None:
    cost = MacsModel(COUPLINGS, COUPLED, CIFAR)
    plan = oicsr.select_channels(
        scores_for(COUPLINGS, seed), COUPLINGS, COUPLED, CIFAR, macs_kept=share, max_removed=0.9
    )
    stays = torch.cat([torch.isin(torch.arange(c.num_channels), torch.tensor(plan.kept[c.name])) for c in COUPLINGS])
    assert cost.macs(stays) == pytest.approx(share * oicsr.count_macs(COUPLED, CIFAR), rel=0.01)


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5, 0.4])
def test_target_is_met_where_single_channels_are_coarse(share: float) -> None:
    """The demo's network: a channel of the first stage costs up to 2 % of what remains."""
    images = torch.zeros(1, 1, 8, 8)
    model = MODELS["digits-resnet"](10)
    couplings = oicsr.find_couplings(model, images)
    for seed in range(10):
        scores = scores_for(couplings, seed)
        plan = oicsr.select_channels(scores, couplings, model, images, macs_kept=share, max_removed=0.9)
        reached = oicsr.count_macs(oicsr.remove_channels(model, plan), images)
        assert reached == pytest.approx(share * oicsr.count_macs(model, images), rel=0.01)


AUTHORS_MACS = {0.627: 2563e6, 0.556: 2274e6, 0.500: 2046e6}  # README of the authors' repository, ResNet-50


@pytest.fixture(scope="module")
def resnet50() -> tuple[nn.Module, Tensor, list[oicsr.Coupling]]:
    torch.manual_seed(0)
    model, images = torchvision.models.resnet50(weights=None), torch.zeros(1, 3, 224, 224)
    return model, images, oicsr.find_couplings(model, images, verify="off")  # test_tracing.py has them proved


@pytest.mark.xdist_group("the authors' ResNet-50")
@pytest.mark.parametrize("importance", ["random", "energy"])
def test_resnet50_lands_on_the_widths_of_the_authors(
    importance: str, resnet50: tuple[nn.Module, Tensor, list[oicsr.Coupling]]
) -> None:
    model, images, couplings = resnet50
    assert len(couplings) == 32
    scores = scores_for(couplings) if importance == "random" else oicsr.out_in_energy(model, couplings)
    inner = {member.parameter.rpartition(".")[0] for coupling in couplings for member in coupling.members}
    for share, published in AUTHORS_MACS.items():
        plan = oicsr.select_channels(scores, couplings, model, images, macs_kept=share, max_removed=0.5)
        small = oicsr.remove_channels(model, plan)
        assert oicsr.count_macs(small, images) == pytest.approx(published, rel=0.005)
        assert all(2 * len(plan.kept[c.name]) >= c.num_channels for c in couplings)
        widths = {name: module.out_channels for name, module in small.named_modules() if isinstance(module, nn.Conv2d)}
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d) and not name.endswith((".conv1", ".conv2")):
                assert widths[name] == module.out_channels, name
        assert {entry.parameter.rpartition(".")[0] for entry in plan.slices} <= inner
        assert (small.conv1.out_channels, small.fc.in_features) == (64, 2048)


CIFAR = torch.zeros(1, 3, 32, 32)
COUPLED = torchvision.models.resnet18(weights=None, num_classes=10)
COUPLINGS = oicsr.find_couplings(COUPLED, CIFAR)


class _Tokens(nn.Module):
    """Two linear layers over tokens run once for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(10, 16), nn.Linear(16, 3)
        self.mix = nn.Sequential(nn.Linear(7, 20), nn.ReLU(), nn.Linear(20, 7))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.mix(self.into(x).transpose(1, 2)).transpose(1, 2))


def test_layers_that_run_over_each_channel_count_as_often_as_there_are_channels() -> None:
    model, x = _Tokens(), torch.randn(3, 7, 10)
    couplings = oicsr.find_couplings(model, x)
    plan = oicsr.select_channels(oicsr.out_in_energy(model, couplings), couplings, model, x, macs_kept=0.25)
    assert len(plan.kept["into"]) == 4
    assert oicsr.count_macs(oicsr.remove_channels(model, plan), x) == oicsr.count_macs(model, x) / 4


def test_fewer_macs_keep_a_subset() -> None:
    scores = scores_for(COUPLINGS)
    plans = [
        oicsr.select_channels(scores, COUPLINGS, COUPLED, CIFAR, macs_kept=share, max_removed=0.9)
        for share in (0.9, 0.7, 0.5)
    ]
    for wider, narrower in pairwise(plans):
        assert all(set(narrower.kept[name]) <= set(wider.kept[name]) for name in wider.kept)


def test_cap_holds_for_original_and_current_width() -> None:
    couplings = COUPLINGS
    scores = [torch.full((c.num_channels,), float(i)) for i, c in enumerate(couplings)]  # first layers go first
    plan = oicsr.select_channels(scores, couplings, COUPLED, CIFAR, macs_kept=0.8, max_removed=0.5)
    assert all(len(plan.kept[c.name]) >= c.num_channels - c.num_channels // 2 for c in couplings)
    wider = {c.name: 2 * c.num_channels for c in couplings}  # as if half had gone before
    with pytest.raises(ValueError, match="out of reach"):
        oicsr.select_channels(scores, couplings, COUPLED, CIFAR, macs_kept=0.8, max_removed=0.5, original_widths=wider)


def test_widths_are_rounded() -> None:
    plan = oicsr.select_channels(
        scores_for(COUPLINGS), COUPLINGS, COUPLED, CIFAR, macs_kept=0.6, max_removed=0.9, round_to=8
    )
    assert all(len(ids) % 8 == 0 for ids in plan.kept.values())


def test_widths_are_multiples_where_channels_are_brought_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 20 channels in blocks of 8, the first block has 4: bringing it back alone would leave 12."""
    monkeypatch.setattr(search, "ENUMERABLE", 0)
    widths, layers = (3, 20, 30, 36), list[nn.Module]()
    for rows, columns in pairwise(widths):
        layers += [nn.Linear(rows, columns), nn.ReLU()]
    model, inputs = nn.Sequential(*layers, nn.Linear(36, 3)), torch.zeros(1, 3)
    couplings = oicsr.find_couplings(model, inputs)
    scores = scores_for(couplings)
    with pytest.raises(ValueError, match=r"no cut comes within .*, set tolerance=[\d.]+, or lower round_to\.$"):
        oicsr.select_channels(scores, couplings, model, inputs, macs_kept=0.3, round_to=8, tolerance=0.05)
    plan = oicsr.select_channels(scores, couplings, model, inputs, macs_kept=0.3, round_to=8, tolerance=0.1)
    assert all(len(kept) % 8 == 0 for kept in plan.kept.values())


def test_rounding_is_blamed_where_there_is_some() -> None:
    model, inputs = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.zeros(1, 4)
    couplings = oicsr.find_couplings(model, inputs)
    with pytest.raises(ValueError, match=r"Ask for macs_kept=0\.6667, or set tolerance=[\d.]+\.$"):
        oicsr.select_channels(scores_for(couplings), couplings, model, inputs, macs_kept=0.5)


def test_out_of_reach_says_what_is() -> None:
    model = Basic()
    couplings = oicsr.find_couplings(model, IMAGES)
    with pytest.raises(ValueError, match=r"out of reach.*down to [\d,]+ MACs \(0\.\d+ of them\)"):
        oicsr.select_channels(scores_for(couplings), couplings, model, IMAGES, macs_kept=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"macs_kept": 0.0}, "macs_kept is 0.0"),
        ({"macs_kept": 1.5}, "macs_kept is 1.5"),
        ({"max_removed": 2.0}, "max_removed is 2.0"),
        ({"round_to": 0}, "round_to is 0"),
        ({"round_to": math.inf}, "round_to is inf; it must be a whole number"),
        ({"dense_macs": math.nan}, "dense_macs is nan; it must be positive and finite"),
        ({"params_kept": 0.5, "dense_cost": 0}, "dense_cost is 0; it must be positive and finite"),
        ({"original_widths": {COUPLINGS[0].name: 1}}, r"original_widths\['.*'\] is 1, but the coupling has"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        oicsr.select_channels(scores_for(COUPLINGS), COUPLINGS, COUPLED, CIFAR, **arguments)  # type: ignore[arg-type]


def test_wrong_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="the couplings need"):
        oicsr.select_channels(scores_for(COUPLINGS)[:-1], COUPLINGS, COUPLED, CIFAR)
    broken = scores_for(COUPLINGS)
    broken[2][1] = float("nan")
    with pytest.raises(ValueError, match=r"'layer2\.0\.conv1' contain NaN: 1 of .* All weights are finite"):
        oicsr.select_channels(broken, COUPLINGS, COUPLED, CIFAR)
    with pytest.raises(ValueError, match="no couplings"):
        oicsr.select_channels([], [], COUPLED, CIFAR)


def test_a_cost_of_nothing_has_no_share() -> None:
    with pytest.raises(ValueError, match=r"cost_kept is 0\.5, a share of nothing.* 0 units of cost"):
        oicsr.select_channels(scores_for(COUPLINGS), COUPLINGS, COUPLED, CIFAR, cost=lambda model: 0.0, cost_kept=0.5)


def test_keeping_everything_removes_nothing() -> None:
    plan = oicsr.select_channels(scores_for(COUPLINGS), COUPLINGS, COUPLED, CIFAR, macs_kept=1.0)
    assert plan.slices == ()


def test_ties_are_broken_by_position_not_by_chance() -> None:
    model = Mixed()
    couplings = oicsr.find_couplings(model, IMAGES)
    flat = [torch.ones(c.num_channels) for c in couplings]
    plans = [oicsr.select_channels(flat, couplings, model, IMAGES, macs_kept=0.8672, max_removed=0.9) for _ in range(2)]
    assert plans[0] == plans[1]


def test_a_swap_lands_on_targets_that_no_greedy_cut_meets(monkeypatch: pytest.MonkeyPatch) -> None:
    model, example = MODELS["digits-resnet"](10), torch.zeros(1, 1, 8, 8)
    couplings = oicsr.find_couplings(model, example)
    swaps: list[int] = []
    swap = search._swap
    monkeypatch.setattr(search, "_swap", lambda *args: (swaps.append(1), swap(*args))[1])
    widths = [c.num_channels for c in couplings]
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        scores = [torch.rand(width, generator=generator) for width in widths]
        plan = oicsr.select_channels(scores, couplings, model, example, macs_kept=0.15, max_removed=0.9)
        cost = selection.MacsModel(couplings, model, example)
        everything = torch.ones(sum(widths), dtype=torch.bool)
        stays = torch.cat([_mask(plan.kept[c.name], c.num_channels) for c in couplings])
        assert cost.macs(stays) == pytest.approx(0.15 * cost.macs(everything), rel=0.01)
        for score, coupling in zip(scores, couplings, strict=True):
            kept = _mask(plan.kept[coupling.name], coupling.num_channels)
            assert kept.sum() >= math.ceil(coupling.num_channels * 0.1)
            assert kept.all() or score[kept].min() > score[~kept].max()  # within a layer the best stay
    assert swaps


def _mask(kept: tuple[int, ...], width: int) -> Tensor:
    mask = torch.zeros(width, dtype=torch.bool)
    mask[list(kept)] = True
    return mask


@pytest.mark.parametrize("multiple", [1, 4])
def test_what_stays_at_the_least_is_what_all_steps_leave(multiple: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 13, 3), nn.Conv2d(13, 8, 3), nn.Conv2d(8, 4, 3))
    couplings = oicsr.find_couplings(model, torch.zeros(1, 3, 9, 9))
    scores = scores_for(couplings)
    limits = Limits.of(couplings, 0.6, multiple, {})
    stays = torch.ones(21, dtype=torch.bool)
    stays[torch.cat(limits.steps(scores))] = False
    assert limits.least(scores).tolist() == stays.tolist()
    assert [int(part.sum()) for part in stays.split([13, 8])] == limits.floors()


@pytest.mark.parametrize("name", ["a_correlation_of_each_channel_with_a_template", "kernels_that_styles_modulate"])
@pytest.mark.filterwarnings("ignore::oicsr.UnprunedChannelsWarning")
def test_macs_of_convolutions_with_kernels_that_are_activations_are_predicted(name: str) -> None:
    case = CASES[name]
    model = case.build().eval()
    couplings = oicsr.find_couplings(model, case.inputs, scope="all")
    kept = {c.name: range(c.num_channels // 2 + 1) for c in couplings}
    small = oicsr.remove_channels(model, oicsr.PruningPlan.from_kept(couplings, kept))
    stays = torch.cat([_mask(tuple(kept[c.name]), c.num_channels) for c in couplings])
    assert MacsModel(couplings, model, case.inputs).macs(stays) == oicsr.count_macs(small, case.inputs)


def test_original_widths_of_what_is_no_coupling_are_refused() -> None:
    name = COUPLINGS[0].name
    with pytest.raises(
        ValueError, match=f"original_widths names '{name}x', which is not a coupling; did you mean '{name}'"
    ):
        oicsr.select_channels(
            scores_for(COUPLINGS), COUPLINGS, COUPLED, CIFAR, macs_kept=0.8, original_widths={f"{name}x": 99}
        )
