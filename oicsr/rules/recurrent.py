"""Recurrent layers and cells: the hidden channels of all layers and directions go together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx

from oicsr.rules.calls import argument, gives_many, shape_of, shapes_of, source_of
from oicsr.rules.ids import on_axis
from oicsr.rules.registry import Result, Value, aten, register_rule
from oicsr.rules.tracer import Tracer


@register_rule(*aten("lstm gru rnn_tanh rnn_relu"))
def recur(tracer: Tracer, node: fx.Node) -> Result:
    """`num_layers` layers one behind the other, each in one direction or two, with one hidden width.

    Weights `(gates * hidden, in)` and `(gates * hidden, hidden)`: channel `i` has row `i` of every gate. An LSTM that
    projects its hidden states has `(gates * hidden, projected)` and `(projected, hidden)`: the projected ones go, the
    others stay, because PyTorch takes states of one width for states that are not projected.
    """
    tensors: list[fx.Node] = list(argument(node, "params"))
    layers, ways = int(argument(node, "num_layers")), 1 + bool(argument(node, "bidirectional"))
    per = len(tensors) // (layers * ways)
    if not all(tensor in tracer.parameters for tensor in tensors):
        return tracer.opaque(node, "has weights that are computed")
    source = source_of(node)
    hidden = _hidden(tracer, tensors[1])
    cells = hidden
    if per != (4 if argument(node, "has_biases") else 2):
        cells = _hidden(tracer, tensors[per - 1])
        tracer.sets.fix(cells, tracer.notable(f"{tracer.where(node)} needs hidden states wider than projected ones"))
    for number in range(layers * ways):
        cell = tensors[per * number : per * (number + 1)]
        if cells is not hidden:
            projection = cell.pop()
            tracer.add_slot(projection, 0, hidden, "out", counts=True)
            tracer.add_slot(projection, 1, cells, "in", counts=True)
        _add_cell(tracer, cell, hidden, cells)
        if number < ways:
            tracer.read_channels(node, source, cell[0], axis=len(shape_of(source)) - 1, dim=1)
        else:
            tracer.add_slot(cell[0], 1, hidden.repeat(ways), "in", counts=True)
    widths = (hidden, cells)
    _join_states(tracer, argument(node, "hx"), widths)
    ranks = [len(shape or ()) for shape in shapes_of(node)]
    states = [Value(on_axis(width, rank - 1, rank)) for rank, width in zip(ranks[1:], widths, strict=False)]
    return [Value(on_axis(hidden.repeat(ways), ranks[0] - 1, ranks[0])), *states]


@register_rule(*aten("lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"))
def step(tracer: Tracer, node: fx.Node) -> Result:
    """One step of a recurrent layer."""
    source, states = source_of(node), argument(node, 1)
    cell = [tensor for tensor in (argument(node, i) for i in range(2, 6)) if tensor is not None]
    if not all(tensor in tracer.parameters for tensor in cell):
        return tracer.opaque(node, "has weights that are computed")
    hidden = _hidden(tracer, cell[1])
    _add_cell(tracer, cell, hidden, hidden)
    tracer.read_channels(node, source, cell[0], axis=len(shape_of(source)) - 1, dim=1)
    _join_states(tracer, states, (hidden, hidden))
    values = [Value(on_axis(hidden, len(shape or ()) - 1, len(shape or ()))) for shape in shapes_of(node)]
    return values if gives_many(node) else values[0]


def _hidden(tracer: Tracer, weight: fx.Node) -> Tensor:
    """Return the hidden channels: new ones, or those of an earlier call."""
    slot = tracer.slots.get((tracer.parameters[weight], 1))
    return tracer.sets.new(shape_of(weight)[1]) if slot is None else slot.ids


def _add_cell(tracer: Tracer, cell: Sequence[fx.Node], hidden: Tensor, cells: Tensor) -> None:
    """Let the columns that read hidden states follow their channels, rows of both weights and biases those of cells."""
    rows = cells.repeat(shape_of(cell[1])[0] // len(cells))
    for weight in cell[:2]:
        tracer.add_slot(weight, 0, rows, "out", counts=True)
    tracer.add_slot(cell[1], 1, hidden, "in", counts=True)
    for bias in cell[2:]:
        tracer.add_bias(bias, rows)


def _join_states(tracer: Tracer, states: Any, widths: Sequence[Tensor]) -> None:
    """Tie the first states, hidden ones and those of cells, to their channels.

    One number everywhere has whatever width it has: zeros are made by the layer itself, or by the network, of a width
    that it keeps (`oicsr.proving.mending` lets that follow).
    """
    for state, hidden in zip(states if isinstance(states, list | tuple) else [states], widths, strict=False):
        ids = tracer.ids(state)
        if ids is None and tracer.is_uniform(state, -1):
            continue
        vector = None if ids is None else tracer.channels(ids, -1, len(hidden))
        if vector is None:
            tracer.sets.fix(hidden, tracer.reason(state))
            tracer.fix(state, tracer.notable("is the first state of a recurrent layer"))
        else:
            tracer.sets.join(vector, hidden)
