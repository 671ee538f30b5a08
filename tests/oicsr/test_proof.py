"""The numeric proof: what a trace cannot see never ends in a wrong network."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import oicsr
from oicsr import Coupling
from tests.oicsr.networks import Basic, Chain, drop_third, randomize_norms

IMAGES = torch.zeros(2, 3, 8, 8)


class Between(nn.Module):
    """conv -> something of eight channels -> conv: the something is what is tried."""

    def __init__(self, middle: Callable[[nn.Module, Tensor], Tensor], width: int = 8, **modules: nn.Module) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 6, 3)
        self.three = nn.Conv2d(6, 4, 1)
        self.middle = middle
        self.scale, self.shift = nn.Parameter(torch.rand(width) + 0.5), nn.Parameter(torch.rand(width))
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.three(torch.relu(self.two(torch.relu(self.middle(self, self.one(x))))))


def layer_norm_over_channels(net: nn.Module, x: Tensor) -> Tensor:
    return functional.layer_norm(x.movedim(1, -1), (x.shape[1],), net.scale, net.shift).movedim(-1, 1)


def by_hand(net: nn.Module, x: Tensor) -> Tensor:
    return x / x.square().mean(1, keepdim=True).add(1e-5).sqrt()


# what depends on the number of channels, or on a number in the code
INEXACT: dict[str, Between] = {
    "group norm with its groups in an attribute": Between(
        lambda net, x: functional.group_norm(x, 2, net.scale, net.shift), width=16
    ),
    "group norm without parameters": Between(lambda net, x: functional.group_norm(x, 4)),
    "layer norm": Between(layer_norm_over_channels),
    "layer norm without parameters": Between(
        lambda net, x: functional.layer_norm(x.movedim(1, -1), (x.shape[1],)).movedim(-1, 1)
    ),
    "root mean square by hand": Between(by_hand),
    "added its width": Between(lambda net, x: x + net.one.out_channels),
    "cut at a number": Between(lambda net, x: torch.cat([x[:, 4:], x[:, :4].sigmoid()], 1)),
    "a one-dimensional pool over the features": Between(
        lambda net, x: functional.max_pool1d(x.movedim(1, -1).flatten(0, 2), 3, 1, 1).reshape(
            x.shape[0], *x.shape[2:], x.shape[1]
        ).movedim(-1, 1)
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", INEXACT)
def test_what_depends_on_the_number_of_channels_is_left_and_named(kind: str) -> None:
    torch.manual_seed(0)
    with pytest.warns(oicsr.UnprunedChannelsWarning) as caught:
        couplings = oicsr.find_couplings(INEXACT[kind], torch.randn(2, 3, 8, 8))
    assert [coupling.name for coupling in couplings] == ["two"]
    assert any("'one'" in str(warning.message) or "module" in str(warning.message) for warning in caught)
    reasons = oicsr.trace_couplings(INEXACT[kind], torch.randn(2, 3, 8, 8)).unpruned
    assert reasons["one"]


MENDED: dict[str, Between] = {
    "GroupNorm without scale": Between(lambda net, x: net.norm(x), norm=nn.GroupNorm(4, 8, affine=False)),
    "divided by its own width": Between(lambda net, x: x / math.sqrt(net.two.in_channels)),
    "divided by the width of the tensor": Between(lambda net, x: x / x.shape[1]),
    "multiplied by a power of its width": Between(lambda net, x: x * net.two.in_channels**-0.25),
}


@pytest.mark.parametrize("kind", MENDED)
def test_what_follows_the_number_of_channels_goes_exactly(kind: str) -> None:
    check_right_or_refused(MENDED[kind], torch.randn(2, 3, 8, 8), {"one", "two"})
    couplings = oicsr.find_couplings(MENDED[kind], torch.randn(2, 3, 8, 8, dtype=torch.float64))
    assert [coupling.name for coupling in couplings] == ["one", "two"]
    assert bool(couplings[0].attributes) != bool(couplings[0].rescaled)


class Unbatched(nn.Module):
    """Takes one image without a batch, as `nn.Conv2d` allows: channels lie on the first axis."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, width, 3, padding=1), nn.Linear(width * size * size, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv(x)).flatten())


class Normed(nn.Conv2d):
    """Divides each filter by its length, which is zero where the filter goes."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight / self.weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1), self.bias)


class Fourth(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.shape[1] ** 0.3


@pytest.mark.parametrize("norm", [nn.Identity, nn.BatchNorm2d])
@pytest.mark.parametrize("layer", [nn.Conv2d, Normed])
def test_statistics_of_what_is_divided_by_zero_do_not_end_the_proof(
    layer: type[nn.Conv2d], norm: type[nn.Module]
) -> None:
    torch.manual_seed(0)
    first, last = nn.Conv2d(3, 8, 3), nn.Conv2d(12, 4, 1)
    model = nn.Sequential(first, nn.ReLU(), layer(8, 12, 3), norm(12), nn.ReLU(), Fourth(), last)
    with pytest.warns(oicsr.UnprunedChannelsWarning, match="'2' cannot lose channels: an output changes"):
        found = oicsr.find_couplings(model, torch.randn(2, 3, 8, 8))
    assert [coupling.name for coupling in found] == ["0"]


@pytest.mark.parametrize(("width", "size"), [(8, 8), (8, 6), (6, 8)])
def test_unbatched_inputs_end_in_the_right_network_or_a_refusal(width: int, size: int) -> None:
    check_right_or_refused(Unbatched(width, size), torch.randn(3, size, size), {"conv"})


class TiedAutoencoder(nn.Module):
    """The decoder is the encoder's weight, transposed; what it rebuilds is the output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.encoder = nn.Conv2d(3, 12, 3), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        features = torch.relu(self.conv(x)).mean((2, 3))
        return functional.linear(torch.relu(self.encoder(features)), self.encoder.weight.t())


class TwoRoles(nn.Module):
    """One parameter is a weight, and is also added to an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.two(torch.relu(self.one(x))))
        return self.out(x + self.two.weight.sum(1))


class ComputedScale(nn.BatchNorm2d):
    """The scale is zero-centred."""

    def forward(self, x: Tensor) -> Tensor:
        statistics = self.running_mean, self.running_var
        return functional.batch_norm(x, *statistics, 1 + self.weight, self.bias, self.training, 0.1, self.eps)


def check_right_or_refused(model: nn.Module, inputs: Tensor, layers: set[str]) -> None:
    """Removing channels of zeros changes nothing, or the layers stay with a warning that names a reason."""
    torch.manual_seed(0)
    model = randomize_norms(model).double().eval()
    inputs = inputs.double()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", oicsr.UnprunedChannelsWarning)
        couplings = oicsr.find_couplings(model, inputs, scope="all")
    missing = layers - {coupling.name for coupling in couplings}
    assert not missing or caught
    kept = drop_third(couplings)
    zeroed = zero_everything(model, couplings, kept)
    small = oicsr.remove_channels(zeroed, oicsr.PruningPlan.from_kept(couplings, kept))
    with torch.no_grad():
        before, after = zeroed(inputs), small(inputs)
    assert before.shape == after.shape
    assert torch.allclose(before, after, rtol=1e-9, atol=1e-9 * float(before.abs().max()))


@torch.no_grad()
def zero_everything(model: nn.Module, couplings: Sequence[Coupling], kept: dict[str, list[int]]) -> nn.Module:
    zeroed = copy.deepcopy(model)
    tensors = {**dict(zeroed.named_parameters()), **dict(zeroed.named_buffers())}
    for coupling in couplings:
        gone = torch.tensor(sorted(set(range(coupling.num_channels)) - set(kept[coupling.name])))
        for member in coupling.members:
            index = torch.isin(member.channels, gone).nonzero().flatten()
            tensors[member.parameter].index_fill_(member.dim, index, 0)
    return zeroed


def test_a_tied_weight_at_the_output_is_not_pruned() -> None:
    torch.manual_seed(0)  # with other weights all of the encoder's six units may be off, which is another warning
    check_right_or_refused(TiedAutoencoder(), torch.randn(2, 3, 8, 8), {"conv", "encoder"})
    with pytest.warns(oicsr.UnprunedChannelsWarning, match="is read by 'encoder.weight', which rebuilds it"):
        couplings = oicsr.find_couplings(TiedAutoencoder(), IMAGES)
    assert [coupling.name for coupling in couplings] == ["encoder"]


def test_a_parameter_in_two_roles_is_right_or_refused() -> None:
    check_right_or_refused(TwoRoles(), torch.randn(4, 8), {"one", "two"})


def test_a_computed_scale_is_right_or_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 12, 3), ComputedScale(12), nn.ReLU(), nn.Conv2d(12, 4, 3))
    check_right_or_refused(model, torch.randn(2, 3, 8, 8), {"0"})


class JoinedInTraining(nn.Module):
    """Two branches that are concatenated in evaluation mode and added up in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 3)
        self.both, self.one = nn.Conv2d(12, 4, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x), self.right(x)
        if self.training:
            return self.one(left + right)
        return self.both(torch.cat([left, right], 1)) + self.one(left)


def test_a_join_that_exists_in_training_only_is_found() -> None:
    with pytest.warns(oicsr.UnprunedChannelsWarning, match="training mode"):
        couplings = oicsr.find_couplings(JoinedInTraining(), torch.randn(2, 3, 8, 8))
    assert len(couplings) <= 1
    small = JoinedInTraining()
    if couplings:
        small = oicsr.remove_channels(small, oicsr.PruningPlan.from_kept(couplings, drop_third(couplings)))
    assert small.train()(IMAGES).shape == (2, 4, 6, 6)


def test_a_training_mode_that_needs_targets_is_said_and_takes_nothing_away() -> None:
    class NeedsTargets(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.out, self.temperature = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1), nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
            x = self.out(torch.relu(self.one(x))).mean((2, 3))
            if not self.training:
                return x
            if targets is None:
                raise ValueError("targets are needed in training mode")
            return functional.cross_entropy(x / self.temperature, targets)

    with pytest.warns(oicsr.UntriedWarning, match=r"targets are needed in training mode.*'temperature'"):
        couplings = oicsr.find_couplings(NeedsTargets(), IMAGES)
    assert [coupling.name for coupling in couplings] == ["one"]


def test_random_outputs_and_outputs_without_tensors_are_said() -> None:
    class Noisy(Chain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * (1 + torch.rand(len(x), 1, 1, 1)))

    assert oicsr.find_couplings(Noisy(), torch.randn(2, 3, 8, 8))  # the same noise on both sides

    class NoisyInside(Chain):
        def forward(self, x: Tensor) -> Tensor:
            x = self.bn1(self.conv1(x))
            x = self.pool(self.bn2(self.conv2(x * (1 + torch.randperm(x.shape[1]).double()[:3].mean()))))
            return self.fc(x.flatten(1))

    trace = oicsr.trace_couplings(NoisyInside(), torch.randn(2, 3, 8, 8))
    assert any("random" in reason for reason in trace.untried)


class Uncopyable(Chain):
    def __deepcopy__(self, memo: object) -> nn.Module:
        return self


def test_a_network_that_is_its_own_copy_is_refused_unchanged() -> None:
    model = Uncopyable()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"cannot be copied.*the original itself"):
        oicsr.find_couplings(model, IMAGES)
    plan = oicsr.PruningPlan.from_kept(oicsr.find_couplings(Chain(), IMAGES), {"conv1": [0]})
    with pytest.raises(ValueError, match=r"cannot be copied.*the original itself"):
        oicsr.remove_channels(model, plan)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


HIDDEN: list[nn.Module] = []


class ReadsAnother(nn.Module):
    """A forward that reaches for an object which no copy can follow, as soon as it does not run in the exporter."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        network = self if torch.compiler.is_exporting() else HIDDEN[-1]
        return network.two(torch.relu(network.one(x)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_copy_that_runs_the_original_is_seen(dtype: torch.dtype) -> None:
    """Such a copy gives the original's outputs: that nothing changes where channels go proves nothing."""
    model = ReadsAnother().to(dtype)
    HIDDEN.append(model)
    with pytest.warns(oicsr.UnprunedChannelsWarning, match="'one' .*still reads 'one.weight' of the original"):
        assert oicsr.find_couplings(model, IMAGES.to(dtype)) == []


def test_without_zeroing_an_honest_copy_gives_other_outputs() -> None:
    torch.manual_seed(0)
    model, images = randomize_norms(Basic()).eval(), torch.randn(2, 3, 8, 8)
    couplings = oicsr.find_couplings(model, images, scope="all")
    small = oicsr.remove_channels(model, oicsr.PruningPlan.from_kept(couplings, drop_third(couplings)))
    assert not torch.allclose(small(images), model(images), atol=1e-3)


@pytest.mark.parametrize("fill", [-10.0, -1e9, torch.finfo(torch.float32).min, -math.inf])
def test_what_a_mask_sets_does_not_hide_what_changes_beside_it(fill: float) -> None:
    """A policy whose logits are masked; its features are halved where their number divides by eight."""

    class Policy(nn.Module):
        """Two layers, and logits of which one is not allowed."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.out = nn.Linear(6, 16), nn.Linear(16, 24), nn.Linear(24, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.second(self.first(x).relu()).relu()
            logits: Tensor = self.out(x * (0.5 if x.shape[-1] % 8 == 0 else 1.0))
            return logits.masked_fill(torch.arange(5) == 4, fill)

    torch.manual_seed(0)
    with pytest.warns(oicsr.UnprunedChannelsWarning, match="'second' cannot lose channels: an output changes by"):
        couplings = oicsr.find_couplings(Policy(), torch.randn(3, 6))
    assert [coupling.name for coupling in couplings] == ["first"]
