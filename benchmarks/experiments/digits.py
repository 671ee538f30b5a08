"""Handwritten digits, complete: every method, ten seeds, four targets, on two CPU cores.

Command: `make digits` (hours; run `python -m benchmarks tune digits` first if the tuning record is missing). Claim: all
that a small network can show. Digits are easy and the network is small: what holds here may not hold elsewhere.
Lengths and rates are the demo's, so that the demo is a part of this study. `digits-iterative` and
`digits-cap50` change one part each.
"""

from benchmarks.config import Experiment, Phase, Profile

# listed explicitly: a method registered later must not change a published experiment
METHODS = (
    "oicsr-gl",
    "oicsr-gl-prox",
    "oicsr-growl",
    "oicsr-growl-oscar",
    "oicsr-growl-prox",
    "oicsr-cges",
    "oicsr-gl-uniform",
    "scratch-e",
    "scratch-b",
    "none",
    "random",
    "l1",
    "l2",
    "fpgm",
    "taylor",
    "l1-weights",
    "l2-weights",
    "gl-out",
    "gl-out-oi",
    "gl-out-prox",
    "gl-in",
    "gl-separate",
    "growl",
    "growl-oscar",
    "growl-prox",
    "cges",
    "slimming",
    "depgraph",
    "greg1",
    "tp-group-norm",
    "tp-bn-scale",
    "tp-growing-reg",
    "dense-long",
    "tp-magnitude",
    "oicsr-gl-norm",
    "oicsr-gl-norm-prox",
    "gl-in-norm",
    "gl-in-norm-prox",
    "depgraph-noscale",
    "slimming-absorb",
    "seen",
    "scale-in",
    "folded",
    "taylor-layer",
    "fpgm-uniform",
    "isomorphic",
    "lamp",
    "hessian",
    "obd-c",
    "chip",
    "cges-prox",
    "polarization",
    "group-hoyer",
    "half-space",
    "hesso",
)

# other importances on the weights of one regulariser, at the strength tuned for it
SAME_WEIGHTS = (
    "oicsr-gl+out",
    "oicsr-gl+in",
    "gl-separate+out",
    "none+out",
    "oicsr-gl+out-in-raw",
    "oicsr-gl+out-in-size",
    "oicsr-gl+out-in-max",
)

# The usual grids are too weak for these here: their strongest value was best. Five strengths each, in factors of two.
GRIDS = {
    "greg1": (0.01, 0.02, 0.04, 0.08, 0.16),
    "l1-weights": (0.004, 0.008, 0.016, 0.032, 0.064),
    "slimming": (0.008, 0.016, 0.032, 0.064, 0.128),
    "tp-bn-scale": (0.008, 0.016, 0.032, 0.064, 0.128),
    "tp-growing-reg": (0.004, 0.008, 0.016, 0.032, 0.064),
    "cges": (0.00192, 0.00384, 0.00768, 0.01536, 0.03072),
    "oicsr-cges": (0.00192, 0.00384, 0.00768, 0.01536, 0.03072),
    "gl-out-prox": (0.8, 1.6, 3.2, 6.4, 12.8),
    "growl-prox": (0.8, 1.6, 3.2, 6.4, 12.8),
    "growl-oscar": (0.08, 0.16, 0.32, 0.64, 1.28),
    "oicsr-growl-oscar": (0.08, 0.16, 0.32, 0.64, 1.28),
}

CPU = Profile(
    dense=Phase(epochs=6, learning_rate=0.1),
    regularized=Phase(epochs=12, learning_rate=0.05),
    finetune=Phase(epochs=3, learning_rate=0.01),
    methods=(*METHODS, *SAME_WEIGHTS),
    macs_kept=(0.7, 0.5, 0.3, 0.15),
    seeds=tuple(range(10)),
    batch_size=64,
    grid_scale=40.0,
    grids=GRIDS,
)

EXPERIMENT = Experiment(
    name="digits",
    title="Digits, small ResNet, all methods",
    claim="Before fine-tuning, OICSR keeps more accuracy at equal MACs than separated and non-structured regularisers.",
    model="digits-resnet",
    dataset="digits",
    profiles={"cpu": CPU},
)
