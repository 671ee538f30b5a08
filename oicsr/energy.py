"""Channel energy: the one primitive that every penalty, importance and selection here is made of.

`oicsr.reference` holds its formulas; `oicsr.fast` computes them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from oicsr.coupling import Coupling, Side
from oicsr.fast import passes
from oicsr.fast.autograd import Energy, energy_operator
from oicsr.fast.eager import eager
from oicsr.fast.layout import Layout
from oicsr.reference import energy_type


def channel_energy(
    model: nn.Module, couplings: Sequence[Coupling], sides: Sequence[Side] = ("out", "in")
) -> list[Tensor]:
    r"""Return the energy of every channel: the summed square of the weights that belong to it.

    .. math:: E_i = \lVert W^l_{i,:} \rVert_2^2 + \lVert W^{l+1}_{:,i} \rVert_2^2

    for a plain pair of layers and both sides (Eq. 8 of Li et al. 2019, as reconstructed in PAPER.md). A depthwise or
    grouped filter counts on the out-side of the channel that it belongs to; a filter of a convolution with few, wide
    groups counts on both sides.

    Args:
        model: The network.
        couplings: Its couplings.
        sides: Which weights count: `"out"` (rows of the producing layers), `"in"` (columns of the reading layers),
            `"norm"` (scales of normalisation layers).

    Returns:
        One tensor `(num_channels,)` per coupling, differentiable with respect to the weights, with a backward of its
        own. Float32, also where weights are of half precision; float64 where a weight is. Complex weights count by
        their absolute values. Where no weight counts, the energy is zero. On any one device, the sums
        are taken in the same order in every run.

    Raises:
        ValueError: A side is unknown, or the couplings are not the model's: a name or a width differs.
    """
    layout = Layout.of(couplings, sides)
    return list(energy_vector(model, layout).split(layout.sizes))


def energy_vector(model: nn.Module, layout: Layout) -> Tensor:
    """Return the energies of all channels of all couplings as one vector, `(channels,)`, differentiable.

    For penalties of one's own: autograd takes the derivative, or `add_energy_gradient` adds it without. Inside
    `torch.compile` this is one opaque operator, `oicsr::energy`, forward and backward.

    Raises:
        ValueError: The layout is not the model's: a name or a width differs.

    Example:
        >>> import torch, oicsr
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> couplings = oicsr.find_couplings(network, torch.zeros(1, 4))
        >>> layout = oicsr.Layout.of(couplings, ("out", "in"))  # once
        >>> penalty = oicsr.energy_vector(network, layout).add(1e-3).log().sum()  # at every step
        >>> penalty.backward()
    """
    weights = layout.weights(model)
    if not weights:
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(0))
        return torch.zeros(layout.channels, dtype=energy_type([like]), device=like.device)
    if torch.compiler.is_compiling():
        return energy_operator(weights, layout.number, layout.channels, energy_type(weights))  # type: ignore[no-any-return]
    if not torch.is_grad_enabled():  # autograd's own bookkeeping takes longer than the energies of a small network
        plain = [weight.detach() for weight in weights]
        return passes.energies(plain, layout.table(plain))
    return Energy.apply(layout.table(weights), *weights)  # type: ignore[no-any-return]


@torch.no_grad()
@eager
def add_energy_gradient(model: nn.Module, layout: Layout, energy_grad: Tensor) -> None:
    r"""Add the gradient of a penalty on energies to `.grad` of the weights, without autograd.

    .. math:: \nabla_w \mathrel{+}= 2 w \Big( \frac{\partial P}{\partial E_{out(w)}}
        + \frac{\partial P}{\partial E_{in(w)}} \Big)

    A weight without `.grad` is given one; a sparse one (`nn.Embedding(sparse=True)`) becomes dense, as by autograd. A
    frozen weight is passed over. Nothing is copied to the host.

    Args:
        model: The network.
        layout: The layout that the energies were taken with.
        energy_grad: The derivative of the penalty by each energy, `(channels,)`.

    Raises:
        ValueError: `energy_grad` has another shape, or the layout is not the model's.
    """
    if energy_grad.shape != (layout.channels,):
        raise ValueError(f"energy_grad has shape {tuple(energy_grad.shape)}; the layout needs ({layout.channels},)")
    parameters = layout.weights(model)
    if not parameters:
        return
    table = layout.table(parameters)
    factors = 2 * energy_grad
    weights = [parameter.detach() for parameter in parameters]  # every operation on a plain tensor is quicker
    targets = [_dense_gradient(p) if p.requires_grad else None for p in parameters]
    passes.add_products_(targets, weights, table, factors)
    missing = [p.requires_grad and p.grad is None for p in parameters]
    if any(missing):
        for parameter, gradient in zip(parameters, passes.products(weights, missing, table, factors), strict=True):
            if gradient is not None:
                parameter.grad = gradient.to(parameter.dtype)  # the factors are wider where weights of two types mix


def _dense_gradient(parameter: Tensor) -> Tensor | None:
    """Return the gradient of a parameter, which is made dense where it is not."""
    if parameter.grad is not None and parameter.grad.layout is not torch.strided:
        parameter.grad = parameter.grad.to_dense()
    return parameter.grad
