"""First-order Taylor: how much the loss would change, to first order, if the channel were multiplied by zero.

Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019: the squared gradient of the loss with
respect to a gate of 1 on the channel, summed over mini-batches. A gate on the channel scales all the weights that read
it, so its gradient is `Σ w ∂L/∂w` over the columns of the channel, and no gate is needed in the network.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from baselines.channels import channel_sums
from baselines.method import ImportanceSpec, Scoring
from oicsr import Coupling
from oicsr.copying import mode

BATCHES = 30  # mini-batches that the authors average over between two removals


def taylor(model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> list[Tensor]:
    """Return the squared gradient of each channel's gate, averaged over up to 30 batches of training data.

    The model runs in evaluation mode; its weights, gradients and statistics are left as they are.

    Raises:
        ValueError: There are no batches.
    """
    total: list[Tensor] | None = None
    count = 0
    for images, labels in itertools.islice(scoring.batches(), BATCHES):
        squares = [gate.square() for gate in gate_gradients(model, couplings, images, labels)]
        total = squares if total is None else [t + s for t, s in zip(total, squares, strict=True)]
        count += 1
    if total is None:
        raise ValueError("scoring.batches() gave no batch; the Taylor importance needs data")
    return [t / count for t in total]


def gate_gradients(model: nn.Module, couplings: Sequence[Coupling], images: Tensor, labels: Tensor) -> list[Tensor]:
    """Return the gradient of the cross-entropy with respect to a gate on every channel, for one batch."""
    weights = {name: p.detach().requires_grad_(p.is_floating_point()) for name, p in model.named_parameters()}
    with mode(model, training=False), torch.enable_grad():
        loss = functional.cross_entropy(functional_call(model, weights, (images,)), labels)
        read = sorted({m.parameter for c in couplings for m in c.members if m.side == "in" and m.counts})
        found = torch.autograd.grad(loss, [weights[name] for name in read], allow_unused=True)
    gradients = {name: torch.zeros(()) if g is None else g for name, g in zip(read, found, strict=True)}
    with torch.no_grad():
        return channel_sums(model, couplings, ("in",), lambda name, weight: weight * gradients[name].to(weight.device))


def taylor_by_layer(model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> list[Tensor]:
    """Return the Taylor scores over the Euclidean norm of those of their layer.

    The normalisation of Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference",
    ICLR 2017, section 2.3.

    Raises:
        ValueError: There are no batches.
    """
    scores = taylor(model, couplings, scoring)
    return [score / torch.where(score.norm() > 0, score.norm(), 1) for score in scores]


TAYLOR = ImportanceSpec(
    name="taylor",
    title="Taylor-FO",
    score=taylor,
    formula="mean over batches of (Σ_{w in W^{l+1}_{:,i}} w ∂L/∂w)²",
    source="Molchanov et al. 2019, with a gate after each prunable channel",
    normalisation="none",
    sides=("out", "in", "norm"),  # through the gradient
    degree=None,  # the loss is not homogeneous in the weights
)

TAYLOR_LAYER = ImportanceSpec(
    name="taylor-layer",
    title="Taylor-FO, layer-normalised",
    score=taylor_by_layer,
    formula="T_i / √(Σ_j T_j²) over the layer, where T_i = mean over batches of (Σ_{w in W^{l+1}_{:,i}} w ∂L/∂w)²",
    source="Molchanov et al. 2019, with the layer normalisation of Molchanov et al. 2017",
    normalisation="divided by the Euclidean norm of the layer's scores",
    sides=("out", "in", "norm"),
    degree=None,
)
