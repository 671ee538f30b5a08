"""Rescaling: rows in front of BatchNorm brought to a given norm, with the network's function unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from oicsr.arguments import check_number
from oicsr.networks.inputs import ExampleInputs
from oicsr.networks.wrapping import unwrap
from oicsr.normalized import NormalizedLayer, normalized_layers, row_name

Norm = float | Tensor
DEAD = 1e-6  # rows below this share of the norm that they would be brought to stay as they are


@dataclass(frozen=True)
class Rescaling:
    """What `rescale` did.

    Attributes:
        factors: Layer name to the factor of each row, `(rows,)`; 1 where a row was left as it is.
        left: Name of each other convolution or linear layer to the reason why it was left as it is.
    """

    factors: Mapping[str, Tensor] = field(repr=False)
    left: Mapping[str, str] = field(repr=False)

    def __str__(self) -> str:
        rows = sum(int((factors != 1).sum()) for factors in self.factors.values())
        done, left = len(self.factors), len(self.left)
        layers = "1 layer" if done == 1 else f"{done} layers"
        rest = "1 layer left as it is" if left == 1 else f"{left} layers left as they are"
        return f"{rows} rows in {layers} rescaled, {rest}"


@torch.no_grad()
def row_norms(model: nn.Module) -> dict[str, float]:
    """Return the mean norm of the rows (filters) of each layer.

    Taken from the dense network, this is what `rescale` can bring the rows of the pruned network back to.

    Args:
        model: The network.

    Returns:
        Layer name (the name of its weight without `.weight`) to the mean over all rows of their L2 norms, for every
        weight of two axes or more.
    """
    model = unwrap(model)
    columns_first = {
        f"{name}.weight" if name else "weight"
        for name, module in model.named_modules()
        if isinstance(module, _ConvTransposeNd)
    }
    return {
        row_name(name): float(_norms(weight, int(name in columns_first)).mean())
        for name, weight in model.named_parameters()
        if weight.ndim > 1
    }


@torch.no_grad()
def rescale(
    model: nn.Module,
    example_inputs: ExampleInputs,
    norms: Norm | Mapping[str, Norm],
) -> Rescaling:
    r"""Bring the rows in front of BatchNorm to a given norm; the function in evaluation mode stays the same.

    A penalty that shrinks rows leaves their direction alone. Under BatchNorm only the direction matters for the
    output, but a gradient step turns a short row further: the effective learning rate grows with the inverse square
    of the norm, and the first epoch of fine-tuning can undo what training had learnt. Rescaling restores the norms.

    A row :math:`w` with bias :math:`b`, running mean :math:`\mu`, running variance :math:`v` and BatchNorm scale
    :math:`\gamma` becomes

    .. math:: s w,\quad s b,\quad s \mu,\quad s^2 v,\quad
        \gamma \sqrt{s^2 v + \epsilon} \, / \, (s \sqrt{v + \epsilon}),

    so that the gradient of the loss with respect to it becomes :math:`1 / s` of what it was. Without a scale
    (`affine=False`) the running variance becomes :math:`s^2 (v + \epsilon) - \epsilon` instead; rows for which that
    would be negative are left as they are.

    Layers are rescaled where one convolution or linear layer feeds the BatchNorm, the BatchNorm is its only reader,
    and no tensor of the two is used anywhere else. All other layers are left as they are, and so are dead rows: those
    with less than a millionth of the norm that they should get.

    Args:
        model: The network; changed in place.
        example_inputs: The arguments of one forward call (see `find_couplings`).
        norms: The norm that every row gets: one number for all layers, or a mapping from layer name to a number or to
            a tensor `(rows,)`. Layers that the mapping does not name are left as they are. `row_norms(dense)` gives
            such a mapping.

    Returns:
        The factors by layer, and the layers that were left with the reasons.

    Raises:
        TypeError: A norm is not a number.
        ValueError: A norm is not positive and finite, has the wrong number of rows, or belongs to a layer that the
            model does not have; or the model cannot be traced. Nothing has been changed then.

    Note:
        An optimiser's momentum belongs to the rows as they were: create the optimiser for fine-tuning afterwards.
        Weight decay on the rows is relative to their new norm.

    Example:
        >>> import torch, oicsr
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
        >>> print(oicsr.rescale(network, torch.randn(1, 3, 8, 8), norms=1.0))
        8 rows in 1 layer rescaled, 0 layers left as they are
    """
    model = unwrap(model)
    layers, left = normalized_layers(model, example_inputs)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if isinstance(norms, Mapping):
        _check_names(norms, {row_name(name) for name in tensors})
    factors: dict[str, Tensor] = {}
    for layer in layers:
        wanted = norms.get(layer.name) if isinstance(norms, Mapping) else norms
        if wanted is None:
            left[layer.name] = "no norm is given for it"
        else:
            factor = _factors(layer, tensors[layer.weight], wanted)
            if layer.scale is None:
                factor = torch.where(_without_scale(layer, tensors, factor) >= 0, factor, 1.0)
            factors[layer.name] = torch.where(_fits(layer, tensors, factor), factor, 1.0)
    for layer in layers:
        if layer.name in factors:
            _apply(layer, tensors, factors[layer.name])
    return Rescaling(factors, left)


def _check_names(norms: Mapping[str, Norm], names: set[str]) -> None:
    unknown = [name for name in norms if name not in names]
    if unknown:
        raise ValueError(f"norms names {unknown[0]!r}, but the model has no weight of that name")


def _norms(weight: Tensor, row_dim: int) -> Tensor:
    """Return the L2 norm of each row, `(rows,)`, in float64 for the sake of small rows."""
    rows = weight.detach().abs().double().movedim(row_dim, 0).flatten(1)  # (rows, everything else)
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return norms


def _factors(layer: NormalizedLayer, weight: Tensor, wanted: Norm) -> Tensor:
    current = _norms(weight, layer.row_dim)
    if not isinstance(wanted, Tensor):
        check_number(f"the norm for {layer.name!r}", wanted)
    target = torch.as_tensor(wanted, dtype=torch.float64, device=current.device)
    if target.ndim and target.shape != current.shape:
        raise ValueError(f"norms[{layer.name!r}] has shape {tuple(target.shape)}; the layer has {len(current)} rows")
    if not bool((target.isfinite() & (target > 0)).all()):
        raise ValueError(f"the norm for {layer.name!r} is {wanted!r}; it must be positive and finite")
    alive = current >= DEAD * target
    return torch.where(alive, target / current.where(alive, 1.0), 1.0)


def _without_scale(layer: NormalizedLayer, tensors: Mapping[str, Tensor], factor: Tensor) -> Tensor:
    """Return the variance that alone keeps the function as it is."""
    return factor.square() * (tensors[layer.variance].double() + layer.eps) - layer.eps


def _fits(layer: NormalizedLayer, tensors: Mapping[str, Tensor], factor: Tensor) -> Tensor:
    """Return for which rows the statistics stay within their type, `(rows,)`: float16 ends at 65,504."""
    mean, variance = tensors[layer.mean], tensors[layer.variance]
    largest = torch.finfo(variance.dtype).max
    return (factor.square() * variance.double() <= largest) & (factor * mean.abs().double() <= largest)


def _apply(layer: NormalizedLayer, tensors: Mapping[str, Tensor], factor: Tensor) -> None:
    """Scale the rows and let bias, statistics and the scale of the BatchNorm follow."""
    weight, mean, variance = (tensors[name] for name in (layer.weight, layer.mean, layer.variance))
    shape = [-1 if dim == layer.row_dim else 1 for dim in range(weight.ndim)]
    old = variance.double()
    new = factor.square() * old
    if layer.scale is not None:
        correction = ((new + layer.eps) / (old + layer.eps)).sqrt() / factor
        tensors[layer.scale].mul_(correction)
    else:
        new = _without_scale(layer, tensors, factor)
    variance.copy_(new)
    mean.mul_(factor)
    weight.mul_(factor.reshape(shape))
    if layer.bias is not None:
        tensors[layer.bias].mul_(factor)
