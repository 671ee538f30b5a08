"""First-order Taylor: how much the loss would change, to first order, if the channel were multiplied by zero.

Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019: the squared gradient of the loss with
respect to a gate of 1 on the channel, summed over mini-batches. A gate on the channel scales all the weights that read
it, so its gradient is `Σ w ∂L/∂w` over the columns of the channel, and no gate is needed in the network.

`group-taylor` is the other common form, which torch-pruning and Isomorphic Pruning use: `Σ |w ∂L/∂w|` over all weights
of the channel, so that nothing cancels within it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from baselines.channels import channel_sums, counted, over_mean
from baselines.depgraph import TORCH_PRUNING
from baselines.method import ImportanceSpec, Scoring
from oicsr import Coupling
from oicsr.coupling import SIDES
from oicsr.networks.copying import mode
from oicsr.networks.wrapping import unwrap

BATCHES = 30  # mini-batches that the authors average over between two removals
GROUP_BATCHES = 50  # mini-batches whose gradients Isomorphic Pruning adds up


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
    read = {m.parameter for c in couplings for m in counted(c, ("in",))}
    gradients = weight_gradients(model, sorted(read), images, labels)
    with torch.no_grad():
        return channel_sums(model, couplings, ("in",), lambda name, weight: weight * gradients[name].to(weight.device))


def weight_gradients(model: nn.Module, names: Sequence[str], images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return the gradient of the cross-entropy of one batch by parameter; a scalar zero where there is none."""
    model = unwrap(model)
    weights = {name: p.detach().requires_grad_(p.is_floating_point()) for name, p in model.named_parameters()}
    with mode(model, training=False), torch.enable_grad():
        loss = functional.cross_entropy(functional_call(model, weights, (images,)), labels)
        found = torch.autograd.grad(loss, [weights[name] for name in names], allow_unused=True)
    return {name: torch.zeros(()) if g is None else g for name, g in zip(names, found, strict=True)}


def taylor_by_layer(model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> list[Tensor]:
    """Return the Taylor scores over the Euclidean norm of those of their layer.

    The normalisation of Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference",
    ICLR 2017, section 2.3.

    Raises:
        ValueError: There are no batches.
    """
    scores = taylor(model, couplings, scoring)
    return [score / torch.where(score.norm() > 0, score.norm(), 1) for score in scores]


def group_taylor(model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> list[Tensor]:
    """Return `Σ |w ∂L/∂w|` over all weights of each channel, over the coupling's mean, from up to 50 training batches.

    The gradients of all batches are added up before the absolute value is taken. The model runs in evaluation mode; its
    weights, gradients and statistics are left as they are.

    Raises:
        ValueError: There are no batches.
    """
    names = sorted({m.parameter for c in couplings for m in counted(c, SIDES)})
    total: dict[str, Tensor] = {}
    for images, labels in itertools.islice(scoring.batches(), GROUP_BATCHES):
        found = weight_gradients(model, names, images, labels)
        total = {name: total[name] + gradient for name, gradient in found.items()} if total else found
    if names and not total:
        raise ValueError("scoring.batches() gave no batch; the Taylor importance needs data")
    with torch.no_grad():
        return over_mean(channel_sums(model, couplings, SIDES, lambda n, w: (w * total[n].to(w.device)).abs()))


NVLABS = "NVlabs/Taylor_pruning: pruning_engine.py (method 22), main.py, configs/"
WHILE_TRAINING = (
    "the network goes on training, and is scored in training mode; 100 channels go after every 30 batches, by scores "
    "that are averaged over removals (momentum 0.9)"
)

TAYLOR = ImportanceSpec(
    name="taylor",
    title="Taylor-FO",
    score=taylor,
    formula="mean over batches of (Σ_{w in W^{l+1}_{:,i}} w ∂L/∂w)²",
    source="Molchanov et al. 2019, with a gate after each prunable channel",
    normalisation="none",
    sides=("out", "in", "norm"),  # through the gradient
    degree=None,  # the loss is not homogeneous in the weights
    compared=NVLABS,
    differs=f"{WHILE_TRAINING}; where residual blocks share channels, there is a gate behind each addition instead of "
    "before each layer that reads them, and the score is divided by about the number of blocks",
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
    compared=NVLABS,
    differs="as for `taylor`; the normalisation is an option of the authors' code that their configurations leave off",
)

GROUP_TAYLOR = ImportanceSpec(
    name="group-taylor",
    title="group Taylor",
    score=group_taylor,
    formula="Σ |w Σ_b ∂L_b/∂w| over W^l_{i,:}, W^{l+1}_{:,i} and γ_i, b over batches",
    source="Fang et al. 2024 (Isomorphic Pruning), as in torch-pruning",
    normalisation="divided by the mean of the layer's channels",
    sides=SIDES,
    degree=None,
    compared=f"VainF/Isomorphic-Pruning: prune.py; {TORCH_PRUNING}: importance.py (GroupTaylorImportance)",
    differs="neither depthwise filters nor the scales of BatchNorm count",
)
