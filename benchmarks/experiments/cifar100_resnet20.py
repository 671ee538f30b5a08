"""CIFAR-100, ResNet-20: the study's network on ten times the classes.

Command: `make cifar100-resnet20`. Profile `quick` is a few hundred images: it shows that the pipeline works on the real
data. Profile `study` is that of `cifar10-resnet20` for the headline's methods and those that need no training, at half
of the MACs, with strengths of its own. Profile `paper` takes the field's standard recipe for CIFAR
(shared_profiles.py); the network is not in the paper.
"""

from dataclasses import replace

from benchmarks.config import Experiment
from benchmarks.experiments.shared_profiles import CIFAR_PAPER, CIFAR_QUICK, STUDY_SHORT

EXPERIMENT = Experiment(
    name="cifar100-resnet20",
    title="CIFAR-100, ResNet-20",
    claim="Before fine-tuning, OICSR-GL keeps more accuracy at equal MACs than regularisers that look at one layer.",
    model="resnet20",
    dataset="cifar100",
    profiles={
        "quick": replace(CIFAR_QUICK, train_images=320),
        "study": STUDY_SHORT,
        "paper": CIFAR_PAPER,
    },
)
