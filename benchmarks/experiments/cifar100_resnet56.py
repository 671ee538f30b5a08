"""CIFAR-100, ResNet-56: the field's usual network on ten times the classes.

Command: `make cifar100-resnet56`. Profile `quick` is a few hundred images: it shows that the pipeline works on the real
data. Profile `study` is that of `cifar10-resnet56` with the 30 epochs before the regulariser that `cifar100-resnet20`
takes, not tried on this network, and with strengths of its own. Profile `paper` takes the field's standard recipe for
CIFAR (shared_profiles.py), as the paper's own is not known (PAPER.md). Targets in both: those of `cifar10-resnet56`.
"""

from dataclasses import replace

from benchmarks.config import Experiment
from benchmarks.experiments.cifar10_resnet56 import EXPERIMENT as ON_CIFAR10
from benchmarks.experiments.shared_profiles import CIFAR_PAPER, CIFAR_QUICK

STUDY = ON_CIFAR10.profile("study")

EXPERIMENT = Experiment(
    name="cifar100-resnet56",
    title="CIFAR-100, ResNet-56",
    claim="Before fine-tuning, OICSR-GL keeps more accuracy at equal MACs than regularisers that look at one layer.",
    model="resnet56",
    dataset="cifar100",
    profiles={
        "quick": replace(CIFAR_QUICK, train_images=320),
        "study": replace(STUDY, dense=replace(STUDY.dense, epochs=30)),
        "paper": replace(CIFAR_PAPER, macs_kept=(1 / 2.1, 1 / 2.55)),
    },
)
