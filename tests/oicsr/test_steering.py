"""Steering: what may go, how far, to which target, and what is kept alike."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import oicsr
from oicsr.selection import MacsModel
from tests.oicsr.attentions import Separate
from tests.oicsr.networks import Basic, Chain, Mixed
from tests.oicsr.users_networks import Net

IMAGES = torch.zeros(1, 3, 8, 8)


class Wide(nn.Module):
    """Three convolutions of 16 channels, so that every share is a multiple of a sixteenth."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3)
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.third(torch.relu(self.second(torch.relu(self.first(x))))).mean((2, 3)))


def _select(model: nn.Module, **options: object) -> oicsr.PruningPlan:
    couplings = oicsr.find_couplings(model, IMAGES)
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(c.num_channels, generator=generator) for c in couplings]
    return oicsr.select_channels(scores, couplings, model, IMAGES, **options)  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------------------------------
# ignore
# ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ignore", "left"),
    [
        ("first", ["second", "third"]),
        (["first", "th*"], ["second"]),
        ("*ir[ds]*", ["second"]),
        ((), ["first", "second", "third"]),
    ],
)
def test_ignored_layers_keep_their_channels(ignore: object, left: list[str]) -> None:
    trace = oicsr.trace_couplings(Wide(), IMAGES, ignore=ignore)
    assert [c.name for c in trace.couplings] == left
    for name in {"first", "second", "third"} - set(left):
        assert "is ignored" in trace.unpruned[name]


def test_modules_and_what_is_in_them_are_ignored() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)), nn.Conv2d(4, 2, 1))
    assert [c.name for c in oicsr.find_couplings(model, IMAGES, ignore=model[1])] == ["0"]
    assert [c.name for c in oicsr.find_couplings(model, IMAGES, ignore=["1", model[0]])] == []
    assert [c.name for c in oicsr.find_couplings(model, IMAGES, ignore=model[1][0])] == ["0", "1.1"]


def test_an_ignored_layer_holds_what_it_is_joined_to() -> None:
    """Depthwise convolution and gate live on the channels of the expansion; the squeezed width is its own."""
    every = {c.name for c in oicsr.find_couplings(Mixed(), IMAGES, scope="all")}
    for ignored in ("expand", "depthwise", "norm"):
        left = {c.name for c in oicsr.find_couplings(Mixed(), IMAGES, scope="all", ignore=ignored)}
        assert left == every - {"expand"}, ignored


def test_what_is_ignored_must_exist() -> None:
    with pytest.raises(ValueError, match="'frst' is no layer of this Wide; did you mean 'first'"):
        oicsr.find_couplings(Wide(), IMAGES, ignore="frst")
    with pytest.raises(ValueError, match="the Conv2d that was given is no layer"):
        oicsr.find_couplings(Wide(), IMAGES, ignore=nn.Conv2d(1, 1, 1))
    with pytest.raises(TypeError, match="3 is neither the name"):
        oicsr.find_couplings(Wide(), IMAGES, ignore=[3])  # type: ignore[list-item]


# ----------------------------------------------------------------------------------------------------------------
# caps and rounding by layer
# ----------------------------------------------------------------------------------------------------------------


def test_caps_by_layer() -> None:
    plan = _select(Wide(), macs_kept=0.43, max_removed={"first": 0.25, "sec*": 0.5, "*": 0.9})
    widths = {name: len(kept) for name, kept in plan.kept.items()}
    assert widths["first"] >= 12
    assert widths["second"] >= 8
    assert widths["third"] < 8


def test_an_exact_name_goes_before_patterns_and_the_first_pattern_counts() -> None:
    plan = _select(Wide(), macs_kept=0.2944, max_removed={"*": 0.5, "f*": 0.9, "third": 0.75})
    widths = {name: len(kept) for name, kept in plan.kept.items()}
    assert widths == {"first": 8, "second": 8, "third": 4}


def test_layers_without_a_cap_get_the_librarys() -> None:
    plan = _select(Wide(), macs_kept=0.15, max_removed={"first": 0.5}, tolerance=0.1)
    assert len(plan.kept["first"]) == 8
    assert len(plan.kept["second"]) < 4


def test_rounding_by_layer() -> None:
    plan = _select(Wide(), macs_kept=0.5, round_to={"first": 8, "third": 4}, tolerance=0.1)
    widths = {name: len(kept) for name, kept in plan.kept.items()}
    assert (widths["first"] % 8, widths["third"] % 4) == (0, 0)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="max_removed names 'secnod', which fits no coupling; did you mean 'second'"):
        _select(Wide(), max_removed={"secnod": 0.1})
    with pytest.raises(ValueError, match="round_to names 'x'"):
        _select(Wide(), round_to={"x": 2})


# ----------------------------------------------------------------------------------------------------------------
# targets
# ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [Wide(), Chain(), Basic()], ids=lambda model: type(model).__name__)
@pytest.mark.parametrize("share", [0.8, 0.6])
def test_a_share_of_the_parameters(model: nn.Module, share: float) -> None:
    plan = _select(model, params_kept=share, tolerance=0.05)
    small = oicsr.remove_channels(model, plan)
    assert oicsr.count_params(small) == pytest.approx(share * oicsr.count_params(model), rel=0.05)


def test_a_cost_function_is_met() -> None:
    def weights(network: nn.Module) -> float:
        """A cost that no rule here knows: the weights of the second layer."""
        return float(network.get_parameter("second.weight").numel())

    model = Wide()
    plan = _select(model, cost=weights, cost_kept=0.5, tolerance=0.1)
    assert weights(oicsr.remove_channels(model, plan)) == pytest.approx(0.5 * weights(model), rel=0.1)


def test_a_cost_is_measured_about_twenty_times() -> None:
    calls: list[int] = []

    def macs(network: nn.Module) -> float:
        calls.append(1)
        return oicsr.count_macs(network, IMAGES)

    model = Wide()
    small = oicsr.remove_channels(model, _select(model, cost=macs, cost_kept=0.5, tolerance=0.05))
    assert len(calls) < 20
    assert oicsr.count_macs(small, IMAGES) == pytest.approx(0.5 * oicsr.count_macs(model, IMAGES), rel=0.05)


def test_later_steps_refer_to_the_first_network() -> None:
    model = Wide()
    plan = _select(model, params_kept=0.25, dense_cost=2 * oicsr.count_params(model), tolerance=0.05)
    small = oicsr.remove_channels(model, plan)
    assert oicsr.count_params(small) == pytest.approx(0.5 * oicsr.count_params(model), rel=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"macs_kept": 0.5, "params_kept": 0.5}, "one target, not several: macs_kept=0.5, params_kept=0.5"),
        ({"cost_kept": 0.5}, "cost and cost_kept belong together"),
        ({"cost": len}, "cost and cost_kept belong together"),
        ({"params_kept": 1.5}, "params_kept is 1.5"),
        ({"cost": lambda _: float("nan"), "cost_kept": 0.5}, r"cost\(model\) returned nan"),
        ({"tolerance": -0.1}, "tolerance is -0.1"),
    ],
)
def test_targets_that_make_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _select(Wide(), **options)


# ----------------------------------------------------------------------------------------------------------------
# tolerance, and the nearest cut
# ----------------------------------------------------------------------------------------------------------------


def _all_macs(model: nn.Module, round_to: int, cap: float) -> dict[int, tuple[int, ...]]:
    """Return the MACs of every combination of widths, by brute force."""
    couplings = oicsr.find_couplings(model, IMAGES)
    cost = MacsModel(couplings, model, IMAGES)
    ranges = [
        [w for w in range(1, c.num_channels + 1) if w % round_to == 0 and w >= (1 - cap) * c.num_channels]
        for c in couplings
    ]
    found = {}
    for widths in itertools.product(*ranges):
        masks = [torch.arange(c.num_channels) < width for c, width in zip(couplings, widths, strict=True)]
        found[cost.macs(torch.cat(masks))] = widths
    return found


@pytest.mark.parametrize("share", [0.83, 0.77, 0.6, 0.51, 0.37])
def test_the_message_names_the_nearest_cut(share: float) -> None:
    model = Wide()
    possible = _all_macs(model, round_to=8, cap=0.9)
    dense = max(possible)
    nearest = min(possible, key=lambda macs: abs(macs - share * dense))
    if abs(nearest - share * dense) <= 0.001 * share * dense:
        pytest.fail("the case tests nothing: the target is met")
    with pytest.raises(ValueError, match=rf"the nearest leaves {nearest:,} \({nearest / dense:.4f} of"):
        _select(model, macs_kept=share, round_to=8, max_removed=0.9, tolerance=0.001)
    plan = _select(model, macs_kept=round(nearest / dense, 4), round_to=8, max_removed=0.9, tolerance=0.001)
    assert oicsr.count_macs(oicsr.remove_channels(model, plan), IMAGES) == nearest


def test_the_tolerance_that_the_message_names_is_enough() -> None:
    model = Wide()
    with pytest.raises(ValueError, match="set tolerance=0") as caught:
        _select(model, macs_kept=0.77, round_to=8, tolerance=0.001)
    tolerance = float(str(caught.value).split("tolerance=")[1].split(",")[0])
    plan = _select(model, macs_kept=0.77, round_to=8, tolerance=tolerance)
    reached = oicsr.count_macs(oicsr.remove_channels(model, plan), IMAGES)
    assert reached == pytest.approx(0.77 * oicsr.count_macs(model, IMAGES), rel=tolerance)


def test_combinations_beyond_a_swap_are_found() -> None:
    """Widths that no order of removal comes near, with the best channels of each layer kept."""
    model = Wide()
    dense = oicsr.count_macs(model, IMAGES)
    found = 0
    for macs, widths in _all_macs(model, round_to=4, cap=0.9).items():
        if macs > 0.15 * dense:
            plan = _select(model, macs_kept=macs / dense, round_to=4, max_removed=0.9, tolerance=1e-6)
            assert oicsr.count_macs(oicsr.remove_channels(model, plan), IMAGES) == macs, widths
            found += 1
    assert found > 20


class Blocks(nn.Module):
    """Three blocks of a transformer: a head costs as much as a dozen channels of an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(Separate(width=32, heads=4, per_head=8) for _ in range(3))
        self.wide = nn.ModuleList(nn.Linear(32, 96) for _ in range(3))
        self.narrow = nn.ModuleList(nn.Linear(96, 32) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for attention, wide, narrow in zip(self.attentions, self.wide, self.narrow, strict=True):
            x = x + attention(x)
            x = x + narrow(torch.relu(wide(x)))
        return x


@pytest.mark.parametrize("share", [0.5, 0.4, 0.36, 0.3, 0.25])
def test_the_leap_of_a_head_is_made_up_for_by_channels(share: float) -> None:
    torch.manual_seed(0)
    model, tokens = Blocks(), torch.randn(1, 9, 32)
    couplings = oicsr.find_couplings(model, tokens, granularity="head")
    assert sorted(coupling.kind for coupling in couplings) == 3 * ["channel"] + 3 * ["head"]
    # heads go last, when nothing smaller is left to hit the target with
    scores = [torch.rand(c.num_channels) + 10 * (c.kind == "head") for c in couplings]
    plan = oicsr.select_channels(scores, couplings, model, tokens, macs_kept=share, max_removed=0.9)
    reached = oicsr.count_macs(oicsr.remove_channels(model, plan), tokens)
    assert reached == pytest.approx(share * oicsr.count_macs(model, tokens), rel=0.01)
    for coupling, score in zip(couplings, scores, strict=True):  # the best of each layer stay
        kept = list(plan.kept[coupling.name])
        assert set(kept) == set(score.topk(len(kept)).indices.tolist())


# ----------------------------------------------------------------------------------------------------------------
# what is out of reach
# ----------------------------------------------------------------------------------------------------------------


def test_the_default_cap_goes_as_far_as_the_target_needs() -> None:
    model = Wide()
    plan = _select(model, macs_kept=0.02, tolerance=0.2)
    assert min(len(kept) for kept in plan.kept.values()) == 1
    assert oicsr.count_macs(oicsr.remove_channels(model, plan), IMAGES) <= 0.024 * oicsr.count_macs(model, IMAGES)


def test_the_cap_that_the_message_names_reaches_the_target() -> None:
    with pytest.raises(
        ValueError, match=r"out of reach: .* within reach: max_removed=0\.\d\d, or macs_kept=0"
    ) as error:
        _select(Wide(), macs_kept=0.2, max_removed=oicsr.PAPER_CAP)
    cap = float(str(error.value).split("max_removed=")[1].split(",")[0])
    plan = _select(Wide(), macs_kept=0.2, max_removed=cap, tolerance=0.1)
    assert max(16 - len(kept) for kept in plan.kept.values()) <= cap * 16
    with pytest.raises(ValueError, match="out of reach"):
        _select(Wide(), macs_kept=0.2, max_removed=round(cap - 0.07, 2))
    share = float(str(error.value).split("macs_kept=")[1].rstrip("."))
    assert _select(Wide(), macs_kept=share, max_removed=oicsr.PAPER_CAP)


def test_the_scope_that_the_message_names_reaches_the_target() -> None:
    model = Basic()
    with pytest.raises(ValueError, match=r'within reach: couplings found with scope="all"'):
        _select(model, macs_kept=0.15)
    couplings = oicsr.find_couplings(model, IMAGES, scope="all")
    scores = oicsr.out_in_energy(model, couplings)
    assert oicsr.select_channels(scores, couplings, model, IMAGES, macs_kept=0.15, tolerance=0.2)


# ----------------------------------------------------------------------------------------------------------------
# ties
# ----------------------------------------------------------------------------------------------------------------


def test_tied_couplings_keep_the_same_channels() -> None:
    plan = _select(Wide(), macs_kept=0.5, tie=[("first", "third")])
    assert plan.kept["first"] == plan.kept["third"] != plan.kept["second"]
    assert len(plan.kept["first"]) < 16
    oicsr.remove_channels(Wide(), plan)(IMAGES)


def test_the_mean_score_of_tied_channels_counts() -> None:
    model = Wide()
    couplings = oicsr.find_couplings(model, IMAGES)
    scores = [torch.arange(16.0), torch.full((16,), 99.0), torch.arange(16.0).flip(0) * 3]
    plan = oicsr.select_channels(
        scores, couplings, model, IMAGES, macs_kept=0.6, tolerance=0.1, tie=[("first", "third")]
    )
    gone = set(range(16)) - set(plan.kept["first"])
    assert gone == set(range(16 - len(gone), 16))  # 3 (15 - i) + i falls with i


def test_a_teacher_and_a_student_are_pruned_alike() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.teacher, self.student = Wide(), Wide()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.teacher(x), self.student(x)

    pair = Pair()
    names = ("first", "second", "third")
    couplings = oicsr.find_couplings(pair, IMAGES)
    tied = oicsr.tie_couplings(couplings, [(f"teacher.{name}", f"student.{name}") for name in names])
    assert [c.name for c in tied] == [f"teacher.{name}" for name in names]
    energies = oicsr.channel_energy(pair, tied)
    for name, energy in zip(names, energies, strict=True):
        own = [oicsr.channel_energy(pair, [c])[0] for c in couplings if c.name.endswith(name)]
        assert torch.allclose(energy, own[0] + own[1])
    plan = oicsr.select_channels(energies, tied, pair, IMAGES, macs_kept=0.5, tolerance=0.05)
    teacher, student = oicsr.remove_channels(pair, plan).children()
    assert all(a.shape == b.shape for a, b in zip(teacher.parameters(), student.parameters(), strict=True))
    assert teacher.second.out_channels < 16


@pytest.mark.parametrize(
    ("tie", "message"),
    [
        (["first"], "it must hold groups"),
        ([("first", "fourth")], "'fourth', which is not a coupling"),
        ([("first", "second"), ("second", "third")], "'second' twice"),
    ],
)
def test_ties_that_make_no_sense(tie: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _select(Wide(), tie=tie)


def test_ties_of_different_widths_are_refused() -> None:
    couplings = oicsr.find_couplings(Chain(), IMAGES)
    with pytest.raises(ValueError, match=r"different widths cannot be tied: \{'conv1': 6, 'conv2': 8\}"):
        oicsr.tie_couplings(couplings, [couplings])


@pytest.mark.parametrize("share", ["module", "weight"])
@pytest.mark.parametrize("name", ["a", "b"])
def test_a_layer_of_two_names_is_ignored_by_either(share: str, name: str) -> None:
    first, second = (nn.Linear(12, 12, bias=False) for _ in range(2))
    if share == "module":
        second = first
    second.weight = first.weight
    layers = {"i": nn.Linear(6, 12), "a": first, "b": second, "o": nn.Linear(12, 3)}

    def run(net: Any, x: Tensor) -> Tensor:
        return net.o(net.b(net.a(net.i(x).relu()).relu()).relu())

    trace = oicsr.trace_couplings(Net(run, layers), torch.randn(2, 6), scope="all", ignore=name)
    assert not trace.couplings and "is ignored" in trace.unpruned["a"]
