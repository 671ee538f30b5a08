"""CIFAR-100, ResNet-18: the pair on which PruningBench compares criteria and regularisers.

Command: `make cifar100-resnet18`. Profile `quick` is a few hundred images: it shows that the pipeline works on the real
data. Profile `paper` takes the field's standard recipe for CIFAR (shared_profiles.py), as the paper's own is not known
(PAPER.md). Targets there: 2 and 4 times fewer MACs, as PruningBench has them.
"""

from dataclasses import replace

from benchmarks.config import Experiment
from benchmarks.experiments.shared_profiles import CIFAR_PAPER, CIFAR_QUICK

EXPERIMENT = Experiment(
    name="cifar100-resnet18",
    title="CIFAR-100, ResNet-18",
    claim="Before fine-tuning, OICSR-GL keeps more accuracy at equal MACs than regularisers that look at one layer.",
    model="resnet18",
    dataset="cifar100",
    profiles={
        "quick": replace(CIFAR_QUICK, train_images=320),
        "paper": replace(CIFAR_PAPER, macs_kept=(0.5, 0.25)),
    },
    priority=13,
)
