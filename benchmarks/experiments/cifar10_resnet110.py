"""CIFAR-10, ResNet-110: the deepest of the field's usual comparisons.

Command: `make cifar10-resnet110`. Profile `quick` is a few hundred images: it shows that the pipeline works on the real
data. Profile `paper` takes the field's standard recipe for CIFAR (shared_profiles.py), as the paper's own is not known
(PAPER.md). Targets there: 1.63 and 2.1 times fewer MACs, close to published numbers (38.6 and 52.3 % of the MACs
removed).
"""

from dataclasses import replace

from benchmarks.config import Experiment
from benchmarks.experiments.shared_profiles import CIFAR_PAPER, CIFAR_QUICK

EXPERIMENT = Experiment(
    name="cifar10-resnet110",
    title="CIFAR-10, ResNet-110",
    claim="Before fine-tuning, OICSR-GL keeps more accuracy at equal MACs than regularisers that look at one layer.",
    model="resnet110",
    dataset="cifar10",
    profiles={
        "quick": replace(CIFAR_QUICK, train_images=320),
        "paper": replace(CIFAR_PAPER, macs_kept=(1 / 1.63, 1 / 2.1)),
    },
)
