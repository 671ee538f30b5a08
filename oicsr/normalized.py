"""Which layers stand in front of a BatchNorm that reads nothing else: their rows have no scale of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx, nn

from oicsr.arguments import check_call
from oicsr.graph import export_graph
from oicsr.networks.copying import copy_model, shared
from oicsr.networks.inputs import ExampleInputs, as_inputs
from oicsr.networks.wrapping import unwrap
from oicsr.rules.calls import argument, module_path, operator_name, shape_of

CONVOLUTIONS = {"aten::conv1d", "aten::conv2d", "aten::conv3d"}
TRANSPOSED = {"aten::conv_transpose1d", "aten::conv_transpose2d", "aten::conv_transpose3d"}
LINEAR = "aten::linear"
NORMALIZATION = "aten::batch_norm"


@dataclass(frozen=True)
class NormalizedLayer:
    """A convolution or linear layer whose output is read by one BatchNorm and by nothing else.

    Attributes:
        weight: Qualified name of the weight.
        row_dim: The axis of the weight that holds the output channels.
        bias: Name of the bias, if there is one.
        scale: Name of the scale of the BatchNorm, if there is one.
        mean: Name of its running mean.
        variance: Name of its running variance.
        eps: What it adds to the variance.
    """

    weight: str
    row_dim: int
    bias: str | None
    scale: str | None
    mean: str
    variance: str
    eps: float

    @property
    def name(self) -> str:
        """Name of the layer: that of its weight without `.weight`."""
        return row_name(self.weight)


def row_name(weight: str) -> str:
    """Return how a layer is called by the name of its weight."""
    return weight.removesuffix(".weight")


def normalized_layers(model: nn.Module, example_inputs: ExampleInputs) -> tuple[list[NormalizedLayer], dict[str, str]]:
    """Find the layers whose output one BatchNorm alone reads, in evaluation mode.

    Args:
        model: Any network that `torch.export` can trace; left as it is.
        example_inputs: The arguments of one forward call (see `find_couplings`).

    Returns:
        These layers, and for every other convolution or linear layer its name and why it is not one of them.

    Raises:
        ValueError: The model cannot be traced.
    """
    check_call(model, example_inputs)
    graph = export_graph(copy_model(unwrap(model), shared), as_inputs(example_inputs), training=False)
    nodes = graph.nodes.nodes
    places = {node: graph.names[node.name] for node in nodes if node.name in graph.names}
    uses = Counter[str]()
    for node, name in places.items():
        uses[name] += len(node.users)
    found: list[NormalizedLayer] = []
    others: dict[str, str] = {}
    for node in nodes:
        if operator_name(node) in CONVOLUTIONS | TRANSPOSED | {LINEAR}:
            layer = _normalized(node, places, uses)
            if isinstance(layer, NormalizedLayer):
                found.append(layer)
            else:
                others[row_name(places.get(argument(node, 1), "")) or module_path(node) or node.name] = layer
    return found, others


def _normalized(node: fx.Node, names: Mapping[fx.Node, str], uses: Mapping[str, int]) -> NormalizedLayer | str:
    """Return the layer that `node` is, or why it is none that one BatchNorm alone reads."""
    kind = operator_name(node)
    weight, bias = names.get(argument(node, 1)), argument(node, 2)
    if weight is None:
        return "its weight is computed"
    readers = list(node.users)
    if len(readers) != 1 or operator_name(readers[0]) != NORMALIZATION:
        return "its output is not read by one BatchNorm alone"
    norm = readers[0]
    axis = 1 if kind == LINEAR else len(shape_of(node)) - (len(shape_of(argument(node, 1))) - 2) - 1
    if axis != 1 or (kind == LINEAR and len(shape_of(node)) != 2):
        return "BatchNorm normalises another axis than that of its output channels"
    if kind in TRANSPOSED and argument(node, 6, 1) != 1:
        return "it is a grouped transposed convolution"
    scale, shift, mean, variance = (argument(norm, position) for position in range(1, 5))
    tensors = [tensor for tensor in (scale, shift, mean, variance, bias) if tensor is not None]
    if mean is None or variance is None:
        return "the BatchNorm that reads it keeps no running statistics"
    if any(tensor not in names for tensor in tensors):
        return "its bias, or a tensor of its BatchNorm, is computed"
    shared = [name for name in [weight, *(names[tensor] for tensor in tensors)] if uses[name] > 1]
    if shared:
        return f"{shared[0]!r} is used more than once"
    return NormalizedLayer(
        weight, int(kind in TRANSPOSED), names.get(bias), names.get(scale), names[mean], names[variance],
        float(argument(norm, 7)),
    )  # fmt: skip
