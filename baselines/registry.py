"""The rivals by name. A new one needs its own file and one line here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

from baselines import anatomy
from baselines import energy_importance as energy
from baselines import torch_pruning_rival as peer
from baselines.activation_importance import FOLDED, SCALE_IN, SEEN
from baselines.cges import CGES, CGES_PROX
from baselines.chip import CHIP
from baselines.depgraph import DEPGRAPH, DEPGRAPH_NOSCALE, GROUP_NORM
from baselines.elementwise import L1_WEIGHTS, L2_WEIGHTS
from baselines.filter_norm import L1_NORM, L2_NORM
from baselines.fpgm import FPGM
from baselines.group_hoyer import GROUP_HOYER
from baselines.growing_reg import GREG1
from baselines.growl import GROWL, GROWL_OSCAR, GROWL_PROX
from baselines.half_space import HALF_SPACE
from baselines.hessian import HESSIAN, OBD_C, OBD_C_RAW
from baselines.hesso import HESSO
from baselines.isomorphic_selection import ISOMORPHIC
from baselines.lamp import LAMP
from baselines.method import GREEDY, ImportanceSpec, Method, RegularizerSpec, SelectionSpec
from baselines.network_slimming import BATCHNORM_SCALE, SLIMMING
from baselines.no_regularizer import NO_REGULARIZER
from baselines.polarization import POLARIZATION
from baselines.random_channels import RANDOM
from baselines.taylor import GROUP_TAYLOR, TAYLOR, TAYLOR_LAYER
from baselines.uniform_selection import UNIFORM


class Named(Protocol):
    """Anything with a name."""

    @property
    def name(self) -> str:
        """The key on the command line."""
        ...


T = TypeVar("T", bound=Named)


def by_name(entries: Iterable[T]) -> dict[str, T]:
    """Return the entries by name.

    Raises:
        ValueError: Two entries have the same name.
    """
    found: dict[str, T] = {}
    for entry in entries:
        if entry.name in found:
            raise ValueError(f"the name {entry.name!r} is given twice")
        found[entry.name] = entry
    return found


REGULARIZERS: dict[str, RegularizerSpec] = by_name(
    [
        NO_REGULARIZER,
        L1_WEIGHTS,
        L2_WEIGHTS,
        *anatomy.regularizers(),
        GROWL,
        GROWL_OSCAR,
        GROWL_PROX,
        CGES,
        CGES_PROX,
        SLIMMING,
        DEPGRAPH,
        DEPGRAPH_NOSCALE,
        GREG1,
        POLARIZATION,
        GROUP_HOYER,
        HALF_SPACE,
        HESSO,
        peer.TP_GROUP_NORM,
        peer.TP_BN_SCALE,
        peer.TP_GROWING_REG,
    ]
)

IMPORTANCES: dict[str, ImportanceSpec] = by_name(
    [
        energy.OUT_IN,
        energy.OUT_IN_RAW,
        energy.OUT_IN_SIZE,
        energy.OUT_IN_MAX,
        energy.OUT,
        energy.IN,
        energy.NORM,
        energy.OUT_NORM,
        energy.IN_NORM,
        energy.OUT_IN_NORM,
        SEEN,
        SCALE_IN,
        FOLDED,
        L1_NORM,
        L2_NORM,
        FPGM,
        BATCHNORM_SCALE,
        TAYLOR,
        TAYLOR_LAYER,
        GROUP_TAYLOR,
        HESSIAN,
        OBD_C,
        OBD_C_RAW,
        LAMP,
        CHIP,
        GROUP_NORM,
        RANDOM,
        peer.TP_GROUP_NORM_IMPORTANCE,
        peer.TP_BN_SCALE_IMPORTANCE,
        peer.TP_MAGNITUDE_IMPORTANCE,
    ]
)

SELECTIONS: dict[str, SelectionSpec] = by_name([GREEDY, UNIFORM, ISOMORPHIC])

PEER = "torch-pruning 1.6, with the shared selection and surgery"
COMPARED = "Li et al. 2019 (OICSR), a non-structured baseline of its comparison"

METHODS: dict[str, Method] = by_name(
    [
        Method("none", "No regulariser", NO_REGULARIZER, energy.OUT_IN, source="control"),
        Method("random", "Random channels", NO_REGULARIZER, RANDOM, source="control"),
        Method("l1", "L1-norm filters", NO_REGULARIZER, L1_NORM, source="Li et al. 2017 (PFEC)"),
        Method("l2", "L2-norm filters", NO_REGULARIZER, L2_NORM, source="He et al. 2018 (SFP), with hard removal"),
        Method("seen", "Expected next-layer contribution", NO_REGULARIZER, SEEN, source="control"),
        Method("scale-in", "Scale² × in energy", NO_REGULARIZER, SCALE_IN, source="control"),
        Method("folded", "Out-in energy, BatchNorm folded", NO_REGULARIZER, FOLDED, source="control"),
        Method("fpgm", "FPGM", NO_REGULARIZER, FPGM, source="He et al. 2019 (FPGM), with this suite's global ranking"),
        Method("fpgm-uniform", "FPGM, uniform", NO_REGULARIZER, FPGM, UNIFORM, source="He et al. 2019 (FPGM)"),
        Method("taylor", "Taylor-FO", NO_REGULARIZER, TAYLOR, source="Molchanov et al. 2019"),
        Method(
            "taylor-layer",
            "Taylor-FO, layer-normalised",
            NO_REGULARIZER,
            TAYLOR_LAYER,
            source="Molchanov et al. 2017, 2019",
        ),
        Method("l1-weights", "L1 (non-structured)", L1_WEIGHTS, energy.OUT_IN, source=COMPARED),
        Method("l2-weights", "L2 (non-structured)", L2_WEIGHTS, energy.OUT_IN, source=COMPARED),
        *anatomy.methods(),
        Method(
            "gl-out-oi",
            "Group Lasso (out), out-in importance",
            REGULARIZERS["gl-out"],
            energy.OUT_IN,
            source="control",
        ),
        Method("growl", "GrOWL (in)", GROWL, energy.IN, source="Zhang et al. 2018 (GrOWL)"),
        Method("growl-oscar", "GrOWL (in), OSCAR", GROWL_OSCAR, energy.IN, source="Zhang et al. 2018 (GrOWL)"),
        Method("growl-prox", "GrOWL (in), proximal", GROWL_PROX, energy.IN, source="Zhang et al. 2018 (GrOWL)"),
        Method("cges-prox", "CGES (in), proximal", CGES_PROX, energy.IN, source="Yoon and Hwang 2017 (CGES)"),
        Method("cges", "CGES (in)", CGES, energy.IN, source="Yoon and Hwang 2017 (CGES)"),
        Method("slimming", "Network Slimming", SLIMMING, BATCHNORM_SCALE, source="Liu et al. 2017"),
        Method(
            "slimming-absorb",
            "Network Slimming, shifts absorbed",
            SLIMMING,
            BATCHNORM_SCALE,
            source="Liu et al. 2017, with the constants of removed channels absorbed",
            strength_of="slimming",
            absorb=True,
        ),
        Method("depgraph", "DepGraph group norm", DEPGRAPH, GROUP_NORM, source="Fang et al. 2023 (DepGraph)"),
        Method(
            "depgraph-noscale",
            "DepGraph group norm without scale",
            DEPGRAPH_NOSCALE,
            energy.OUT_IN_MAX,
            source="control",
        ),
        Method(
            "polarization", "Polarization", POLARIZATION, BATCHNORM_SCALE, source="Zhuang et al. 2020 (Polarization)"
        ),
        Method("group-hoyer", "Group-HS", GROUP_HOYER, energy.OUT_IN, source="Yang et al. 2020 (DeepHoyer)"),
        Method("half-space", "OTO (HSPG)", HALF_SPACE, energy.OUT_NORM, source="Chen et al. 2021 (OTO)"),
        Method("hesso", "HESSO", HESSO, energy.OUT_NORM, source="Chen et al. 2024 (HESSO)"),
        Method("hessian", "Group Hessian", NO_REGULARIZER, HESSIAN, source="LeCun et al. 1989 (OBD), over groups"),
        Method("obd-c", "C-OBD", NO_REGULARIZER, OBD_C, source="Wang et al. 2019 (EigenDamage)"),
        Method("lamp", "LAMP", NO_REGULARIZER, LAMP, source="Lee et al. 2021 (LAMP), over groups"),
        Method(
            "chip",
            "CHIP",
            NO_REGULARIZER,
            CHIP,
            UNIFORM,
            source="Sui et al. 2021 (CHIP), with the same share of every layer",
        ),
        Method(
            "isomorphic",
            "Isomorphic Pruning",
            NO_REGULARIZER,
            TAYLOR_LAYER,
            ISOMORPHIC,
            source="Fang et al. 2024, with another score (theirs: `none+group-taylor+isomorphic`)",
        ),
        Method("greg1", "GReg-1", GREG1, L1_NORM, source="Wang et al. 2021 (GReg-1)"),
        Method(
            "tp-group-norm",
            "torch-pruning GroupNorm",
            peer.TP_GROUP_NORM,
            peer.TP_GROUP_NORM_IMPORTANCE,
            source=PEER,
        ),
        Method("tp-bn-scale", "torch-pruning BNScale", peer.TP_BN_SCALE, peer.TP_BN_SCALE_IMPORTANCE, source=PEER),
        Method(
            "tp-growing-reg",
            "torch-pruning GrowingReg",
            peer.TP_GROWING_REG,
            peer.TP_MAGNITUDE_IMPORTANCE,
            source=PEER,
        ),
        Method("dense-long", "Dense (all epochs)", NO_REGULARIZER, energy.OUT_IN, source="control", unpruned=True),
        Method("tp-magnitude", "torch-pruning magnitude", NO_REGULARIZER, peer.TP_MAGNITUDE_IMPORTANCE, source=PEER),
    ]
)
