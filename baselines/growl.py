"""Separated GrOWL: the ordered weighted norm over the in-channels of each layer.

Zhang et al., "Learning to Share", ICLR 2018, take the rows of a layer's matrix with inputs as rows: for a convolution
the in-channels, for a linear layer the input neurons. They apply the exact proximal operator once per epoch, with the
learning rate times λ as the step and a λ1 per layer; here one λ serves all layers and acts at every step, by
sub-gradient or by proximal operator.
"""

from __future__ import annotations

from collections.abc import Sequence

from baselines.method import PROXIMAL_STRENGTH, RegularizerSpec, grid_around
from oicsr import Coupling
from oicsr.growl import GrOWL, ProximalGrOWL


def in_channels(couplings: Sequence[Coupling], strength: float) -> GrOWL:
    """Build GrOWL over in-channels with the PLD sequence."""
    return GrOWL(couplings, sides=("in",), strength=strength)


def in_channels_oscar(couplings: Sequence[Coupling], strength: float) -> GrOWL:
    """Build GrOWL over in-channels with the OSCAR sequence."""
    return GrOWL(couplings, sides=("in",), strength=strength, weights="oscar")


def in_channels_proximal(couplings: Sequence[Coupling], strength: float) -> ProximalGrOWL:
    """Build GrOWL over in-channels with the PLD sequence, by its proximal operator."""
    return ProximalGrOWL(couplings, sides=("in",), strength=strength)


ZHANG = "Zhang et al. 2018 (GrOWL)"
VALUE = "Σ_l Σ_i θ_i ‖W^{l+1}_{:,[i]}‖₂, norms in descending order"
PLD = "θ_i = λ(1 + max(0, ⌊0.1 n⌋ − i)/70): layers with fewer than 20 channels get equal weights"
OSCAR = "θ_i = λ(1 + (n − i)/70)"
PENALISED = "the columns of the convolutions and linear layers that read prunable channels"
UNWEIGHTED = "none: groups are not weighted by their size; θ falls with the rank of a group in its layer"
DECAY = "the experiment's own (the authors add L2 of 2e-3 for VGG-16)"

CODE = "Dejiao2018/GrOWL: VGG/utils_GrOWL.py, VGG/run_exp.py, VGG/flags.py, MNIST/utils_OWL.py"
BY_LAYER = (
    "λ is set per layer by hand, and with it the ratio 1/70 (1/110 to 1/35); the last layer is left out; rows of zeros "
    "stay so; the network is then retrained with tied rows held equal"
)

GROWL = RegularizerSpec(
    name="growl",
    title="GrOWL (in)",
    make=in_channels,
    formula=f"{VALUE}; {PLD}",
    source=f"{ZHANG}, by sub-gradient",
    compared=CODE,
    differs=BY_LAYER,
    sides=("in",),
    penalised=PENALISED,
    normalisation=UNWEIGHTED,
    weight_decay_note=DECAY,
)

GROWL_OSCAR = RegularizerSpec(
    name="growl-oscar",
    title="GrOWL (in), OSCAR",
    make=in_channels_oscar,
    formula=f"{VALUE}; {OSCAR}",
    source=f"{ZHANG}, OSCAR weights, by sub-gradient",
    compared=CODE,
    differs=BY_LAYER,
    sides=("in",),
    penalised=PENALISED,
    normalisation=UNWEIGHTED,
    weight_decay_note=DECAY,
)

GROWL_PROX = RegularizerSpec(
    name="growl-prox",
    title="GrOWL (in), proximal",
    make=in_channels_proximal,
    formula=f"exact proximal operator of {VALUE}, after each step; {PLD}",
    source=f"{ZHANG}, at every step instead of once per epoch",
    compared=CODE,
    differs=BY_LAYER,
    sides=("in",),
    penalised=PENALISED,
    normalisation=UNWEIGHTED,
    weight_decay_note=DECAY,
    grid=grid_around(PROXIMAL_STRENGTH),
)
