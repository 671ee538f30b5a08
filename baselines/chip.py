"""CHIP: the channels whose feature maps the others can best replace are removed first.

Sui et al., "CHIP: CHannel Independence-based Pruning for Compact Neural Networks", NeurIPS 2021: with the maps of one
image as the rows of a matrix A, the independence of channel i is `||A||_* - ||A without row i||_*` (nuclear norms),
averaged over images. The maps are those that the next layer reads, after the activation. The authors average over 640
images (five batches of 128) and set a ratio per layer by hand; here 32 images are used, which is faster, and scores are
divided by their layer's mean, which matters where the order is global.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from baselines.channels import over_mean
from baselines.method import ImportanceSpec, Scoring
from oicsr import Coupling, Member
from oicsr.networks.copying import mode
from oicsr.networks.wrapping import unwrap

IMAGES = 32
NOISE = 1e-12  # eigenvalues below this share of the largest count as zero


@torch.no_grad()
def independence(model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> list[Tensor]:
    """Return the independence of each channel's feature maps over the coupling's mean, from up to 32 training images.

    The model runs in evaluation mode; its weights and statistics are left as they are.

    Raises:
        ValueError: There is no batch.
    """
    totals = [torch.zeros(coupling.num_channels, dtype=torch.float64) for coupling in couplings]
    count = 0
    for images, _ in scoring.batches():
        images = images[: IMAGES - count]
        for total, maps in zip(totals, feature_maps(model, couplings, images), strict=True):
            for image in maps:
                total += nuclear_losses(image).cpu()
        count += len(images)
        if count >= IMAGES:
            break
    if not count:
        raise ValueError("scoring.batches() gave no batch; channel independence needs data")
    return over_mean(totals)


def nuclear_losses(maps: Tensor) -> Tensor:
    """Return by how much the nuclear norm of a matrix falls where each of its rows is set to zero, float64 `(rows,)`.

    Singular values are the square roots of the eigenvalues of the smaller Gram matrix. Leaving out a row subtracts its
    outer product from the Gram matrix of the columns; in that of the rows, its row and column become zero.

    Args:
        maps: `(rows, columns)`.
    """
    rows = maps.double()  # (channels, pixels)
    if rows.shape[0] <= rows.shape[1]:
        gram = rows @ rows.T
        keep = 1 - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
        without = gram * keep[:, :, None] * keep[:, None, :]  # (channels, channels, channels)
    else:
        gram = rows.T @ rows
        without = gram - rows[:, :, None] * rows[:, None, :]  # (channels, pixels, pixels)
    return (_nuclear(gram) - _nuclear(without)).clamp(min=0)


def _nuclear(gram: Tensor) -> Tensor:
    values: Tensor = torch.linalg.eigvalsh(gram)
    rounding = NOISE * values.amax(-1, keepdim=True)  # its root would be a million times as large as it is
    return torch.where(values > rounding, values.clamp(min=0), 0).sqrt().sum(-1)


def feature_maps(model: nn.Module, couplings: Sequence[Coupling], images: Tensor) -> list[Tensor]:
    """Return what the first reading layer of each coupling gets of its channels, `(batch, channels, values)`.

    A reading layer that takes its inputs in groups is skipped; where no other is, it is what the first layer of
    the coupling gives, without activation.
    """
    model = unwrap(model)
    taps = [_tap(model, coupling) for coupling in couplings]
    with mode(model, training=False), _watched(model, taps) as seen:
        model(images)
    return [_by_channel(seen[i], member, c) for i, (c, (member, _)) in enumerate(zip(couplings, taps, strict=True))]


def _tap(model: nn.Module, coupling: Coupling) -> tuple[Member, bool]:
    """Return the member at whose layer a coupling is watched, and whether that is at the layer's input."""
    for member in coupling.members:
        layer = model.get_submodule(member.parameter.rpartition(".")[0])
        if member.counts and member.side == "in" and getattr(layer, "groups", 1) == 1:
            return member, True
    return next(m for m in coupling.members if m.counts and m.side == "out"), False


@contextmanager
def _watched(model: nn.Module, taps: Sequence[tuple[Member, bool]]) -> Iterator[dict[int, Tensor]]:
    """Keep what passes the layers of `taps` while the model runs, by position."""
    seen: dict[int, Tensor] = {}

    def hook(position: int, at_input: bool) -> object:
        """Return a hook that keeps what enters or leaves a layer."""

        def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            """Keep it under the layer's position."""
            seen[position] = (inputs[0] if at_input else output).detach().clone()

        return keep

    layers = [model.get_submodule(member.parameter.rpartition(".")[0]) for member, _ in taps]
    handles = [
        layer.register_forward_hook(hook(i, at_input))  # type: ignore[arg-type]
        for i, (layer, (_, at_input)) in enumerate(zip(layers, taps, strict=True))
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _by_channel(values: Tensor, member: Member, coupling: Coupling) -> Tensor:
    """Return the values of each channel on one line; shorter rows are padded with zeros."""
    axis = 1 if values.ndim > 2 else values.ndim - 1  # (batch, channels, height, width) or (batch, features)
    slices = values.movedim(axis, 1).flatten(2) if values.ndim > 2 else values[:, :, None]  # (batch, slices, pixels)
    own = [(member.channels == channel).nonzero().flatten() for channel in range(coupling.num_channels)]
    most = max(len(index) for index in own)
    lines = slices.new_zeros(len(slices), coupling.num_channels, most, slices.shape[2])
    for channel, index in enumerate(own):
        lines[:, channel, : len(index)] = slices[:, index.to(slices.device)]
    return lines.flatten(2)


CHIP = ImportanceSpec(
    name="chip",
    title="CHIP",
    score=independence,
    formula="mean over images of ‖A‖_* − ‖A with row i zero‖_*, where the rows of A are the layer's feature maps",
    source="Sui et al. 2021 (CHIP), 32 images",
    compared="Eclipsess/CHIP_NeurIPS2021: calculate_ci.py, calculate_feature_maps.py",
    differs="640 images; maps are taken right after the ReLU, before any pooling but the first, and rounded to four "
    "decimals",
    normalisation="divided by the mean of the layer's channels",
    sides=("out", "in", "norm"),
    degree=None,  # feature maps are not homogeneous in the weights
)
