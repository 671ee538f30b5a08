"""The anatomy of Group Lasso over channels: which sides form a group, jointly or separately, and how the penalty acts.

A channel has up to three sides: the filter that produces it (`out`), the columns that read it (`in`) and the scale of
the normalisation layer between them (`norm`). Every selection of sides gives a penalty. Two or three sides form one
group (`joint`) or one group each. The penalty acts through its sub-gradient or its proximal operator. `GROUPS` lists
all of them, and everything else here follows from it. One entry is missing on purpose: out and in as one group is
OICSR-GL itself, which is defined with the method (`benchmarks`).

Some have a name in the literature. SSL (Wen et al., "Learning Structured Sparsity in Deep Neural Networks", NeurIPS
2016) penalises the filters of each layer, `sum_l sum_i ||W^l_{i,:}||_2`, or its channels, `sum_l sum_i
||W^{l+1}_{:,i}||_2`, by plain sub-gradient and without a factor for the size of the group. With one BatchNorm per
channel, `norm` alone is Network Slimming. The rest are controls: they show what each side contributes, and what joining
sides contributes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from baselines import energy_importance as energy
from baselines.method import PROXIMAL_STRENGTH, USUAL_GRID, Method, RegularizerSpec, grid_around
from oicsr import Coupling, GroupLasso, ProximalGroupLasso
from oicsr.coupling import Side

SSL = "Wen et al. 2016 (SSL)"
SSL_CODE = "wenwei202/caffe, branch scnn: src/caffe/solvers/sgd_solver.cpp"
CONTROL = "control"
OF_SSL = " (SSL's CIFAR-10 example trains with 0, its ResNet-20 with 1e-4)"


@dataclass(frozen=True)
class Group:
    """What is penalised together.

    Attributes:
        name: Key of the penalty by sub-gradient; its proximal form is `name-prox`.
        title: Name in tables and plots.
        sides: The sides of a channel that are penalised.
        joint: Whether they are one group, or one group each.
        source: Where the penalty comes from.
    """

    name: str
    title: str
    sides: tuple[Side, ...]
    joint: bool = True
    source: str = CONTROL


GROUPS = (
    Group("gl-out", "Group Lasso (out)", ("out",), source=SSL),
    Group("gl-in", "Group Lasso (in)", ("in",), source=SSL),
    Group("gl-norm", "Group Lasso (scale)", ("norm",)),
    Group("gl-out-norm", "Group Lasso (joint out and scale)", ("out", "norm")),
    Group("gl-in-norm", "Group Lasso (joint in and scale)", ("in", "norm")),
    Group("oicsr-gl-norm", "OICSR-GL with scale", ("out", "in", "norm")),
    Group("gl-separate", "Group Lasso (separate out and in)", ("out", "in"), joint=False),
    Group("gl-separate-out-norm", "Group Lasso (separate out and scale)", ("out", "norm"), joint=False),
    Group("gl-separate-in-norm", "Group Lasso (separate in and scale)", ("in", "norm"), joint=False),
    Group("gl-separate-out-in-norm", "Group Lasso (separate out, in and scale)", ("out", "in", "norm"), joint=False),
)

NORMS: dict[Side, str] = {"out": "‖W^l_{i,:}‖₂", "in": "‖W^{l+1}_{:,i}‖₂", "norm": "|γ_i|"}
MEMBERS: dict[Side, str] = {"out": "W^l_{i,:}", "in": "W^{l+1}_{:,i}", "norm": "γ_i"}
WORDS: dict[Side, str] = {
    "out": "filters (of convolutions, depthwise and grouped ones included, and of linear layers)",
    "in": "columns (of the convolutions and linear layers that read the channel)",
    "norm": "scales of normalisation layers",
}


def group_lasso(sides: Sequence[Side], joint: bool, couplings: Sequence[Coupling], strength: float) -> GroupLasso:
    """Build a penalty that acts by its sub-gradient."""
    return GroupLasso(couplings, sides, strength, joint=joint)


def proximal_group_lasso(
    sides: Sequence[Side], joint: bool, couplings: Sequence[Coupling], strength: float
) -> ProximalGroupLasso:
    """Build a penalty that acts by its proximal operator."""
    return ProximalGroupLasso(couplings, sides, strength, joint=joint)


def regularizers() -> list[RegularizerSpec]:
    """Return the penalty of every group, by sub-gradient and by proximal operator."""
    return [_compared(spec) for group in GROUPS for spec in (_by_gradient(group), _by_proximal_step(group))]


def methods() -> list[Method]:
    """Return every penalty with the importance that fits it: the energy of the sides that it shrinks."""
    importances = {group.name: energy.of(group.sides) for group in GROUPS}
    return [
        Method(spec.name, spec.title, spec, importances[spec.name.removesuffix("-prox")], source=spec.source)
        for spec in regularizers()
    ]


def _by_gradient(group: Group) -> RegularizerSpec:
    return RegularizerSpec(
        name=group.name,
        title=group.title,
        make=partial(group_lasso, group.sides, group.joint),
        formula=f"λ Σ_l Σ_i {_norm(group)}",
        source=group.source,
        penalised=_penalised(group),
        normalisation="none: groups are not weighted by their size",
        sides=group.sides,
        weight_decay_note=f"the experiment's own{OF_SSL if group.source != CONTROL else ''}",
        grid=grid_around(1e-4) if group.sides == ("norm",) else USUAL_GRID,  # it is Network Slimming
    )


def _by_proximal_step(group: Group) -> RegularizerSpec:
    members = [MEMBERS[side] for side in group.sides]
    groups = f"g = {' ⊕ '.join(members)}" if group.joint else f"for each g among {', '.join(members)}"
    overlap = "; a weight in two groups is scaled by both factors" if {"out", "in"} <= {*group.sides} else ""
    return RegularizerSpec(
        name=f"{group.name}-prox",
        title=f"{group.title}, proximal",
        make=partial(proximal_group_lasso, group.sides, group.joint),
        formula=f"g ← max(0, 1 − ηλ/‖g‖₂) g after each step of size η, {groups}{overlap}",
        source=f"{group.source}, with the proximal operator instead of the sub-gradient",
        penalised=_penalised(group),
        normalisation="none: groups are not weighted by their size",
        sides=group.sides,
        weight_decay_note="the experiment's own",
        grid=grid_around(PROXIMAL_STRENGTH),
    )


def _compared(spec: RegularizerSpec) -> RegularizerSpec:
    """Add what a penalty from the literature was compared with."""
    if not spec.source.startswith(SSL):
        return spec
    return replace(spec, compared=SSL_CODE, differs="λ has a factor for each layer, set by hand")


def _norm(group: Group) -> str:
    norms = [NORMS[side] for side in group.sides]
    if len(norms) == 1:
        return norms[0]
    if not group.joint:
        return f"({' + '.join(norms)})"
    return f"√({' + '.join('γ_i²' if norm == NORMS['norm'] else f'{norm}²' for norm in norms)})"


def _penalised(group: Group) -> str:
    words = "; ".join(WORDS[side] for side in group.sides)
    if len(group.sides) == 1:
        return f"prunable channels: {words}"
    return f"prunable channels, {'as one group' if group.joint else 'as separate groups'}: {words}"
