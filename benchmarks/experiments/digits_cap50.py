"""Handwritten digits: no coupling may lose more than half of its channels, as the paper's algorithm has it.

Command: `make digits-cap50`. Claim: the cap that the paper names (PAPER.md, D3; this suite's experiments take 90 %)
costs or gains accuracy before fine-tuning. Everything else is as in `digits`. Under this cap, 51 % of the MACs is the
lowest share that can be reached.
"""

from dataclasses import replace

from benchmarks.config import Experiment
from benchmarks.experiments.digits import CPU

EXPERIMENT = Experiment(
    name="digits-cap50",
    title="Digits, small ResNet, at most half of a layer",
    claim="Before fine-tuning, OICSR-GL keeps more accuracy than separated regularisers under the paper's cap too.",
    model="digits-resnet",
    dataset="digits",
    profiles={
        "cpu": replace(
            CPU, max_removed=0.5, methods=("oicsr-gl", "gl-separate", "gl-out", "none"), macs_kept=(0.7, 0.6)
        )
    },
    priority=60,
)
