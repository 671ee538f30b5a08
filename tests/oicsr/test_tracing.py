"""Couplings: what belongs to what."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torchvision
from torch import Tensor, nn

import oicsr
from oicsr.proving.shapes import _ShapesOfNorms
from oicsr.selection import MacsModel
from tests.oicsr.networks import Basic, Chain, Mixed, drop_third, zero_channels

IMAGES = torch.zeros(2, 3, 8, 8)


def members_of(coupling: oicsr.Coupling) -> dict[tuple[str, int], tuple[str, list[int]]]:
    return {(m.parameter, m.dim): (m.side, m.channels.tolist()) for m in coupling.members}


def test_chain_has_hand_told_couplings() -> None:
    first, second = oicsr.find_couplings(Chain(), IMAGES)
    assert (first.name, first.num_channels) == ("conv1", 6)
    assert members_of(first) == {
        ("conv1.weight", 0): ("out", list(range(6))),
        **{(f"bn1.{name}", 0): ("norm", list(range(6))) for name in ("weight", "bias", "running_mean", "running_var")},
        ("conv2.weight", 1): ("in", list(range(6))),
    }
    assert members_of(second)["conv2.bias", 0] == ("out", list(range(8)))
    # a channel of the flattened map owns its 2 x 2 positions
    assert members_of(second)["fc.weight", 1] == ("in", [i for i in range(8) for _ in range(4)])


def test_consecutive_couplings_overlap() -> None:
    first, second = oicsr.find_couplings(Chain(), IMAGES)
    sides = {(c.name, m.dim): m.side for c in (first, second) for m in c.members if m.parameter == "conv2.weight"}
    assert sides == {("conv1", 1): "in", ("conv2", 0): "out"}


def test_biases_and_statistics_carry_no_energy() -> None:
    counting = {m.parameter for c in oicsr.find_couplings(Chain(), IMAGES) for m in c.members if m.counts}
    assert counting == {"conv1.weight", "conv2.weight", "fc.weight", "bn1.weight", "bn2.weight"}


def test_inner_scope_leaves_residual_streams() -> None:
    assert [c.name for c in oicsr.find_couplings(Basic(), IMAGES)] == ["a1", "b1"]
    reasons = oicsr.trace_couplings(Basic(), IMAGES).unpruned
    assert "residual stream" in reasons["stem"] and "residual stream" in reasons["project"]


def test_all_scope_joins_what_is_added() -> None:
    couplings = {c.name: c for c in oicsr.find_couplings(Basic(), IMAGES, scope="all")}
    assert list(couplings) == ["stem", "a1", "b1", "b2"] or list(couplings) == ["stem", "a1", "project", "b1"]
    stream = members_of(couplings["stem"])
    assert {key for key, (side, _) in stream.items() if side == "out"} == {("stem.weight", 0), ("a2.weight", 0)}
    assert {key for key, (side, _) in stream.items() if side == "in"} == {
        ("a1.weight", 1),
        ("b1.weight", 1),
        ("project.weight", 1),
    }


def test_resnet50_has_the_32_inner_widths_of_the_authors() -> None:
    model = torchvision.models.resnet50(weights=None)
    trace = oicsr.trace_couplings(model, torch.zeros(1, 3, 64, 64))
    blocks = [f"layer{stage}.{i}" for stage, count in enumerate((3, 4, 6, 3), 1) for i in range(count)]
    assert [c.name for c in trace.couplings] == [f"{block}.conv{i}" for block in blocks for i in (1, 2)]
    assert "conv1" in trace.unpruned and not (trace.unruled or trace.untried)  # nothing to warn of


def test_concatenation_shuffle_groups_and_gates_are_followed() -> None:
    couplings = {c.name: c for c in oicsr.find_couplings(Mixed(), IMAGES)}
    expand = members_of(couplings["expand"])
    assert couplings["expand"].num_channels == 6  # GroupNorm(6, 12): pairs of channels go together
    assert {key for key, (side, _) in expand.items() if side == "out"} >= {
        ("expand.weight", 0),
        ("depthwise.weight", 0),
        ("excite.weight", 0),
    }
    assert {key for key, (side, _) in expand.items() if side == "in"} == {
        ("squeeze.weight", 1),
        ("left.weight", 1),
        ("right.weight", 1),
    }
    left = members_of(couplings["left"])
    assert ("right.weight", 0) in left and ("grouped.weight", 0) in left and ("fc.weight", 1) in left


class Unruled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(torch.cumsum(self.one(x), 1))
        return self.three(x)


def test_operator_without_rule_leaves_its_channels_and_is_named() -> None:
    with pytest.warns(oicsr.UnprunedChannelsWarning, match=r"aten\.cumsum"):
        couplings = oicsr.find_couplings(Unruled(), IMAGES)
    assert [c.name for c in couplings] == ["two"]
    for call in (oicsr.find_couplings, partial(oicsr.prune, tolerance=0.5)):
        with pytest.warns(oicsr.UnprunedChannelsWarning) as seen:
            call(Unruled(), IMAGES)
        assert [warning.filename for warning in seen] == [__file__]
    assert "cumsum" in oicsr.trace_couplings(Unruled(), IMAGES).unpruned["one"]


class Rigid(nn.Module):
    """The width 4 is a number in the code: it cannot change."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1), nn.Linear(4 * 64, 5)
        self.three = nn.Conv2d(6, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.one(x).view(-1, 4 * 64)) + self.three(self.two(x)).mean((1, 2, 3), keepdim=True)[:, :, 0, 0]


def test_width_in_the_code_is_found_by_trial() -> None:
    with pytest.warns(oicsr.UnprunedChannelsWarning, match="number in the model's code"):
        couplings = oicsr.find_couplings(Rigid(), IMAGES)
    assert [c.name for c in couplings] == ["two"]


class Narrow(nn.Module):
    """The BatchNorm reads a number of channels that stands in the code, whatever the layer before gives."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.fc = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.one(x).expand(-1, 6, -1, -1)).mean((2, 3)))


def test_trials_check_the_width_of_batch_norms() -> None:
    """Trials take BatchNorm by its shapes alone, so they must compare them."""
    images = torch.zeros(2, 4, 3, 3, device="meta")
    norm = nn.BatchNorm2d(4, device="meta")
    with _ShapesOfNorms():
        assert norm(images).shape == images.shape
        with pytest.raises(RuntimeError, match="has 4 channels and reads 3"):
            norm(images[:, :3])
    with pytest.warns(oicsr.UnprunedChannelsWarning, match="number in the model's code"):
        assert oicsr.find_couplings(Narrow(), IMAGES) == []


class Shared(nn.Module):
    """One convolution used twice: what goes in must fit what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.twice, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.twice(torch.relu(self.twice(self.one(x)))).mean((2, 3)))


def test_shared_weight_ties_its_two_uses() -> None:
    (coupling,) = oicsr.find_couplings(Shared(), IMAGES)
    assert {(m.parameter, m.dim) for m in coupling.members if m.counts} == {
        ("one.weight", 0),
        ("twice.weight", 0),
        ("twice.weight", 1),
        ("fc.weight", 1),
    }


class Tied(nn.Module):
    """Two layers that share one parameter, which the exporter calls by the second one's name."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three, self.fc = (nn.Linear(n, 8) for n in (12, 8, 8, 8))
        self.three.weight = self.two.weight

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.one, self.two, self.three):
            x = torch.relu(layer(x))
        return self.fc(x)


def test_tied_parameter_goes_by_its_first_name_and_stays_tied() -> None:
    torch.manual_seed(0)
    model, inputs = Tied().double(), torch.randn(2, 12, dtype=torch.float64)
    (coupling,) = oicsr.find_couplings(model, inputs)
    assert "two.weight" in {m.parameter for m in coupling.members}
    assert "three.weight" not in {m.parameter for m in coupling.members}
    kept = {"one": [0, 2, 3, 7]}
    zero_channels(model, [coupling], kept, "in")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    small = oicsr.remove_channels(model, oicsr.PruningPlan.from_kept([coupling], kept), optimizer=optimizer)
    assert small.three.weight is small.two.weight and small.two.weight.shape == (4, 4)
    assert torch.allclose(small(inputs), model(inputs), rtol=1e-9, atol=1e-12)
    cost = MacsModel([coupling], model, inputs)
    stays = torch.tensor([i in kept["one"] for i in range(8)])
    assert cost.macs(stays) == oicsr.count_macs(small, inputs) == 12 * 4 + 2 * 4 * 4 + 4 * 8


class Cut(nn.Module):
    """Eight channels, cut in the middle or regrouped, by a number in the code or by their width."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.one, self.two, self.three = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        width = x.shape[1] if self.kind.endswith("width") else 8
        if self.kind.startswith("halves"):
            x = torch.cat([x[:, width // 2 :], torch.relu(x[:, : width // 2])], 1)
        elif self.kind.startswith("split"):
            left, right = x.split(width // 2, 1)
            x = torch.cat([right, torch.relu(left)], 1)
        elif self.kind == "groups":  # of two, as many as there are
            x = x.view(x.shape[0], -1, 2, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
        else:  # two groups, as wide as they are
            x = x.view(x.shape[0], 2, -1, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
        return self.three(torch.relu(self.two(x)))


@pytest.mark.parametrize("kind", ["halves", "split"])
def test_cut_at_a_number_in_the_code_is_left(kind: str) -> None:
    """The shapes would fit after a removal, but other channels would lie before the cut."""
    with pytest.warns(oicsr.UnprunedChannelsWarning, match="'one' .*number in the model's code"):
        couplings = oicsr.find_couplings(Cut(kind), IMAGES)
    assert [c.name for c in couplings] == ["two"]


@pytest.mark.parametrize("kind", ["halves by width", "split by width", "groups by width", "groups"])
def test_cut_at_half_the_width_is_followed(kind: str) -> None:
    torch.manual_seed(0)
    model, images = Cut(kind).double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    couplings = oicsr.find_couplings(model, images)
    assert [(c.name, c.num_channels) for c in couplings] == [("one", 4), ("two", 4)]
    kept = {"one": [0, 3], "two": [1, 2, 3]}
    zero_channels(model, couplings, kept, "in")
    small = oicsr.remove_channels(model, oicsr.PruningPlan.from_kept(couplings, kept))
    assert small.one.out_channels == 4
    assert torch.allclose(small(images), model(images), rtol=1e-9, atol=1e-12)


class Odd(nn.Module):
    """Layers whose weights are not plain parameters of a module that the surgery knows."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.one, self.two, self.three = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 2, 1)
        if kind == "weight norm":
            self.one = nn.utils.parametrizations.weight_norm(self.one)
        elif kind == "list":
            self.hidden = [nn.Conv2d(8, 8, 1)]  # not registered: its weight is no parameter of the model
        elif kind == "functional":
            self.weight, self.depthwise = nn.Parameter(torch.randn(8, 8, 1, 1)), nn.Parameter(torch.randn(8, 1, 3, 3))
            self.scale = nn.Parameter(torch.randn(8, 1, 1))
            self.register_buffer("shift", torch.randn(8, 1, 1))
        elif kind == "no affine":
            self.norm = nn.BatchNorm2d(8, affine=False)
        elif kind == "transposed":
            self.up, self.two = nn.ConvTranspose2d(8, 6, 2, stride=2), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        if self.kind == "list":
            x = self.hidden[0](x)
        elif self.kind == "functional":
            x = nn.functional.conv2d(x, self.weight)
            x = nn.functional.conv2d(x, self.depthwise, groups=x.shape[1]) * self.scale - self.shift
        elif self.kind == "no affine":
            x = self.norm(x)
        elif self.kind == "transposed":
            x = self.up(x)
        return self.three(torch.relu(self.two(torch.relu(x))))


def test_layers_with_weights_that_are_no_parameters_are_left_and_named() -> None:
    with (
        pytest.warns(oicsr.UntriedWarning, match="of Odd holds modules .* in a plain list"),
        pytest.warns(oicsr.UnprunedChannelsWarning, match="has a weight that is computed, not a parameter"),
    ):
        couplings = oicsr.find_couplings(Odd("list"), IMAGES)
    assert [c.name for c in couplings] == ["two"]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("functional", ["one", "weight", "two"]),
        ("weight norm", ["one", "two"]),
        ("no affine", ["one", "two"]),
        ("transposed", ["one", "up", "two"]),
    ],
)
def test_odd_layers_are_pruned_exactly(kind: str, names: list[str]) -> None:
    torch.manual_seed(0)
    model, images = Odd(kind).double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    couplings = oicsr.find_couplings(model, images)
    assert [c.name for c in couplings] == names
    kept = drop_third(couplings)
    zero_channels(model, couplings, kept, "in")
    small = oicsr.remove_channels(model, oicsr.PruningPlan.from_kept(couplings, kept))
    assert torch.allclose(small(images), model(images), rtol=1e-9, atol=1e-12)
    if kind == "no affine":
        assert small.norm.num_features == len(small.norm.running_mean) == 6


def test_channels_that_a_layer_norm_runs_over_stay() -> None:
    """Its statistics run over all channels, so nothing exact exists."""
    model = torchvision.models.convnext_tiny(weights=None, num_classes=10)
    with pytest.warns(oicsr.UnprunedChannelsWarning, match="layer_norm.* normalises over the channels"):
        couplings = oicsr.find_couplings(model, torch.zeros(1, 3, 32, 32), scope="all")
    assert len(couplings) == 18 and all(".block.3" in c.name for c in couplings)  # the inner widths of the blocks


def test_channels_under_a_layer_norm_go_where_shapes_alone_count() -> None:
    """The pruned network runs, with other outputs."""
    model = torchvision.models.convnext_tiny(weights=None, num_classes=10).eval()
    images = torch.zeros(1, 3, 32, 32)
    couplings = oicsr.find_couplings(model, images, scope="all", verify="shapes")
    small = oicsr.remove_channels(model, oicsr.PruningPlan.from_kept(couplings, drop_third(couplings)))
    assert small(images).shape == (1, 10)
    assert small.features[0][1].normalized_shape == (small.features[0][0].out_channels,) == (64,)


class PaddedShortcut(nn.Module):
    """The option A shortcut: four channels, padded with one constant before them and three behind."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        return self.fc(self.two(x) + nn.functional.pad(x, (0, 0, 0, 0, 1, 3)))


def test_zero_padding_shifts_the_channels_and_fixes_what_it_adds() -> None:
    (stream,) = oicsr.find_couplings(PaddedShortcut(), IMAGES, scope="all")
    assert members_of(stream)["one.weight", 0] == ("out", [0, 1, 2, 3])
    assert members_of(stream)["two.weight", 0] == ("out", [-1, 0, 1, 2, 3, -1, -1, -1])
    assert members_of(stream)["fc.weight", 1] == ("in", [-1, 0, 1, 2, 3, -1, -1, -1])
    assert oicsr.find_couplings(PaddedShortcut(), IMAGES) == []


class WholeLayerInOneGroup(nn.Module):
    """Three groups of four channels behind a concatenation: the second group is all of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(3, 16, 1)
        self.norm, self.fc = nn.GroupNorm(6, 24), nn.Conv2d(24, 3, 1)
        self.tie = nn.Conv2d(24, 24, 1, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.tie(self.norm(torch.cat([self.one(x), self.two(x), self.three(x)], 1))))


def test_no_layer_can_lose_every_channel() -> None:
    couplings = oicsr.find_couplings(WholeLayerInOneGroup(), IMAGES, scope="all")
    for coupling in couplings:
        for channel in range(coupling.num_channels):
            plan = oicsr.PruningPlan.from_kept(couplings, {coupling.name: [channel]})
            assert all(entry.kept for entry in plan.slices)
            small = oicsr.remove_channels(WholeLayerInOneGroup(), plan)
            assert small(IMAGES).shape == (2, 3, 8, 8)
    reasons = oicsr.trace_couplings(WholeLayerInOneGroup(), IMAGES, scope="all").unpruned
    assert "needs to keep a channel" in reasons["one"]


class Context(nn.Module):
    """Global context: pixels weighted by one map of attention, a product of matrices, gate the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.attention = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 1, 1)
        self.gate, self.fc = nn.Conv2d(8, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        weights = self.attention(x).flatten(2).softmax(-1).unsqueeze(3)  # (batch, 1, pixels, 1)
        context = (x.flatten(2).unsqueeze(1) @ weights).view(len(x), -1, 1, 1)
        return self.fc((x * torch.sigmoid(self.gate(context))).mean((2, 3)))


def test_channels_that_are_rows_of_a_product_are_followed() -> None:
    (coupling,) = oicsr.find_couplings(Context(), IMAGES)
    assert coupling.name == "conv" and members_of(coupling).keys() == {
        ("conv.weight", 0),
        ("conv.bias", 0),
        ("attention.weight", 1),
        ("gate.weight", 0),
        ("gate.bias", 0),
        ("gate.weight", 1),
        ("fc.weight", 1),
    }


class Products(nn.Module):
    """Products of an activation with itself: summed over the channels, or with channels on both axes."""

    def __init__(self, over_channels: bool) -> None:
        super().__init__()
        self.conv, self.over_channels = nn.Conv2d(3, 8, 3), over_channels

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).flatten(2)
        return x.transpose(1, 2) @ x if self.over_channels else x @ x.transpose(1, 2)


def test_products_summed_over_channels_lose_them() -> None:
    (coupling,) = oicsr.find_couplings(Products(over_channels=True), IMAGES)
    assert coupling.num_channels == 8 and members_of(coupling).keys() == {("conv.weight", 0), ("conv.bias", 0)}


def test_products_with_channels_on_both_axes_leave_them() -> None:
    with pytest.warns(oicsr.UnprunedChannelsWarning, match=r"aten\.matmul.* whose channels lie on different axes"):
        assert oicsr.find_couplings(Products(over_channels=False), IMAGES) == []


@pytest.mark.parametrize("training", [True, False])
def test_tracing_leaves_the_model_as_it_was(training: bool) -> None:
    model = Chain().train(training)
    model.bn1.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    oicsr.find_couplings(model, IMAGES)
    assert model.training is training and not model.bn1.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_untraceable_model_and_unknown_scope_are_clear_errors() -> None:
    with pytest.raises(ValueError, match=r"Branching cannot be traced by torch\.export"):
        oicsr.find_couplings(Branching(), IMAGES)
    with pytest.raises(ValueError, match="scope is 'everything'"):
        oicsr.find_couplings(Chain(), IMAGES, scope="everything")  # type: ignore[arg-type]


class Force(nn.Module):
    """The derivative of an energy, as of interatomic potentials."""

    def __init__(self, *, functional: bool) -> None:
        super().__init__()
        self.energy, self.functional = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1)), functional

    def forward(self, x: Tensor) -> Tensor:
        if self.functional:
            return torch.func.grad(lambda value: self.energy(value).sum())(x)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self.energy(x).sum(), x)[0]


@pytest.mark.parametrize("functional", [False, True])
def test_a_forward_that_takes_derivatives_is_refused_with_what_to_do(functional: bool) -> None:
    model, x = Force(functional=functional), torch.randn(5, 6)
    with pytest.raises(
        ValueError, match=r"line \d+ of test_tracing.py, `return torch\..*its forward takes derivatives"
    ):
        oicsr.find_couplings(model, x)
    model.energy, before = oicsr.prune(model.energy, x, macs_kept=0.5).model, model(x)
    assert model.energy[0].out_features < 16 and model(x).shape == before.shape


def test_a_step_of_learning_in_forward_is_refused_with_what_to_do() -> None:
    class Inner(nn.Module):
        """Takes a step of its own head's parameters first (MAML)."""

        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(3, 12), nn.Linear(12, 1)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            values, own = self.embed(x).relu(), dict(self.head.named_parameters())
            step = torch.func.grad(lambda p: (torch.func.functional_call(self.head, p, (values,)) - y).square().mean())
            stepped = {name: own[name] - 0.1 * slope for name, slope in step(own).items()}
            found: Tensor = torch.func.functional_call(self.head, stepped, (values,))
            return found

    with pytest.raises(ValueError, match=r"Inner cannot be traced by torch\.export: its forward takes derivatives"):
        oicsr.find_couplings(Inner(), (torch.randn(4, 3), torch.randn(4, 1)))


def test_a_function_without_a_rule_is_named_without_its_address() -> None:
    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Parameter(torch.randn(4, 6, 8)), nn.Parameter(torch.randn(4, 8, 3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.func.vmap(lambda w, v, rows: (rows @ w).relu() @ v)(self.first, self.second, x)

    with pytest.warns(oicsr.UnprunedChannelsWarning, match="operator _add_batch_dim in module") as caught:
        assert not oicsr.find_couplings(Stacked(), torch.randn(4, 5, 6))
    assert "0x" not in str(caught[0].message)
