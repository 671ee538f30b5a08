"""Handwritten digits, a small vision transformer: heads of attention and channels of MLPs (docs/anatomy.md).

Command: `make digits-vit-heads`. Claim: that of `digits-vit`, with heads in the place of their channels: a head's group
is all its rows of queries, keys and values and its columns of the output projection. Transformers are not in the paper.
"""

from dataclasses import replace

from benchmarks.config import Experiment
from benchmarks.experiments.shared_profiles import DIGITS_VIT

EXPERIMENT = Experiment(
    name="digits-vit-heads",
    title="Digits, small ViT, heads",
    claim="Before fine-tuning, OICSR-GL keeps more accuracy at equal MACs than regularisers that look at one layer.",
    model="digits-vit",
    dataset="digits",
    profiles={"cpu": replace(DIGITS_VIT, granularity="head")},
    priority=56,
)
