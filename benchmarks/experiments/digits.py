"""Handwritten digits, complete: every method, ten seeds, four targets, on two CPU cores.

Command: `make digits` (hours; `python -m benchmarks tune digits` before, where the tuning record is not there). Claim:
all that a small network can carry. Digits are easy and the network is small: what holds here may not hold elsewhere.
Lengths, rates and grids are the demo's, so that the demo is a part of this study. `digits-iterative` and
`digits-cap50` change one part each.
"""

from benchmarks.config import Experiment, Phase, Profile
from benchmarks.experiments.demo import GROWING
from benchmarks.methods import METHODS

# another importance for the weights that one regulariser left, at the strength that was tuned for it
SAME_WEIGHTS = (
    "oicsr-gl+out",
    "oicsr-gl+in",
    "gl-separate+out",
    "none+out",
    "oicsr-gl+out-in-raw",
    "oicsr-gl+out-in-size",
    "oicsr-gl+out-in-max",
)

CPU = Profile(
    dense=Phase(epochs=6, learning_rate=0.1),
    regularized=Phase(epochs=12, learning_rate=0.05),
    finetune=Phase(epochs=3, learning_rate=0.01),
    methods=(*METHODS, *SAME_WEIGHTS),
    macs_kept=(0.7, 0.5, 0.3, 0.15),
    seeds=tuple(range(10)),
    batch_size=64,
    grid_scale=40.0,
    grids={"greg1": GROWING},
)

EXPERIMENT = Experiment(
    name="digits",
    title="Digits, small ResNet, all methods",
    claim="Before fine-tuning, OICSR keeps more accuracy at equal MACs than separated and non-structured regularisers.",
    model="digits-resnet",
    dataset="digits",
    profiles={"cpu": CPU},
)
