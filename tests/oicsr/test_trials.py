"""How couplings are tried: blame, what is kept, what is put back, precisions, and training mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import oicsr
from oicsr import Coupling
from oicsr.networks.inputs import as_inputs
from oicsr.proving.chance import choose_kept
from oicsr.proving.proof import blame
from oicsr.proving.trials import Bench
from oicsr.surgery import apply_plan, slice_module
from tests.oicsr.networks import Basic, Chain
from tests.oicsr.test_proof import INEXACT, Between, by_hand

IMAGES = torch.zeros(2, 3, 8, 8)


def test_wrong_couplings_are_refuted_one_by_one_and_others_stand() -> None:
    """Couplings are made wrong by hand: a reader is taken out of one, and one is given another's channels."""
    torch.manual_seed(0)
    model, images = Basic(), torch.randn(2, 3, 8, 8)
    couplings = oicsr.find_couplings(model, images, scope="all")
    assert not oicsr.prove(model, images, couplings).refuted
    stream = next(c for c in couplings if c.name == "stem")
    short = Coupling("stem", stream.num_channels, tuple(m for m in stream.members if m.parameter != "project.weight"))
    proof = oicsr.prove(model, images, [short if c is stream else c for c in couplings])
    assert list(proof.refuted) == ["stem"] and "'stem' cannot lose channels" in proof.refuted["stem"]
    shuffled = tuple(
        oicsr.Member(m.parameter, m.dim, m.channels.flip(0), m.side, m.counts) if m.parameter == "b1.weight" else m
        for m in stream.members
    )
    wrong = Coupling("stem", stream.num_channels, shuffled)
    proof = oicsr.prove(model, images, [wrong if c is stream else c for c in couplings])
    assert list(proof.refuted) == ["stem"] and "an output changes" in proof.refuted["stem"]


def test_any_surgery_can_be_tried() -> None:
    """One that forgets to slice is found out by the shapes that no longer fit."""
    model = Chain()
    couplings = oicsr.find_couplings(model, IMAGES)

    def forgetful(network: nn.Module, plan: oicsr.PruningPlan) -> None:
        slice_module(network, [entry for entry in plan.slices if not entry.parameter.startswith("bn2")])

    proof = oicsr.prove(model, IMAGES, couplings, surgery=forgetful)
    assert list(proof.refuted) == ["conv2"] and "number in the model's code" in proof.refuted["conv2"]


@pytest.mark.parametrize(
    ("bad", "together", "expected"),
    [({3}, set(), {3}), ({0, 6}, set(), {0, 6}), (set(range(7)), set(), set(range(7))), (set(), {2, 5}, {5})],
)
def test_blame_is_found_by_halving(bad: set[int], together: set[int], expected: set[int]) -> None:
    couplings = [Coupling(str(i), 4, ()) for i in range(7)]

    def trial(some: Sequence[Coupling]) -> str | None:
        numbers = {int(coupling.name) for coupling in some}
        return "fails" if numbers & bad or (together and together <= numbers) else None

    assert {int(name) for name in blame(couplings, trial)} == expected


def test_what_is_kept_differs_between_couplings_of_one_width() -> None:
    couplings = [Coupling(str(i), 64, ()) for i in range(9)]
    kept = choose_kept(couplings, torch.Generator().manual_seed(0))
    assert len({len(ids) for ids in kept.values()}) == 9
    assert all(8 <= len(ids) <= 16 for ids in kept.values())
    kept = choose_kept([Coupling(str(i), 3, ()) for i in range(4)], torch.Generator().manual_seed(0))
    assert {len(ids) for ids in kept.values()} == {2}
    assert len(choose_kept([Coupling("a", 2, ())], torch.Generator())["a"]) == 1


def narrow(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1))


@pytest.mark.parametrize("width", [2, 3, 5])
def test_a_fault_of_one_channel_of_a_narrow_coupling_is_always_found(width: int) -> None:
    model = narrow(width)
    couplings = oicsr.find_couplings(model, IMAGES)
    name = next(coupling.name for coupling in couplings if coupling.num_channels == width)
    for channel in range(width):

        def faulty(network: nn.Module, plan: oicsr.PruningPlan, channel: int = channel) -> None:
            apply_plan(network, plan)
            if name in plan.kept and channel not in plan.kept[name]:
                next(network.parameters()).data.mul_(1.1)

        proof = oicsr.prove(model, IMAGES, couplings, surgery=faulty)
        assert "an output changes" in proof.refuted[name], channel


def test_a_proof_says_which_channels_went() -> None:
    model = narrow(3)
    couplings = oicsr.find_couplings(model, IMAGES)
    proof = oicsr.prove(model, IMAGES, couplings)
    assert not proof.refuted
    assert proof.removed.keys() == {coupling.name for coupling in couplings}
    assert all(proof.removed[c.name] == set(range(c.num_channels)) for c in couplings if c.num_channels <= 5)


def test_trials_leave_no_trace() -> None:
    model = Basic().train()
    model.an1.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state, default = torch.get_rng_state(), torch.get_default_dtype()
    oicsr.prove(model, torch.randn(2, 3, 8, 8), oicsr.find_couplings(model, IMAGES))
    torch.randn(2, 3, 8, 8)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training and not model.an1.training and torch.get_default_dtype() is default
    assert not torch.equal(state, torch.get_rng_state())  # the two calls of randn alone
    torch.set_rng_state(state)
    torch.randn(2, 3, 8, 8)
    torch.randn(2, 3, 8, 8)
    drawn = torch.get_rng_state()
    torch.set_rng_state(state)
    images = torch.randn(2, 3, 8, 8)
    oicsr.prove(model, images, oicsr.find_couplings(model, images))
    torch.randn(2, 3, 8, 8)
    assert torch.equal(drawn, torch.get_rng_state())


def test_zeros_are_taken_back() -> None:
    torch.manual_seed(0)
    model, images = Basic(), torch.randn(2, 3, 8, 8)
    couplings = oicsr.find_couplings(model, images, scope="all")
    bench = Bench(model, as_inputs(images), couplings)
    with bench.ready():
        assert bench.first_run() is None
        bench._restore()
        tensors = {name: tensor.clone() for name, tensor in bench._tensors.items()}
        assert not any((tensor == 0).any() for name, tensor in tensors.items() if "bias" in name or "weight" in name)
        assert all(bench.disagreement([coupling]) is None for coupling in couplings)
    bench._restore()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in bench._tensors.items())


def test_dead_blocks_hide_nothing() -> None:
    """A scale, a layer or inputs of zero are given other values: nothing would show behind them."""

    class Dead(Between):
        def __init__(self) -> None:
            super().__init__(by_hand)
            nn.init.zeros_(self.three.weight)
            nn.init.zeros_(self.two.weight)
            self.one.weight.data[:4] = 0

    with pytest.warns(oicsr.UnprunedChannelsWarning, match="'one'|mean"):
        couplings = oicsr.find_couplings(Dead(), IMAGES)
    assert [coupling.name for coupling in couplings] == ["two"]


class Deep(nn.Module):
    """What the first layer gives is divided by its width in evaluation mode; many layers follow."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Conv2d(3, 12, 3, padding=1), nn.Linear(12, 4)
        self.rest = nn.Sequential()
        for _ in range(24):
            self.rest.extend([nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.Sigmoid()])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.out(self.rest(x if self.training else x / x.shape[1]).mean((2, 3)))


def test_a_fault_far_from_the_outputs_is_not_lost_beside_what_later_layers_add() -> None:
    torch.manual_seed(0)
    with pytest.warns(oicsr.UnprunedChannelsWarning, match=r"'first' cannot lose channels: an output changes by \d.*"):
        couplings = oicsr.find_couplings(Deep(), torch.randn(2, 3, 8, 8))
    assert [coupling.name for coupling in couplings] == [f"rest.{3 * i}" for i in range(24)]


@pytest.mark.parametrize("size", [1.0, 1e-6])
def test_a_branch_of_small_weights_hides_nothing(size: float) -> None:
    """Before training, branches are often close to zero, and what they compute to what is beside them."""

    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.o = nn.Linear(6, 16, bias=False), nn.Linear(16, 6, bias=False), nn.Linear(6, 3)
            for layer in (self.a, self.b):
                nn.init.normal_(layer.weight, std=size)

        def forward(self, x: Tensor) -> Tensor:
            return self.o(x + self.b(self.a(x).relu() / self.a.out_features))

    torch.manual_seed(0)
    (coupling,) = oicsr.find_couplings(Branch(), torch.randn(4, 6))
    assert [(entry.parameter, entry.power) for entry in coupling.rescaled] == [("b.weight", 1.0)]


class Chaotic(nn.Module):
    """What comes out of the second layer goes through 30 steps, each of which doubles what rounding changed."""

    def __init__(self, faulty: bool) -> None:
        super().__init__()
        self.one, self.two, self.faulty = nn.Linear(8, 512), nn.Linear(512, 4), faulty

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x).relu()
        x = self.two(x * (1 + 0.01 * x.shape[1]) if self.faulty else x)  # sums of zeros are blocked in another way
        for _ in range(30):
            x = (1.9 * x).frac()
        return x


@pytest.mark.parametrize("faulty", [False, True])
def test_rounding_that_a_network_magnifies_is_no_fault(faulty: bool) -> None:
    torch.manual_seed(0)
    trace = oicsr.trace_couplings(Chaotic(faulty), torch.randn(2, 8))
    assert [coupling.name for coupling in trace.couplings] == ([] if faulty else ["one"])


def test_statistics_of_a_trial_are_those_of_what_comes_in() -> None:
    torch.manual_seed(0)
    model, images = Chain(), 50 + 20 * torch.randn(2, 3, 8, 8)
    bench = Bench(model, as_inputs(images), oicsr.find_couplings(model, images))
    largest: list[float] = []
    for norm in bench._model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.register_forward_hook(lambda module, args, output: largest.append(float(output.abs().max())))
    with torch.no_grad():
        assert bench.first_run() is None
    *measuring, first, second = largest
    assert len(measuring) == 2 and first < 10 and second < 10  # those of other statistics reach hundreds


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_networks_of_half_precision_are_proved_in_double(dtype: torch.dtype) -> None:
    model = Chain().to(dtype)
    couplings = oicsr.find_couplings(model, torch.randn(2, 3, 8, 8, dtype=dtype))
    assert [coupling.name for coupling in couplings] == ["conv1", "conv2"]
    assert model.conv1.weight.dtype is dtype


def test_code_that_casts_is_proved_in_double() -> None:
    model = Between(lambda net, x: (x.float() * torch.arange(2.0).sum() + torch.zeros(1)).to(torch.float32))
    trace = oicsr.trace_couplings(model, torch.randn(2, 3, 8, 8))
    assert [coupling.name for coupling in trace.couplings] == ["one", "two"] and not trace.untried


def test_code_that_knows_no_double_is_proved_in_its_own_precision() -> None:
    constant = torch.randn(8, 8, 1, 1)  # of float32, and not the module's to convert

    model = Between(
        lambda net, x: x + functional.conv2d(net.probe(x[:, :1]), constant)[:, :1], probe=nn.Conv2d(1, 8, 1)
    )
    trace = oicsr.trace_couplings(model, torch.randn(2, 3, 8, 8))
    assert "two" in {coupling.name for coupling in trace.couplings} and not trace.untried


def test_verify_can_be_chosen() -> None:
    model, images = INEXACT["added its width"], torch.randn(2, 3, 8, 8)
    for verify in ("shapes", "off"):
        couplings = oicsr.find_couplings(model, images, verify=verify)  # type: ignore[arg-type]
        assert [coupling.name for coupling in couplings] == ["one", "two"]
    with pytest.raises(ValueError, match="verify is 'perhaps'"):
        oicsr.find_couplings(model, images, verify="perhaps")  # type: ignore[arg-type]


def test_shapes_that_cannot_be_tried_are_said() -> None:
    model = Between(lambda net, x: x + x.new_tensor([float(x.detach().numel() and 1)]) + torch.ones(1))
    with pytest.warns(oicsr.UntriedWarning, match="does not run on the meta device"):
        oicsr.find_couplings(model, IMAGES, verify="shapes")


class InTraining(nn.Module):
    """Two convolutions; what is between them depends on the number of channels in training mode alone."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 3)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.one(x))
        return self.two(self.change(x) if self.training else x)


@pytest.mark.parametrize(
    "change",
    [lambda x: x / x.shape[1], lambda x: x * (16 / x.shape[1]) ** 0.5, lambda x: x - x.mean(1, keepdim=True)],
    ids=["divided by its width", "literal width", "centred"],
)
def test_a_width_that_matters_in_training_only_is_found(change: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    with pytest.warns(oicsr.UnprunedChannelsWarning, match="'one' cannot lose channels: in training mode an output"):
        assert not oicsr.find_couplings(InTraining(change), torch.randn(2, 3, 8, 8))


def test_noise_in_training_mode_costs_no_channels() -> None:
    torch.manual_seed(0)
    for change in (torch.rand_like, lambda x: x + torch.randn_like(x), lambda x: functional.dropout2d(x, 0.5)):
        couplings = oicsr.find_couplings(InTraining(change), torch.randn(2, 3, 8, 8))
        assert [coupling.name for coupling in couplings] == ["one"]


def test_large_images_are_thinned_out_in_training_mode_where_the_network_takes_that() -> None:
    seen = []

    def note(x: Tensor) -> Tensor:
        seen.append(x.shape[-1])
        return x

    images = torch.randn(2, 3, 128, 128)
    couplings = oicsr.find_couplings(InTraining(note), images)
    assert [coupling.name for coupling in couplings] == ["one"] and set(seen) == {32}

    def insist(x: Tensor) -> Tensor:
        if x.shape[-1] != 128:
            raise RuntimeError("only 128 pixels a side")
        return note(x)

    assert [coupling.name for coupling in oicsr.find_couplings(InTraining(insist), images)] == ["one"]
    assert set(seen) == {32, 128}


def test_nothing_to_compare_is_said() -> None:
    with pytest.warns(oicsr.UntriedWarning, match="its outputs are empty on the example inputs"):
        oicsr.find_couplings(Chain(), IMAGES[:0])
    with pytest.warns(oicsr.UntriedWarning, match="it is on the meta device, which holds no numbers"):
        couplings = oicsr.find_couplings(Chain().to("meta"), IMAGES.to("meta"))
    assert [coupling.name for coupling in couplings] == ["conv1", "conv2"]
