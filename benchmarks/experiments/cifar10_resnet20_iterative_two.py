"""CIFAR-10, ResNet-20, two removals: `cifar10-resnet20-iterative` with fewer and longer steps.

Command: `make cifar10-resnet20-iterative-two`. Profile `study` is that of `cifar10-resnet20-iterative`, but for two
removals, each after five epochs with the regulariser, instead of five. (Three would not divide the ten epochs evenly.)
"""

from dataclasses import replace

from benchmarks.experiments.cifar10_resnet20_iterative import EXPERIMENT as FIVE
from benchmarks.experiments.cifar10_resnet20_iterative import removed_in

EXPERIMENT = replace(
    FIVE,
    name="cifar10-resnet20-iterative-two",
    title="CIFAR-10, ResNet-20, two removals",
    profiles={"study": removed_in(2)},
    priority=19,
)
