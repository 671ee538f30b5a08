"""CIFAR-10, ResNet-20, half of the study's epochs: does a regulariser pay when there is less training?

Command: `make cifar10-resnet20-half`. Profile `study` is that of `cifar10-resnet20` with half of the epochs in every
phase, rounded up, and its strengths, on one network. Compare `cifar10-resnet20-twice`.
"""

from benchmarks.config import Experiment
from benchmarks.experiments.shared_profiles import CIFAR_STUDY, times_as_long

EXPERIMENT = Experiment(
    name="cifar10-resnet20-half",
    title="CIFAR-10, ResNet-20, half of the epochs",
    claim="Before fine-tuning, OICSR-GL keeps more accuracy at equal MACs than regularisers that look at one layer.",
    model="resnet20",
    dataset="cifar10",
    profiles={"study": times_as_long(CIFAR_STUDY, 0.5)},
    strengths_of="cifar10-resnet20",
    priority=18,
)
