"""Handwritten digits, widths in multiples of 8: what the widths that processors like cost in accuracy.

Command: `make digits-round8`. Claim: rounding gives widths for which processors have fast kernels, and costs accuracy,
as channels stay or go in eights. Everything else is as in `digits`, strengths included.
"""

from dataclasses import replace

from benchmarks.config import Experiment
from benchmarks.experiments.digits import CPU

EXPERIMENT = Experiment(
    name="digits-round8",
    title="Digits, small ResNet, widths in multiples of 8",
    claim="Widths in multiples of 8 cost accuracy at equal MACs.",
    model="digits-resnet",
    dataset="digits",
    profiles={
        "cpu": replace(
            CPU,
            methods=("oicsr-gl", "oicsr-gl-norm", "gl-out", "gl-separate", "depgraph", "none"),
            macs_kept=(0.7, 0.5),  # 31 % is the lowest share in reach of multiples of 8
            round_to=8,
        )
    },
    strengths_of="digits",
)
