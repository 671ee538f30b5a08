"""Handwritten digits: removal in three steps, each after a third of the regularised training.

Command: `make digits-iterative`. Claim: where little stays, several removals keep more accuracy than one. Everything
else, including the total number of epochs, is as in `digits`.
"""

from dataclasses import replace

from benchmarks.config import Experiment
from benchmarks.experiments.digits import CPU

STEPS = 3

EXPERIMENT = Experiment(
    name="digits-iterative",
    title="Digits, small ResNet, three removals",
    claim="Where little stays, several removals leave more accuracy than one.",
    model="digits-resnet",
    dataset="digits",
    profiles={
        "cpu": replace(
            CPU,
            regularized=replace(CPU.regularized, epochs=CPU.regularized.epochs // STEPS),
            steps=STEPS,
            methods=("oicsr-gl", "gl-separate", "gl-out"),
            macs_kept=(0.3, 0.15),
        )
    },
    priority=60,
)
