"""CIFAR-10, ResNet-20, the study once more on a device of the same kind: how much does a second run of a seed move?

Command: `make cifar10-resnet20-again`. Profile `study` is that of `cifar10-resnet20`, with its strengths and seeds, for
two targets. Training on a GPU does not repeat bit for bit, so each seed gives another dense network: compare methods
within one of the two experiments, and means between them.
"""

from dataclasses import replace

from benchmarks.config import Experiment
from benchmarks.experiments.shared_profiles import CIFAR_STUDY, STUDY_HEADLINE

EXPERIMENT = Experiment(
    name="cifar10-resnet20-again",
    title="CIFAR-10, ResNet-20, a second time",
    claim="Another run of the same seeds on a device of the same kind gives the same means.",
    model="resnet20",
    dataset="cifar10",
    profiles={
        "study": replace(
            CIFAR_STUDY,
            methods=(*STUDY_HEADLINE, "gl-in-norm", "oicsr-gl-prox", "oicsr-gl-norm-prox", "depgraph-noscale"),
            macs_kept=(0.5, 0.3),
        )
    },
    strengths_of="cifar10-resnet20",
    priority=19,
)
