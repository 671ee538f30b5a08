"""CIFAR-10, CifarNet with no BatchNorm: the paper's claim on its own ground, where filters are not scale-free.

Command: `make cifar10-cifarnet-plain`. The paper does not say whether its CifarNet has BatchNorm; the network of that
name is older (PAPER.md). Profile `quick` is a few hundred images: it shows that the pipeline works on the real data.
Profile `study` is all images in few epochs, with a quarter of the learning rates that BatchNorm allows.
"""

from dataclasses import replace

from benchmarks.config import Experiment, Phase
from benchmarks.experiments.shared_profiles import CIFAR_QUICK, CIFAR_STUDY

EXPERIMENT = Experiment(
    name="cifar10-cifarnet-plain",
    title="CIFAR-10, CifarNet with no BatchNorm",
    claim="Before fine-tuning, OICSR-GL keeps more accuracy at equal MACs than regularisers that look at one layer.",
    model="cifarnet-plain",
    dataset="cifar10",
    profiles={
        "quick": replace(CIFAR_QUICK, dense=Phase(epochs=3, learning_rate=0.02, warmup_epochs=1)),
        "study": replace(
            CIFAR_STUDY,
            dense=Phase(epochs=15, learning_rate=0.05, warmup_epochs=1),
            regularized=Phase(epochs=10, learning_rate=0.025),
            finetune=replace(CIFAR_STUDY.finetune, learning_rate=0.01),
            methods=("oicsr-gl", "none", "depgraph", "gl-out", "gl-separate", "oicsr-gl-prox", "l1", "random"),
            tries=6,
        ),
    },
    priority=17,
)
