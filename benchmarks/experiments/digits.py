"""Handwritten digits, complete: every method, ten seeds, four targets, on two CPU cores.

Command: `make digits` (hours; `python -m benchmarks tune digits` before, where the tuning record is not there). Claim:
all that a small network can carry. Digits are easy and the network is small: what holds here may not hold elsewhere.
"""

from benchmarks.config import Experiment, Phase, Profile
from benchmarks.methods import METHODS

EXPERIMENT = Experiment(
    name="digits",
    title="Digits, small ResNet, all methods",
    claim="Before fine-tuning, OICSR keeps more accuracy at equal MACs than separated and non-structured regularisers.",
    model="digits-resnet",
    dataset="digits",
    profiles={
        "cpu": Profile(
            dense=Phase(epochs=15, learning_rate=0.1),
            regularized=Phase(epochs=25, learning_rate=0.05),
            finetune=Phase(epochs=6, learning_rate=0.01),
            methods=tuple(METHODS),
            macs_kept=(0.7, 0.5, 0.3, 0.15),
            seeds=tuple(range(10)),
            batch_size=64,
            grid_scale=16.0,
            # a penalty that grows at every step needs more in proportion to the square of the number of steps
            grids={"greg1": (0.0006, 0.0012, 0.0025, 0.005, 0.01)},
        ),
    },
)
