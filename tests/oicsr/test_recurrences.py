"""Recurrent layers, of which one step tells the shapes of all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import oicsr
from oicsr.networks.inputs import tensors_in
from oicsr.networks.recurrences import LAYERS, OPERATORS, OneStep, one_step_exported

KINDS = [
    (nn.LSTM, {}),
    (nn.LSTM, {"batch_first": True, "bidirectional": True, "num_layers": 2, "dropout": 0.5}),
    (nn.LSTM, {"proj_size": 3, "batch_first": True}),
    (nn.GRU, {"bidirectional": True}),
    (nn.GRU, {"batch_first": True, "bias": False}),
    (nn.RNN, {"num_layers": 2}),
    (nn.RNN, {"nonlinearity": "relu", "batch_first": True}),
]


class Tagger(nn.Module):
    """A class for every step of a sequence: layers before and behind a recurrent one."""

    def __init__(self, cls: type[nn.RNNBase] = nn.LSTM, **options: Any) -> None:
        super().__init__()
        self.before, self.layer = nn.Linear(4, 6), cls(6, 5, **options)
        width = (options.get("proj_size") or 5) * (1 + bool(options.get("bidirectional")))
        self.behind, self.head = nn.Linear(width, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.layer(self.before(x).relu())
        return self.head(self.behind(x).relu())


@pytest.mark.parametrize(("cls", "options"), KINDS)
@pytest.mark.parametrize("shape", [(7, 2, 6), (1, 2, 6), (7, 6)])
def test_one_step_gives_the_shapes_and_the_layout_of_all(cls: Any, options: Any, shape: tuple[int, ...]) -> None:
    layer, x = cls(6, 5, **options).to("meta"), torch.empty(shape, device="meta")
    every = list(tensors_in(layer(x)))
    with OneStep():
        one = list(tensors_in(layer(x)))
    assert [tensor.shape for tensor in one] == [tensor.shape for tensor in every]
    assert [tensor.stride() for tensor in one] == [tensor.stride() for tensor in every]
    assert all(tensor.is_meta for tensor in one)


def test_values_and_packed_sequences_are_left_alone() -> None:
    layer, x = nn.GRU(6, 5), torch.randn(7, 2, 6)
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([7, 3]))
    with OneStep():
        assert torch.equal(layer(x)[0], nn.GRU.forward(layer, x)[0])
        assert layer(packed)[0].data.shape == (10, 5)


@pytest.mark.filterwarnings("ignore:The tensor attributes")  # the exporter, of a layer's list of its weights
@pytest.mark.parametrize(("cls", "options"), KINDS)
def test_the_graph_is_that_of_the_whole_sequence(cls: Any, options: Any) -> None:
    model, x = Tagger(cls, **options).eval(), torch.randn(7, 2, 4)
    plain = torch.export.export(model, (x,), strict=False).graph
    with one_step_exported():
        graph = torch.export.export(model, (x,), strict=False).graph
    assert [node.name for node in graph.nodes] == [node.name for node in plain.nodes]
    for node, other in zip(graph.nodes, plain.nodes, strict=True):
        shapes = [[tensor.shape for tensor in tensors_in(n.meta.get("val", []))] for n in (node, other)]
        assert shapes[0] == shapes[1]


def test_only_one_step_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter would run all of them in Python, on tensors without values."""
    steps: list[int] = []
    operator = OPERATORS[LAYERS.index("lstm")]
    for key, kernel in dict(operator.py_kernels).items():

        def noted(x: Tensor, *args: Any, kernel: Any = kernel) -> Any:
            steps.append(x.shape[0])
            return kernel(x, *args)

        monkeypatch.setitem(operator.py_kernels, key, noted)
    operator._dispatch_cache.clear()
    kernels = dict(operator.py_kernels)
    assert {c.name for c in oicsr.find_couplings(Tagger(), torch.randn(40, 2, 4))} == {"before", "layer", "behind"}
    assert set(steps) == {1}
    assert operator.py_kernels == kernels
    with pytest.raises(ValueError, match="cannot be traced"):
        oicsr.find_couplings(nn.Sequential(Tagger(), nn.Linear(7, 2)), torch.randn(40, 2, 4))
    assert operator.py_kernels == kernels
    monkeypatch.undo()
    operator._dispatch_cache.clear()
