"""CIFAR-10, ResNet-20, the study's first network once more, on another device: do the two agree?

Command: `make cifar10-resnet20-repeat`. Profile `study` is that of `cifar10-resnet20`, with its strengths, on one
network and for four of its methods. Run it on a device of another kind than `cifar10-resnet20`'s own records name,
such as a CPU: images, epochs, rates and random numbers are the same, kernels and rounding are not.
"""

from dataclasses import replace

from benchmarks.config import Experiment
from benchmarks.experiments.shared_profiles import CIFAR_STUDY, times_as_long

STUDY = replace(times_as_long(CIFAR_STUDY, 1), methods=("oicsr-gl", "none", "depgraph", "oicsr-gl-norm"))

EXPERIMENT = Experiment(
    name="cifar10-resnet20-repeat",
    title="CIFAR-10, ResNet-20, on another device",
    claim="The study's numbers do not depend on the device.",
    model="resnet20",
    dataset="cifar10",
    profiles={"study": STUDY},
    strengths_of="cifar10-resnet20",
    priority=19,
)
