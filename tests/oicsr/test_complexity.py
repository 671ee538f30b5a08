"""MACs and parameters against closed forms and published values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import oicsr
from oicsr import complexity
from oicsr.contractions import chain_macs, is_plain, plain_steps, tensordot_axes, tensordot_equation
from tests.oicsr.networks import Chain


def test_golden_resnet50() -> None:
    model = torchvision.models.resnet50(weights=None)
    assert oicsr.count_macs(model, torch.zeros(1, 3, 224, 224)) == 4_089_184_256
    assert oicsr.count_params(model) == 25_557_032


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Conv2d(4, 6, 3, padding=1), (4, 8, 8), 8 * 8 * 6 * 4 * 9),
        (nn.Conv2d(4, 6, 3, stride=2, bias=False), (4, 9, 9), 4 * 4 * 6 * 4 * 9),
        (nn.Conv2d(4, 8, 3, padding=1, groups=4), (4, 8, 8), 8 * 8 * 8 * 1 * 9),
        (nn.Conv1d(2, 3, 5), (2, 9), 5 * 3 * 2 * 5),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (4, 8, 8), 8 * 8 * 4 * 6 * 4),
        (nn.Linear(7, 5), (7,), 35),
        (nn.Linear(7, 5), (3, 7), 3 * 35),
        (nn.BatchNorm2d(4), (4, 8, 8), 0),
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_closed_forms_for_any_batch(layer: nn.Module, shape: tuple[int, ...], expected: int, batch: int) -> None:
    model = nn.Sequential(layer)
    assert oicsr.count_macs(model, torch.zeros(batch, *shape)) == expected


def test_shared_layer_counts_each_time() -> None:
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    assert oicsr.count_macs(model, torch.zeros(1, 4)) == 32
    assert oicsr.count_params(model) == 20


def test_counting_leaves_mode_and_statistics() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    oicsr.count_macs(model, torch.randn(2, 3, 4, 4))
    assert model.training and model[1].num_batches_tracked.item() == 0


def test_empty_batch_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match="at least one input"):
        oicsr.count_macs(nn.Linear(2, 2), torch.zeros(0, 2))


class _LastStep(nn.Module):
    """`(steps, batch, 6)` to `(batch, 3)`: the batch lies on axis 1."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.out = nn.LSTM(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.recurrent(x)[0][-1])


class _Packed(nn.LSTM):
    """Sequences that are packed, all of one length."""

    def __init__(self) -> None:
        super().__init__(6, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        lengths = torch.full((x.shape[0],), x.shape[1])
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        return super().forward(packed)[0].data  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_the_batch_of_a_recurrence_need_not_lie_on_axis_0(batch: int) -> None:
    each = 5 * 4 * (8 * 6 + 8 * 8) + 8 * 3  # five steps of four gates
    assert oicsr.count_macs(_LastStep(), torch.zeros(5, batch, 6)) == each
    assert oicsr.count_macs(nn.LSTM(6, 8), torch.zeros(5, batch, 6)) == each - 8 * 3
    assert oicsr.count_macs(nn.GRU(6, 8, batch_first=True), torch.zeros(batch, 5, 6)) == 3 * (each - 8 * 3) // 4
    assert oicsr.count_macs(_Packed(), torch.zeros(batch, 5, 6)) == each - 8 * 3
    assert oicsr.count_macs(nn.LSTMCell(6, 8), torch.zeros(batch, 6)) == (each - 8 * 3) // 5


class _Queries(nn.Module):
    """Nine queries without a batch, and images with one: what the queries alone cost is counted once."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.conv = nn.Linear(6, 8), nn.Linear(8, 2), nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, queries: Tensor, images: Tensor) -> Tensor:
        return self.last(self.first(queries).mean(0)) + self.conv(images).sum((1, 2, 3))[:, None]


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_an_input_without_a_batch_that_the_first_layer_reads(batch: int) -> None:
    inputs = torch.zeros(9, 6), torch.zeros(batch, 3, 8, 8)
    assert oicsr.count_macs(_Queries(), inputs) == 9 * 6 * 8 + 8 * 2 + 64 * 4 * 27


class _Frames(nn.Module):
    """`(batch, frames, 3, 8, 8)`: frames are put into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Chain()

    def forward(self, clips: Tensor) -> Tensor:
        return self.network(clips.flatten(0, 1)).unflatten(0, clips.shape[:2]).mean(1)


def test_frames_count_one_by_one() -> None:
    once = oicsr.count_macs(Chain(), torch.zeros(1, 3, 8, 8))
    for batch in (1, 2, 3):
        assert oicsr.count_macs(_Frames(), torch.zeros(batch, 4, 3, 8, 8)) == 4 * once


class _Calls(nn.Module):
    """One call, with weights to choose from."""

    def __init__(self, call: Callable[[_Calls, Tensor], Tensor]) -> None:
        super().__init__()
        self.square, self.kernel = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(6, 8, 3))
        self.cube, self.call = nn.Parameter(torch.randn(4, 8, 8)), call

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, 5, 8)`."""
        return self.call(self, x)


CALLS: dict[str, tuple[Callable[[_Calls, Tensor], Tensor], int]] = {
    "tensordot with a weight": (lambda m, x: torch.tensordot(x, m.square, 1), 5 * 64),
    "tensordot of activations": (lambda m, x: torch.tensordot(x[0], x[0], dims=([1], [1])), 25 * 8),
    "inner": (lambda m, x: torch.inner(x, m.square), 5 * 64),
    "a matrix and a vector": (lambda m, x: m.square.mv(x[0, 0]), 64),
    "linalg": (lambda m, x: torch.linalg.matmul(x, m.square), 5 * 64),
    "a chain": (lambda m, x: torch.linalg.multi_dot([x[0], m.square, m.square[:, :2]]), 64 * 2 + 5 * 8 * 2),
    "bilinear": (lambda m, x: functional.bilinear(x, x, m.cube), 5 * 4 * 64),
    "an ellipsis": (lambda m, x: torch.einsum("...c,dc->...d", x, m.square), 5 * 64),
    "an ellipsis of activations": (lambda m, x: torch.einsum("...c,...c->...", x, x), 5 * 8),
    "no arrow": (lambda m, x: torch.einsum("btc,cd", x, m.square), 5 * 64),
    "numbers for letters": (lambda m, x: torch.einsum(x, [0, 1, 2], m.square, [2, 3], [0, 1, 3]), 5 * 64),
    "three factors": (lambda m, x: torch.einsum("btc,cd,de->bte", x, m.square, m.square), 2 * 5 * 64),
    "an operator": (lambda m, x: torch.ops.aten.linear.default(x, m.square), 5 * 64),
    "an operator without its overload": (lambda m, x: torch.ops.aten.conv1d(x.mT, m.kernel), 3 * 6 * 8 * 3),
    "a convolution of any rank": (
        lambda m, x: torch.ops.aten.convolution(x.mT, m.kernel, None, [1], [0], [1], False, [0], 1),
        3 * 6 * 8 * 3,
    ),
    "a transposed convolution of any rank": (
        lambda m, x: torch.convolution(x.mT, m.kernel.transpose(0, 1), None, [1], [0], [1], True, [0], 1),
        5 * 6 * 8 * 3,
    ),
}


@pytest.mark.parametrize("kind", CALLS)
def test_products_in_every_form_count(kind: str) -> None:
    """The expected numbers are by hand; PyTorch's own counter agrees wherever it counts the operator at all."""
    call, expected = CALLS[kind]
    model, x = _Calls(call), torch.randn(1, 5, 8)
    assert oicsr.count_macs(model, x) == expected
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    assert counter.get_total_flops() in (0, 2 * expected)


@pytest.mark.parametrize("shapes", [[(2, 9), (9, 3), (3, 7), (7, 1)], [(4,), (4, 6), (6, 2)], [(5, 3), (3, 8), (8,)]])
def test_a_chain_takes_the_best_order(shapes: list[tuple[int, ...]]) -> None:
    first = (1, *shapes[0]) if len(shapes[0]) == 1 else shapes[0]
    last = (*shapes[-1], 1) if len(shapes[-1]) == 1 else shapes[-1]
    matrices = [first, *shapes[1:-1], last]

    def cheapest(part: list[tuple[int, ...]]) -> int:
        """All ways to put the parentheses."""
        cuts = range(1, len(part))
        ways = [cheapest(part[:c]) + cheapest(part[c:]) + part[0][0] * part[c][0] * part[-1][1] for c in cuts]
        return min(ways, default=0)

    assert chain_macs(shapes) == cheapest(matrices)


def test_a_graph_that_torch_exported_counts_and_is_pruned_like_its_network() -> None:
    model, x = Chain().eval(), torch.randn(2, 3, 8, 8)
    graph = torch.export.export(model, (x,)).module()
    assert oicsr.count_macs(graph, x) == oicsr.count_macs(model, x) > 0
    kept = [oicsr.prune(network, x, macs_kept=0.5).plan.kept for network in (graph, model)]
    assert kept[0] == kept[1]


def test_a_network_without_macs_has_no_share_of_them() -> None:
    class Scaled(nn.Module):
        """A table, and nothing that multiplies matrices."""

        def __init__(self) -> None:
            super().__init__()
            self.table, self.scale = nn.Embedding(5, 8), nn.Parameter(torch.randn(8))

        def forward(self, x: Tensor) -> Tensor:
            """Map `(batch, n)` to `(batch, n)`."""
            return (self.table(x) * self.scale).sum(-1)

    model, x = Scaled(), torch.zeros(1, 3, dtype=torch.int64)
    couplings = [oicsr.Coupling("table", 8, (oicsr.Member("table.weight", 1, torch.arange(8), "out"),))]
    with pytest.raises(ValueError, match=r"no MACs are counted in Scaled.*params_kept"):
        oicsr.select_channels([torch.arange(8.0)], couplings, model, x, macs_kept=0.5)


class _Attends(nn.Module):
    """Attention behind a product in a form that channels are not followed through."""

    def __init__(self, gate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.gate, self.pre = gate, nn.Linear(8, 16)
        self.q, self.k, self.v, self.o = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, steps, 8)` to the same."""
        x = self.pre(x)
        x = x * self.gate(x)
        scores = self.q(x) @ self.k(x).transpose(1, 2)
        return self.o(scores.softmax(-1) @ self.v(x))  # type: ignore[no-any-return]


GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "ellipsis": lambda x: torch.einsum("...c,...c->...", x, x).unsqueeze(-1),
    "three factors": lambda x: torch.einsum("btc,btc,btc->bt", x, x, x).unsqueeze(-1),
    "no arrow": lambda x: torch.einsum("btc,buc", x, x).mean().reshape(1, 1, 1),
    "tensordot": lambda x: torch.tensordot(x[0], x[0], dims=([0, 1], [0, 1])),
    "inner": lambda x: torch.inner(x, x).mean(),
    "a vector": lambda x: (x[0] @ x[0, 0]).mean(),
    "mm": lambda x: torch.mm(x[0], x[0].t()).mean(),
    "linalg": lambda x: torch.linalg.matmul(x, x.mT).mean(),
    "a chain": lambda x: torch.linalg.multi_dot([x[0], x[0].t(), x[0]]).mean(),
}


@pytest.mark.filterwarnings("ignore::oicsr.UnprunedChannelsWarning")
@pytest.mark.parametrize("unseen", [False, True], ids=["seen", "unseen"])
@pytest.mark.parametrize("kind", GATES)
def test_macs_of_attention_are_right_behind_any_product(
    kind: str, unseen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products are found by their order; where one is miscounted, costs are measured instead of predicted."""
    if unseen:
        monkeypatch.setattr(complexity.Positions, "_is_followed", staticmethod(lambda *of: True))
    torch.manual_seed(0)
    model, x = _Attends(GATES[kind]), torch.randn(1, 5, 8)
    couplings = oicsr.find_couplings(model, x)
    assert {coupling.name for coupling in couplings} >= {"q", "v"}
    for share in (0.7, 0.4):
        scores = oicsr.out_in_energy(model, couplings)
        plan = oicsr.select_channels(scores, couplings, model, x, macs_kept=share, tolerance=0.03)
        small = oicsr.remove_channels(model, plan)
        assert oicsr.count_macs(small, x) == pytest.approx(share * oicsr.count_macs(model, x), rel=0.03)


EQUATIONS: dict[str, list[tuple[int, ...]]] = {
    "bld,bln,bld->bldn": [(2, 3, 4), (2, 3, 5), (2, 3, 4)],
    "...d,...n->...dn": [(2, 3, 4), (2, 3, 5)],
    "...ij->...ji": [(2, 3, 4)],
    "zBa,zBc": [(2, 3, 4), (2, 3, 5)],
    "i...j,ij->j...i": [(2, 6, 3), (2, 3)],
    "ab...,ca->...c": [(3, 4, 5), (2, 3)],
    "ad,bd,cd->abc": [(2, 3), (4, 3), (5, 3)],
}


@pytest.mark.parametrize("equation", EQUATIONS)
def test_equations_are_written_as_plain_ones_of_two_factors(equation: str) -> None:
    torch.manual_seed(0)
    factors = [torch.randn(shape, dtype=torch.float64) for shape in EQUATIONS[equation]]
    steps = plain_steps((equation, factors))
    assert steps and all(is_plain(step) and step.count(",") < 2 for step in steps)
    value = torch.einsum(steps[0], *factors[:2])
    for step, factor in zip(steps[1:], factors[2:], strict=True):
        value = torch.einsum(step, value, factor)
    torch.testing.assert_close(value, torch.einsum(equation, *factors))


def test_equations_that_are_plain_or_repeat_letters_or_axes_stay() -> None:
    square, row, single = torch.randn(3, 3), torch.randn(3), torch.randn(1, 3)
    for equation, factors in {
        "bi,bi->b": [square, square],
        "ii,i,i->i": [square, row, row],
        "bi,bi,bi->i": [single, square, square],
    }.items():
        assert plain_steps((equation, factors)) == []


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*", "ignore:.*quantiz.*")
@pytest.mark.parametrize(
    ("close", "message"),
    [
        (lambda layer: torch.jit.script(layer), "'1' is scripted: put the module that it was made of in its place"),
        (torch.ao.nn.quantized.dynamic.Linear.from_float, "'1' is quantised, its weights packed: take the network"),
    ],
    ids=["scripted", "quantised"],
)
def test_parts_that_cannot_be_looked_into_are_refused(close: Callable[[nn.Module], nn.Module], message: str) -> None:
    """Their MACs would be left out unsaid."""
    layer = nn.Linear(8, 2)
    layer.qconfig = torch.ao.quantization.default_dynamic_qconfig
    model = nn.Sequential(nn.Linear(3, 8), close(layer))
    plan = oicsr.PruningPlan({}, ())
    for refused in (lambda: oicsr.count_macs(model, torch.zeros(1, 3)), lambda: oicsr.remove_channels(model, plan)):
        with pytest.raises(ValueError, match=f"Sequential cannot be looked into: {message}"):
            refused()


class FillsSteps(nn.Module):
    """Writes the values of each step into a tensor that it has made before."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.weight = nn.Linear(4, 8), nn.Parameter(torch.randn(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros(*x.shape[:2], 8)
        for step in range(x.shape[1]):
            out[:, step] = self.layer(x[:, step])
        return out @ self.weight


class AddsUp(FillsSteps):
    """Adds the values of all steps up in a tensor of zeros."""

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros(len(x), 8)
        for step in range(x.shape[1]):
            out += self.layer(x[:, step])
        return out @ self.weight


class SpreadQuery(nn.Module):
    """Asks the same learned queries of every example."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.query = nn.Linear(8, 16), nn.Parameter(torch.randn(1, 2, 3, 8))

    def forward(self, x: Tensor) -> Tensor:
        keys = self.keys(x).unflatten(-1, (2, 8)).transpose(1, 2)
        return nn.functional.scaled_dot_product_attention(self.query, keys, keys)


class OneOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.weight = nn.Linear(8, 8), nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.first(x), self.weight)


class Deformed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.offset = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 18, 3, padding=1)
        self.deformed = torchvision.ops.DeformConv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.deformed(x, self.offset(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("network", "inputs", "macs"),
    [
        (FillsSteps, (1, 4, 4), 4 * 4 * 8 + 4 * 8 * 5),
        (AddsUp, (1, 4, 4), 4 * 4 * 8 + 8 * 5),
        (SpreadQuery, (4, 5, 8), 5 * 8 * 16 + 2 * (2 * 3 * 5 * 8)),  # of one example
        (OneOutput, (1, 8), 8 * 8 + 8),
        (Deformed, (1, 3, 6, 6), 36 * (3 * 8 + 8 * 18 * 9 + 8 * 4 * 9)),
    ],
)
def test_forms_of_layers_that_few_use_count(network: type[nn.Module], inputs: tuple[int, ...], macs: int) -> None:
    assert oicsr.count_macs(network(), torch.randn(inputs)) == macs


@pytest.mark.parametrize(
    "dims", [0, 2, torch.tensor([[1], [0]]), ([-1, 0], [1, 2]), ([2], [-2])], ids=lambda dims: str(dims)
)
def test_a_product_over_axes_is_an_equation(dims: Any) -> None:
    torch.manual_seed(0)
    first, second = torch.randn(4, 3, 2, dtype=torch.float64), torch.randn(3, 2, 4, dtype=torch.float64)
    equation = tensordot_equation(first.shape, second.shape, tensordot_axes(dims, first.ndim))
    assert is_plain(equation)
    expected = torch.tensordot(first, second, dims)
    torch.testing.assert_close(torch.einsum(equation, first, second), expected)


def test_a_product_over_axes_of_one_slice_and_many_has_no_equation() -> None:
    assert tensordot_equation((4, 1), (3, 5), ([1], [0])) == ""
