"""CIFAR-100, PreActSENet-18: pre-activation blocks with squeeze-and-excitation, the paper's third kind of block.

Command: `make cifar100-preactsenet18`. Profile `quick` is a few hundred images: it shows that the pipeline works on the
real data. Profile `paper` takes the field's standard recipe for CIFAR (shared_profiles.py), as the paper's own is not
known (PAPER.md).
"""

from dataclasses import replace

from benchmarks.config import Experiment
from benchmarks.experiments.shared_profiles import CIFAR_PAPER, CIFAR_QUICK

EXPERIMENT = Experiment(
    name="cifar100-preactsenet18",
    title="CIFAR-100, PreActSENet-18",
    claim="Before fine-tuning, OICSR-GL keeps more accuracy at equal MACs than regularisers that look at one layer.",
    model="preactsenet18",
    dataset="cifar100",
    profiles={
        "quick": replace(CIFAR_QUICK, train_images=320),
        "paper": CIFAR_PAPER,
    },
    priority=18,
)
