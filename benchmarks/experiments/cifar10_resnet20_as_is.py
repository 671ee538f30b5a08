"""CIFAR-10, ResNet-20, filters not rescaled: what rescaling before fine-tuning contributes where images are many.

Command: `make cifar10-resnet20-as-is`. Profile `study` is that of `cifar10-resnet20-repeat`, with its strengths, on one
network and for two of its methods. Run it with the checkpoints of that experiment: the two are compared only where they
start from the same dense network.
"""

from dataclasses import replace

from benchmarks.config import Experiment
from benchmarks.experiments.cifar10_resnet20_repeat import STUDY

EXPERIMENT = Experiment(
    name="cifar10-resnet20-as-is",
    title="CIFAR-10, ResNet-20, rows not rescaled",
    claim="Rescaling rows before fine-tuning helps the methods whose penalties shrink rows, and changes no other.",
    model="resnet20",
    dataset="cifar10",
    profiles={"study": replace(STUDY, methods=("oicsr-gl", "none"), rescale="none")},
    strengths_of="cifar10-resnet20",
    priority=19,
)
