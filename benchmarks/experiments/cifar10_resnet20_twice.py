"""CIFAR-10, ResNet-20, twice the study's epochs: does a regulariser still pay when there is more training?

Command: `make cifar10-resnet20-twice`. Profile `study` is that of `cifar10-resnet20` with twice the epochs in every
phase, and its strengths, on one network. Compare `cifar10-resnet20-half`.
"""

from benchmarks.config import Experiment
from benchmarks.experiments.shared_profiles import CIFAR_STUDY, times_as_long

EXPERIMENT = Experiment(
    name="cifar10-resnet20-twice",
    title="CIFAR-10, ResNet-20, twice the epochs",
    claim="Before fine-tuning, OICSR-GL keeps more accuracy at equal MACs than regularisers that look at one layer.",
    model="resnet20",
    dataset="cifar10",
    profiles={"study": times_as_long(CIFAR_STUDY, 2)},
    strengths_of="cifar10-resnet20",
    priority=18,
)
