"""CIFAR-10, ResNet-18: one of the paper's pairs of network and data.

Command: `make cifar10-resnet18`. Profile `quick` is a few hundred images: it shows that the pipeline works on the real
data. Profile `paper` takes the field's standard recipe for CIFAR (shared_profiles.py), as the paper's own is not known
(PAPER.md). The inner width of each basic block is pruned, as in the authors' ResNet file.
"""

from dataclasses import replace

from benchmarks.config import Experiment
from benchmarks.experiments.shared_profiles import CIFAR_PAPER, CIFAR_QUICK

EXPERIMENT = Experiment(
    name="cifar10-resnet18",
    title="CIFAR-10, ResNet-18",
    claim="Before fine-tuning, OICSR-GL keeps more accuracy at equal MACs than regularisers that look at one layer.",
    model="resnet18",
    dataset="cifar10",
    profiles={
        "quick": replace(CIFAR_QUICK, train_images=320),
        "paper": CIFAR_PAPER,
    },
    priority=14,
)
