"""OICSR: out-in-channel sparsity regularisation (Li et al., CVPR 2019) for any network and any training loop."""

from oicsr.absorption import Absorption, AbsorptionWarning, plan_absorption
from oicsr.algorithm import PruningResult, prune_iteratively
from oicsr.complexity import count_macs, count_params
from oicsr.coupling import Coupling, Member
from oicsr.description import Description, describe
from oicsr.energy import add_energy_gradient, channel_energy, energy_vector
from oicsr.fast.layout import Layout
from oicsr.growl import GrOWL, ProximalGrOWL
from oicsr.importance import out_in_energy
from oicsr.limits import DEFAULT_CAP, PAPER_CAP
from oicsr.networks.wrapping import unwrap
from oicsr.opened.attention import OpenAttention, open_attention
from oicsr.penalties import (
    DEFAULT_STRENGTH,
    GradientRegularizer,
    GroupLasso,
    ProximalRegularizer,
    Regularizer,
    ScheduledRegularizer,
    group_lasso,
)
from oicsr.plan import PruningPlan, shrink_couplings
from oicsr.proving.proof import Proof, prove
from oicsr.proximal import ProximalGroupLasso
from oicsr.pruning import prune
from oicsr.reach import OutOfReachError
from oicsr.recalibration import recalibrate
from oicsr.rescaling import Rescaling, rescale, row_norms
from oicsr.rules import register_rule
from oicsr.selection import select_channels
from oicsr.strength import suggest_strength, weak_energy
from oicsr.surgery import load_pruned, remove_channels, save_pruned
from oicsr.ties import tie_couplings
from oicsr.tracing.approximate import ApproximateWarning
from oicsr.tracing.trace import Trace, UnprunedChannelsWarning, UntriedWarning, find_couplings, trace_couplings
from oicsr.twins import UntiedWarning

__version__ = "0.1.0"

__all__ = [
    "DEFAULT_CAP",
    "DEFAULT_STRENGTH",
    "PAPER_CAP",
    "Absorption",
    "AbsorptionWarning",
    "ApproximateWarning",
    "Coupling",
    "Description",
    "GrOWL",
    "GradientRegularizer",
    "GroupLasso",
    "Layout",
    "Member",
    "OpenAttention",
    "OutOfReachError",
    "Proof",
    "ProximalGrOWL",
    "ProximalGroupLasso",
    "ProximalRegularizer",
    "PruningPlan",
    "PruningResult",
    "Regularizer",
    "Rescaling",
    "ScheduledRegularizer",
    "Trace",
    "UnprunedChannelsWarning",
    "UntiedWarning",
    "UntriedWarning",
    "add_energy_gradient",
    "channel_energy",
    "count_macs",
    "count_params",
    "describe",
    "energy_vector",
    "find_couplings",
    "group_lasso",
    "load_pruned",
    "open_attention",
    "out_in_energy",
    "plan_absorption",
    "prove",
    "prune",
    "prune_iteratively",
    "recalibrate",
    "register_rule",
    "remove_channels",
    "rescale",
    "row_norms",
    "save_pruned",
    "select_channels",
    "shrink_couplings",
    "suggest_strength",
    "tie_couplings",
    "trace_couplings",
    "unwrap",
    "weak_energy",
]
