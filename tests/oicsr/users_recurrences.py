"""More networks that users bring: recurrences whose first states the network makes itself, and values that are written
into ones that it makes.

They are in the table of `tests.oicsr.users_networks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tests.oicsr.users_networks import CASES, ROWS, SERIES, Net, built, rows, weight

__all__ = ["CASES"]

STEPS = SERIES.transpose(1, 2)  # (batch, steps, features)
FILMS = torch.randn(2, 3, 2, 6, 6)  # (batch, steps, channels, height, width)


class Recurrence(nn.Module):
    """A recurrent layer and the width of its first states."""

    def __init__(self, cls: type[nn.RNNBase], ways: int = 1) -> None:
        super().__init__()
        self.width, self.ways = 10, ways
        self.layer = cls(4, 10, batch_first=True, bidirectional=ways == 2)
        self.head = nn.Linear(10 * ways, 3)

    def forward(self, x: Tensor) -> Tensor:
        zeros = torch.zeros(self.ways, len(x), self.width).to(x)
        state = (zeros, torch.zeros_like(zeros)) if isinstance(self.layer, nn.LSTM) else zeros
        return self.head(self.layer(x, state)[0][:, -1])


@built("layer", STEPS)
def first_states_of_a_kept_width() -> nn.Module:
    return Recurrence(nn.LSTM)


@built("layer", STEPS)
def first_states_of_both_ways() -> nn.Module:
    return Recurrence(nn.GRU, 2)


class FirstState(nn.Module):
    """A module of its own for first states."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(1, len(x), self.width)


class Chain(nn.Module):
    """Recurrent layers one behind the other, the width of each in a number of the whole network."""

    def __init__(self, widths: Sequence[int], *, apart: bool = False) -> None:
        super().__init__()
        self.first, self.second = widths[0], widths[-1]
        self.encoder, self.decoder = (nn.GRU(*sizes, batch_first=True) for sizes in ((4, widths[0]), widths))
        self.start = FirstState(widths[0]) if apart else None
        self.head = nn.Linear(widths[-1], 3)

    def forward(self, x: Tensor) -> Tensor:
        one = x.new_zeros(1, len(x), self.first) if self.start is None else self.start(x)
        two = x.new_zeros(1, len(x), self.second)
        return self.head(self.decoder(self.encoder(x, one)[0], two)[0][:, -1])


@built("encoder decoder", STEPS)
def an_encoder_and_a_decoder_of_two_widths() -> nn.Module:
    return Chain((10, 12))


@built("encoder decoder", STEPS)
def first_states_of_another_module() -> nn.Module:
    return Chain((10, 12), apart=True)


class Cells(nn.Module):
    """Cells above one another, all as wide as one number says."""

    def __init__(self, cls: type[nn.RNNCellBase], count: int) -> None:
        super().__init__()
        self.width = 10
        self.cells = nn.ModuleList([cls(10 if number else 4, 10) for number in range(count)])
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        states: list[Any] = [torch.zeros(len(x), self.width).to(x) for _ in self.cells]
        below = x
        for step in x.unbind(1):
            below = step
            for number, cell in enumerate(self.cells):
                states[number] = below = cell(below, states[number])
        return self.head(below)


@built("cells.0", STEPS)
def cells_of_one_width() -> nn.Module:
    return Cells(nn.GRUCell, 3)


@built("cells.0", STEPS)
def a_cell_of_a_kept_width() -> nn.Module:
    return Cells(nn.RNNCell, 1)


# ----------------------------------------------------------------------------------------------------------------
# recurrences that are written out
# ----------------------------------------------------------------------------------------------------------------


class WrittenOut(nn.Module):
    """An LSTM of raw weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.w, self.u, self.b = weight(4, 4 * width), weight(width, 4 * width), weight(4 * width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        width = self.width
        h = c = torch.zeros(len(x), width, dtype=x.dtype)
        for step in x.unbind(1):
            gates = step @ self.w + h @ self.u + self.b
            i, f, o = (gates[:, k * width : (k + 1) * width].sigmoid() for k in range(3))
            c = f * c + i * gates[:, 3 * width :].tanh()
            h = o * c.tanh()
        return self.head(h)


@built("w", STEPS)
def an_lstm_written_out() -> nn.Module:
    return WrittenOut(10)


# ----------------------------------------------------------------------------------------------------------------
# values that are written into others
# ----------------------------------------------------------------------------------------------------------------

EDGES, FEW, SOME = torch.randint(0, 5, (2, 11)), torch.tensor([3, 1]), torch.tensor([True, False, True, True, False])


class Collected(nn.Module):
    """A cell whose outputs are written into a tensor, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.cell, self.head = 10, nn.GRUCell(4, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden, found = x.new_zeros(len(x), self.width), x.new_zeros(*x.shape[:2], self.width)
        for number, step in enumerate(x.unbind(1)):
            found[:, number] = hidden = self.cell(step, hidden)
        return self.head(found)


@built("cell", STEPS)
def outputs_written_into_a_tensor() -> nn.Module:
    return Collected()


@rows("a", b=lambda: nn.Linear(6, 16), o=lambda: nn.Linear(32, 3))
def two_halves_written_into_a_tensor(net: Any, x: Tensor) -> Tensor:
    found = x.new_zeros(len(x), 2 * net.a.out_features)
    found[:, : net.a.out_features], found[:, net.a.out_features :] = net.a(x), net.b(x)
    return net.o(found.relu())


@rows("a b", EDGES)
def messages_in_a_graph(net: Any, x: Tensor, edges: Tensor) -> Tensor:
    x = net.a(x).relu()
    x = net.b(x + torch.zeros_like(x).index_add_(0, edges[1], x[edges[0]])).relu()
    sent = x[edges[0]]
    return net.o(x.new_zeros(x.shape).scatter_add(0, edges[1][:, None].expand_as(sent), sent))


@rows("a b", FEW, SOME)
def rows_by_index_and_by_mask(net: Any, x: Tensor, few: Tensor, some: Tensor) -> Tensor:
    first = net.a(x).relu().clone()
    first[some] = 0
    found = x.new_zeros(len(x), net.b.out_features)
    found[few] = net.b(first[few])
    return net.o(found.relu())


@rows("b", warns="into unequal pieces")
def half_of_the_channels_written_over(net: Any, x: Tensor) -> Tensor:
    y = net.a(x).relu().clone()
    y[:, :8] = y[:, 8:] * 2
    return net.o(net.b(y[:, :12].repeat(1, 2)[:, :16]).relu())


# ----------------------------------------------------------------------------------------------------------------
# widths that several modules of one class keep
# ----------------------------------------------------------------------------------------------------------------


class ConvolutionalCell(nn.Module):
    """A cell of a convolutional LSTM, and its width."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.width, self.gates = width, nn.Conv2d(before + width, 4 * width, 3, padding=1)

    def forward(self, x: Tensor, states: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        i, f, o, g = self.gates(torch.cat([x, states[0]], 1)).split(self.width, 1)
        memory = f.sigmoid() * states[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * memory.tanh(), memory

    def start(self, x: Tensor) -> tuple[Tensor, Tensor]:
        zeros = torch.zeros(len(x), self.width, *x.shape[-2:], dtype=x.dtype)
        return zeros, zeros.clone()


@built("cells.0.gates cells.1.gates", FILMS)
def a_convolutional_lstm_of_one_width() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        for cell in net.cells:
            states, found = cell.start(x[:, 0]), []
            for step in x.unbind(1):
                states = cell(step, states)
                found.append(states[0])
            x = torch.stack(found, 1)
        return net.o(x[:, -1])

    return Net(
        run, {"cells": nn.ModuleList([ConvolutionalCell(2, 8), ConvolutionalCell(8, 8)]), "o": nn.Conv2d(8, 1, 1)}
    )


class Viewed(nn.Module):
    """A residual block with a view of a kept width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.a, self.b = width, nn.Linear(6, 4 * width), nn.Conv1d(width, 6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.a(x).relu().view(-1, self.width, 4)).squeeze(-1)


@built(" ".join(f"{number}.a" for number in range(10)), ROWS)
def many_blocks_with_kept_widths() -> nn.Module:
    return nn.Sequential(*[Viewed(6 + number % 2) for number in range(10)], nn.Linear(6, 3))


@built("lstm", STEPS, warns="needs hidden states wider than projected ones")
def states_that_an_lstm_projects() -> nn.Module:
    """Two layers in two directions; the states of the cells, which are wider, are read as well."""

    class Projects(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 12, 2, proj_size=5, bidirectional=True, batch_first=True)
            self.out = nn.Linear(10, 3)

        def forward(self, x: Tensor) -> Tensor:
            found, (_, cells) = self.lstm(x)
            return self.out(found) + cells.mean()

    return Projects()


@rows("a b", v=lambda: nn.Linear(6, 16), d=lambda: weight(16))
def averages_that_decay(net: Any, x: Tensor) -> Tensor:
    """The last states are multiplied by the decay once more, and not read any more (RWKV)."""
    keys, values = net.a(x[:, None] + x[:, :3, None]).exp(), net.v(x[:, None] * x[:, :3, None])
    above, below, outputs = torch.zeros_like(keys[:, 0]), torch.zeros_like(keys[:, 0]), []
    for key, value in zip(keys.unbind(1), values.unbind(1), strict=True):
        outputs.append((above + key * value) / (below + key))
        above, below = net.d.exp() * above + key * value, net.d.exp() * below + key
    return net.o(net.b(torch.stack(outputs, 1).mean(1)))
