"""Handwritten digits, filters not rescaled: what rescaling before fine-tuning contributes.

Command: `make digits-as-is`. Claim: shrinking penalties slow the first epochs of fine-tuning down through the effective
learning rate, and rescaling filters undoes that. Everything else is as in `digits`, strengths included.
"""

from dataclasses import replace

from benchmarks.config import Experiment
from benchmarks.experiments.digits import CPU

EXPERIMENT = Experiment(
    name="digits-as-is",
    title="Digits, small ResNet, rows not rescaled",
    claim="Rescaling rows before fine-tuning helps the methods whose penalties shrink rows, and changes no other.",
    model="digits-resnet",
    dataset="digits",
    profiles={
        "cpu": replace(
            CPU,
            methods=(
                "oicsr-gl",
                "oicsr-gl-norm",
                "oicsr-gl-prox",
                "gl-in-norm",
                "gl-out",
                "gl-separate",
                "depgraph",
                "slimming",
                "none",
            ),
            rescale="none",
        )
    },
    strengths_of="digits",
)
