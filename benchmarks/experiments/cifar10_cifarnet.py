"""CIFAR-10, CifarNet: the paper's smallest network, whose convolution meets a linear layer.

Command: `make cifar10-cifarnet`. Profile `quick` is a few hundred images: it shows that the pipeline works on the real
data. Profile `paper` takes the field's standard recipe for CIFAR (shared_profiles.py), as the paper's own is not known
(PAPER.md), with a lower learning rate, since the linear layers have no BatchNorm.
"""

from dataclasses import replace

from benchmarks.config import Experiment, Phase
from benchmarks.experiments.shared_profiles import CIFAR_PAPER, CIFAR_QUICK

EXPERIMENT = Experiment(
    name="cifar10-cifarnet",
    title="CIFAR-10, CifarNet",
    claim="Before fine-tuning, OICSR-GL keeps more accuracy at equal MACs than regularisers that look at one layer.",
    model="cifarnet",
    dataset="cifar10",
    profiles={
        "quick": replace(CIFAR_QUICK, dense=Phase(epochs=3, learning_rate=0.02, warmup_epochs=1)),
        "paper": replace(CIFAR_PAPER, dense=Phase(epochs=200, learning_rate=0.03, warmup_epochs=1)),
    },
    priority=16,
)
