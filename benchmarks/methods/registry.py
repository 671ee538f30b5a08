"""All methods: OICSR and its rivals. The paper's claim is the one line in which they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import baselines
from baselines import cges, growl
from baselines.cges import Cges
from baselines.energy_importance import OUT_IN
from baselines.method import (
    PROXIMAL_STRENGTH,
    Ending,
    ImportanceSpec,
    Method,
    RegularizerSpec,
    SelectionSpec,
    grid_around,
)
from baselines.registry import by_name
from baselines.uniform_selection import UNIFORM
from benchmarks.methods.combination import resolve
from oicsr import Coupling, GroupLasso, ProximalGroupLasso
from oicsr.growl import GrOWL, ProximalGrOWL

LI = "Li et al. 2019 (OICSR)"


def out_in(couplings: Sequence[Coupling], strength: float) -> GroupLasso:
    """Build OICSR-GL: an out-channel and the in-channel that reads it are one group."""
    return GroupLasso(couplings, sides=("out", "in"), strength=strength)


OICSR_GL = RegularizerSpec(
    name="oicsr-gl",
    title="OICSR-GL",
    make=out_in,
    formula="λ Σ_l Σ_i √(‖W^l_{i,:}‖₂² + ‖W^{l+1}_{:,i}‖₂²)",
    source=f"{LI}, Eq. 4 as reconstructed in PAPER.md",
    penalised="filters and columns of prunable channels as one group: convolutions (depthwise included), linear layers",
    normalisation="none: groups are not weighted by their size",
    weight_decay_note="the experiment's own (the paper's is unknown)",
)


def out_in_proximal(couplings: Sequence[Coupling], strength: float) -> ProximalGroupLasso:
    """Build OICSR-GL as a proximal step, which makes whole out-in-channels exactly zero."""
    return ProximalGroupLasso(couplings, sides=("out", "in"), strength=strength)


def growl_out_in(couplings: Sequence[Coupling], strength: float) -> GrOWL:
    """Build OICSR-GrOWL with the PLD sequence."""
    return GrOWL(couplings, sides=("out", "in"), strength=strength)


def growl_out_in_oscar(couplings: Sequence[Coupling], strength: float) -> GrOWL:
    """Build OICSR-GrOWL with the OSCAR sequence."""
    return GrOWL(couplings, sides=("out", "in"), strength=strength, weights="oscar")


def growl_out_in_proximal(couplings: Sequence[Coupling], strength: float) -> ProximalGrOWL:
    """Build OICSR-GrOWL as a proximal step."""
    return ProximalGrOWL(couplings, sides=("out", "in"), strength=strength)


def cges_out_in(couplings: Sequence[Coupling], strength: float) -> Cges:
    """Build CGES over out-in-channels."""
    return Cges(couplings, ("out", "in"), strength)


OVERLAP = "a weight in two groups is scaled by both factors"

GROUP = "g_i = W^l_{i,:} ⊕ W^{l+1}_{:,i}"

GROWL_VALUE = f"Σ_l Σ_i θ_i ‖g_[i]‖₂, norms in descending order, {GROUP}"

OICSR_GL_PROX = replace(
    OICSR_GL,
    name="oicsr-gl-prox",
    title="OICSR-GL, proximal",
    make=out_in_proximal,
    formula=f"g_i ← max(0, 1 − ηλ/‖g_i‖₂) g_i after each step of size η, {GROUP}; {OVERLAP}",
    source=f"{LI}, Eq. 4, as a proximal step (whether the authors use it is unknown)",
    grid=grid_around(PROXIMAL_STRENGTH),
)

OICSR_GROWL = replace(
    OICSR_GL,
    name="oicsr-growl",
    title="OICSR-GrOWL",
    make=growl_out_in,
    formula=f"{GROWL_VALUE}; {growl.PLD}",
    source=f"{LI}: GrOWL in its general form; with the sequence of Zhang et al. 2018 (the paper's is unknown)",
    normalisation=growl.UNWEIGHTED,
)

OICSR_GROWL_OSCAR = replace(
    OICSR_GROWL,
    name="oicsr-growl-oscar",
    title="OICSR-GrOWL, OSCAR",
    make=growl_out_in_oscar,
    formula=f"{GROWL_VALUE}; {growl.OSCAR}",
)

OICSR_GROWL_PROX = replace(
    OICSR_GROWL,
    name="oicsr-growl-prox",
    title="OICSR-GrOWL, proximal",
    make=growl_out_in_proximal,
    formula=f"proximal operator of {GROWL_VALUE}, after each step; {OVERLAP}; {growl.PLD}",
    grid=grid_around(PROXIMAL_STRENGTH),
)

OICSR_CGES = replace(
    OICSR_GL,
    name="oicsr-cges",
    title="OICSR-CGES",
    make=cges_out_in,
    formula=f"λ Σ_l Σ_i ((1 − μ_l) ‖g_i‖₂ + (μ_l/2) ‖g_i‖₁²), {GROUP}; {cges.MU}",
    source=f"{LI}: the general form, which this suite applies to {cges.YOON}",
    normalisation=cges.NORMALISATION,
    grid=cges.CGES.grid,
    degree=None,  # a sum of degrees 1 and 2
)

OURS = [OICSR_GL, OICSR_GL_PROX, OICSR_GROWL, OICSR_GROWL_OSCAR, OICSR_GROWL_PROX, OICSR_CGES]

REGULARIZERS: dict[str, RegularizerSpec] = by_name([*OURS, *baselines.REGULARIZERS.values()])

IMPORTANCES: dict[str, ImportanceSpec] = baselines.IMPORTANCES

SELECTIONS: dict[str, SelectionSpec] = baselines.SELECTIONS


def _from_scratch(name: str, title: str, ending: Ending) -> Method:
    """Return a control that keeps the shape OICSR-GL finds but not its weights (Liu et al. 2019).

    It begins with the random weights that the dense network began with, those of the channels that stay (the rewinding
    of Frankle and Carbin 2019), not with new ones as there.
    """
    return Method(name, title, OICSR_GL, OUT_IN, source="control", ending=ending, strength_of=OICSR_GL.name)


METHODS: dict[str, Method] = by_name(
    [
        *(Method(spec.name, spec.title, spec, OUT_IN, source=spec.source) for spec in OURS),
        Method("oicsr-gl-uniform", "OICSR-GL, uniform", OICSR_GL, OUT_IN, UNIFORM, source="control for the selection"),
        _from_scratch("scratch-e", "Scratch-E (equal epochs)", "scratch-epochs"),
        _from_scratch("scratch-b", "Scratch-B (equal compute)", "scratch-compute"),
        *baselines.METHODS.values(),
    ]
)


def find_method(text: str) -> Method:
    """Return the method that `text` names.

    Args:
        text: A registered method, or any combination `regularizer+importance` or `regularizer+importance+selection`
            of registered parts, such as `oicsr-gl+taylor+uniform`.

    Raises:
        ValueError: A name is unknown (says the nearest one), or the combination has too many parts.
    """
    return resolve(text, METHODS, REGULARIZERS, IMPORTANCES, SELECTIONS)
