"""CIFAR-100, VGG-19 with BatchNorm: the pair on which torch-pruning and growing regularisation publish 8.9 times.

Command: `make cifar100-vgg19`. Profile `quick` is a few hundred images: it shows that the pipeline works on the real
data. Profile `paper` takes the field's standard recipe for CIFAR (shared_profiles.py), as the paper's own is not known
(PAPER.md). Targets there: 2, 4 and 8.84 times fewer MACs.
"""

from dataclasses import replace

from benchmarks.config import Experiment
from benchmarks.experiments.shared_profiles import CIFAR_PAPER, CIFAR_QUICK

EXPERIMENT = Experiment(
    name="cifar100-vgg19",
    title="CIFAR-100, VGG-19",
    claim="Before fine-tuning, OICSR-GL keeps more accuracy at equal MACs than regularisers that look at one layer.",
    model="vgg19",
    dataset="cifar100",
    profiles={
        "quick": replace(CIFAR_QUICK, train_images=320),
        "paper": replace(CIFAR_PAPER, macs_kept=(0.5, 0.25, 1 / 8.84), max_removed=0.95),
    },
    priority=15,
)
