"""How many inputs an example holds: MACs are those of one input, wherever the batch lies."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import oicsr
from oicsr.complexity import count_work

STEPS, WIDTH, HIDDEN = 6, 16, 24
ATTENTION = STEPS * WIDTH * WIDTH * 4 + 2 * STEPS * STEPS * WIDTH
LAYER = ATTENTION + STEPS * WIDTH * HIDDEN * 2


class _Head(nn.Module):
    """A layer of a transformer, and two linear ones that run once per sequence."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(WIDTH, 4, HIDDEN, dropout=0.0, batch_first=first)
        self.hidden, self.out, self.axis = nn.Linear(WIDTH, 64), nn.Linear(64, 3), int(first)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(self.layer(x).mean(self.axis)).relu())


class _Between(nn.Module):
    """A linear layer in front of one that knows steps from sequences, and one behind it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(5, 8), layer, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        attends = isinstance(self.layer, nn.MultiheadAttention)
        return self.last(self.layer(*([x] * 3 if attends else [x]))[0])


class _Tokens(nn.Module):
    """`(steps, batch)` tokens."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(10, 6), layer

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layer(self.table(tokens))[0]


class _Steps(nn.Module):
    """A cell that runs over `(steps, batch, 5)` behind a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.cell = nn.Linear(5, 8), nn.GRUCell(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[1], 8)
        for step in self.first(x):
            state = self.cell(step, state)
        return state


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")  # of nn.Transformer, which says so of itself
@pytest.mark.parametrize("batch", [1, 2, 3, STEPS])
def test_attention_with_the_steps_in_front(batch: int) -> None:
    x = torch.zeros(STEPS, batch, WIDTH)
    layer = nn.TransformerEncoderLayer(WIDTH, 4, HIDDEN, dropout=0.0)
    assert oicsr.count_macs(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), x) == 2 * LAYER
    assert oicsr.count_macs(nn.MultiheadAttention(WIDTH, 4), (x, x, x)) == ATTENTION
    assert oicsr.count_macs(_Head(False), x) == LAYER + WIDTH * 64 + 64 * 3
    whole = nn.Transformer(WIDTH, 4, 1, 1, HIDDEN, dropout=0.0)
    assert oicsr.count_macs(whole, (x, x)) == 2 * LAYER + ATTENTION


@pytest.mark.parametrize("batch", [1, 2, 3, STEPS])
def test_attention_with_the_batch_in_front(batch: int) -> None:
    x = torch.zeros(batch, STEPS, WIDTH)
    assert oicsr.count_macs(_Head(True), x) == LAYER + WIDTH * 64 + 64 * 3
    assert oicsr.count_macs(nn.MultiheadAttention(WIDTH, 4, batch_first=True), (x, x, x)) == ATTENTION


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_attention_to_another_sequence(first: bool, batch: int) -> None:
    shapes = [(batch, 4), (batch, 9)] if first else [(4, batch), (9, batch)]
    query, memory = (torch.zeros(*shape, WIDTH) for shape in shapes)
    layer = nn.MultiheadAttention(WIDTH, 4, batch_first=first)
    expected = (2 * 4 + 2 * 9) * WIDTH * WIDTH + 2 * 4 * 9 * WIDTH
    assert oicsr.count_macs(layer, (query, memory, memory)) == expected


def test_attention_without_a_batch() -> None:
    x = torch.zeros(STEPS, WIDTH)
    assert oicsr.count_macs(nn.MultiheadAttention(WIDTH, 4), (x, x, x)) == ATTENTION
    assert oicsr.count_macs(_Between(nn.MultiheadAttention(8, 2)), torch.zeros(7, 5)) == 7 * (64 + 256) + 2 * 49 * 8


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_a_linear_layer_does_not_know_steps_from_sequences(batch: int) -> None:
    rest, attention = 7 * (5 * 8 + 8 * 3), 7 * 4 * 64 + 2 * 49 * 8
    for first in (False, True):
        x = torch.zeros(batch, 7, 5) if first else torch.zeros(7, batch, 5)
        assert oicsr.count_macs(_Between(nn.GRU(8, 8, batch_first=first)), x) == rest + 7 * 24 * 16
        assert oicsr.count_macs(_Between(nn.MultiheadAttention(8, 2, batch_first=first)), x) == rest + attention
    assert oicsr.count_macs(_Steps(), torch.zeros(7, batch, 5)) == 7 * (5 * 8 + 24 * 16)
    assert oicsr.count_macs(_Between(nn.GRU(8, 8)), torch.zeros(7, 5)) == rest + 7 * 24 * 16


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_tokens_with_the_steps_in_front(batch: int) -> None:
    tokens = torch.zeros(5, batch, dtype=torch.int64)
    assert oicsr.count_macs(_Tokens(nn.LSTM(6, 8)), tokens) == 5 * 4 * (8 * 6 + 8 * 8)
    layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0)
    assert oicsr.count_macs(_Tokens(layer), tokens) == 5 * (4 * 36 + 2 * 48) + 2 * 25 * 6


class _OneByOne(nn.Module):
    """Reads the images of a list one by one, and all of them at once in the end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)
        self.alone: Callable[[Tensor], Tensor] = lambda x: x[None]

    def forward(self, images: list[Tensor]) -> Tensor:
        return self.head(torch.cat([self.conv(self.alone(x)).mean((-2, -1)).view(1, 4) for x in images]))


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_list_of_images_that_are_read_one_by_one(number: int) -> None:
    network, images = _OneByOne(), [torch.zeros(3, 6, 6)] * number
    assert oicsr.count_macs(network, (images,)) == 36 * 12 + 8
    network.alone = lambda x: x
    assert oicsr.count_macs(network, (images,)) == 36 * 12 + 8
    grown = [torch.zeros(3, 6, 6 + 2 * k) for k in range(number)]
    assert oicsr.count_macs(network, (grown,)) == (36 + 6 * (number - 1)) * 12 + 8  # the mean


def test_levels_of_a_pyramid_belong_to_one_input() -> None:
    network = _OneByOne()
    network.alone = lambda x: x
    levels = [torch.zeros(1, 3, size, size) for size in (8, 4, 2)]
    assert oicsr.count_macs(network, (levels,)) == (64 + 16 + 4) * 12 + 3 * 8


@pytest.mark.parametrize("equation", ["bchw,bc->bchw", "bchw,b->bchw", "bchw,bchw->bchw"])
def test_a_product_that_sums_over_nothing_is_none(equation: str) -> None:
    class Product(nn.Module):
        """Multiplies what two layers give, and compares channels in a second product."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            values = self.conv(x)
            factor = {"b": x.mean((1, 2, 3)), "bc": values.mean((2, 3))}.get(equation[5:].split("-")[0], values)
            return torch.einsum("bchw,bkhw->bck", torch.einsum(equation, values, factor), x[..., 1:-1, 1:-1]).sum(1)

    network, x = Product(), torch.randn(2, 3, 6, 6)
    assert oicsr.count_macs(network, x) == 16 * 8 * 27 + 16 * 8 * 3
    assert count_work(network, x).products == (0, 16 * 8 * 3)
    (coupling,) = oicsr.find_couplings(network, x, scope="all")
    assert 1 in coupling.products or any(part.product == 1 for part in coupling.parts)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_table_of_positions_has_no_say_in_the_batch(first: bool, batch: int) -> None:
    """As in Conformer: a layer reads 11 positions whatever the batch, also where little else is left."""

    class Positions(nn.Module):
        """Adds what a layer makes of a table of positions."""

        def __init__(self) -> None:
            super().__init__()
            self.up, self.down, self.table = nn.Linear(8, 4), nn.Linear(4, 8), nn.Linear(8, 8, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            positions = torch.arange(11).to(x)[None, :, None] * torch.ones(8).type_as(x)
            before = self.table(positions).sum(1) if first else 0
            x = x + self.down(self.up(x).relu())
            return x.sum(1) + (before if first else self.table(positions).sum(1))

    assert oicsr.count_macs(Positions(), torch.randn(batch, 6, 8)) == 2 * 6 * 8 * 4 + 11 * 8 * 8
