"""Second-order importances: how much the loss grows, to second order, if a channel is set to zero.

Optimal Brain Damage (LeCun, Denker, Solla, NeurIPS 1989) gives a weight w the saliency `h w² / 2`, where h is the
diagonal of the loss's Hessian at a minimum. The literature has two forms for channels. Both use the empirical Fisher
diagonal (the mean over images of the squared gradient of one image's loss) instead of h, and drop the factor 1/2:

- `hessian`: all the weights of the channel, on every side (torch-pruning's group Hessian);
- `obd-c`: its filters alone (C-OBD of Wang et al., "EigenDamage", ICML 2019).

`obd-c-raw` is C-OBD as its authors run it: labels are drawn from what the network predicts, which gives the diagonal of
the true Fisher information, and the scores of different layers are compared as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from baselines.channels import channel_sums, counted, over_mean
from baselines.depgraph import TORCH_PRUNING
from baselines.method import ImportanceSpec, Score, Scoring
from oicsr import Coupling
from oicsr.coupling import SIDES, Side
from oicsr.networks.copying import mode
from oicsr.networks.wrapping import unwrap

IMAGES = 256  # at most
CHUNK = 16  # images whose gradients are held at once


def _score(sides: Sequence[Side]) -> Score:
    def score(model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> list[Tensor]:
        """Return Σ h w² of each channel over the coupling's mean, h from up to 256 training images and their labels.

        The model runs in evaluation mode; its weights, gradients and statistics are left as they are.

        Raises:
            ValueError: There is no batch.
        """
        return over_mean(saliencies(model, couplings, sides, scoring.batches()))

    return score


def raw_filters(model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> list[Tensor]:
    """Return Σ h w² of each channel's filters, h from up to 256 training images and labels drawn for them.

    The model runs in evaluation mode; its weights, gradients and statistics are left as they are.

    Raises:
        ValueError: There is no batch.
    """
    drawn = ((images, drawn_labels(model, images, scoring.generator)) for images, _ in scoring.batches())
    return saliencies(model, couplings, ("out",), drawn)


def drawn_labels(model: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
    """Return a label for each image, `(batch,)`, drawn from the probabilities that the model gives to the classes."""
    with mode(model, training=False), torch.no_grad():
        probabilities = model(images).softmax(1).cpu()
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0].to(images.device)


def saliencies(
    model: nn.Module, couplings: Sequence[Coupling], sides: Sequence[Side], batches: Iterable[tuple[Tensor, Tensor]]
) -> list[Tensor]:
    """Return Σ h w² over the weights of each channel on some sides, `(num_channels,)` per coupling.

    Raises:
        ValueError: There is no batch.
    """
    read = {m.parameter for c in couplings for m in counted(c, sides)}
    fisher = fisher_diagonal(model, sorted(read), batches)
    with torch.no_grad():
        return channel_sums(model, couplings, sides, lambda n, w: w.square() * fisher[n].to(w.device))


def fisher_diagonal(
    model: nn.Module, names: Sequence[str], batches: Iterable[tuple[Tensor, Tensor]], images: int = IMAGES
) -> dict[str, Tensor]:
    """Return the mean square of the gradient of one image's cross-entropy, by parameter.

    Args:
        model: The network.
        names: The parameters.
        batches: Images and labels.
        images: How many to use at most.

    Raises:
        ValueError: There is no batch.
    """
    model = unwrap(model)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    chosen = {name: weights.pop(name) for name in names}

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        """Return the cross-entropy of one image, as a function of the chosen parameters."""
        return functional.cross_entropy(functional_call(model, parameters | weights, (image[None],)), label[None])

    gradients = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")
    total = {name: torch.zeros_like(weight) for name, weight in chosen.items()}
    count = 0
    with mode(model, training=False):
        for inputs, labels in batches:
            left = images - count
            for part, targets in zip(inputs[:left].split(CHUNK), labels[:left].split(CHUNK), strict=True):
                for name, gradient in gradients(chosen, part, targets).items():
                    total[name] += gradient.square().sum(0)
                count += len(part)
            if count >= images:
                break
    if not count:
        raise ValueError("scoring.batches() gave no batch; a second-order importance needs data")
    return {name: value / count for name, value in total.items()}


FISHER = "h = mean over images of (∂L/∂w)²"
MEAN = "divided by the mean of the layer's channels"

HESSIAN = ImportanceSpec(
    name="hessian",
    title="group Hessian",
    score=_score(SIDES),
    formula=f"Σ h w² over W^l_{{i,:}}, W^{{l+1}}_{{:,i}} and γ_i; {FISHER}",
    source="LeCun et al. 1989 (OBD) over groups, as in torch-pruning",
    compared=f"{TORCH_PRUNING}: importance.py (GroupHessianImportance)",
    differs="depthwise filters do not count; by a mistake in its sum over images, h is that of the last image alone",
    normalisation=MEAN,
    sides=SIDES,
    degree=None,  # the loss is not homogeneous in the weights
)

OBD_C = ImportanceSpec(
    name="obd-c",
    title="C-OBD",
    score=_score(("out",)),
    formula=f"Σ h w² over W^l_{{i,:}}; {FISHER}",
    source="Wang et al. 2019 (EigenDamage), C-OBD with the empirical Fisher diagonal",
    compared="alecwangcq/EigenDamage-Pytorch: pruner/fisher_diag_pruner.py, pruner/kfac_full_pruner.py, configs/",
    differs="labels are drawn from the network's predictions (the true Fisher diagonal), over all training images; "
    "biases count; scores are not normalised (`obd-c-raw`)",
    normalisation=MEAN,
    sides=("out",),
    degree=None,
)

OBD_C_RAW = replace(
    OBD_C,
    name="obd-c-raw",
    title="C-OBD, true Fisher",
    score=raw_filters,
    formula=f"Σ h w² over W^l_{{i,:}}; {FISHER}, its label drawn from the network's predictions",
    source="Wang et al. 2019 (EigenDamage), C-OBD",
    normalisation="none",
    differs="all training images are used; biases count",
)
