"""CIFAR-10, VGG-16 with no BatchNorm: a deep chain in which filters are not scale-free (docs/anatomy.md).

Command: `make cifar10-vgg16-plain`. Profile `quick` is a few hundred images: it shows that the pipeline works on the
real data. Profile `study` is all images in few epochs. Both take a fraction of the learning rates that BatchNorm
allows; those of `study` are not tried yet.
"""

from dataclasses import replace

from benchmarks.config import Experiment, Phase
from benchmarks.experiments.cifar10_cifarnet_plain import EXPERIMENT as CIFARNET
from benchmarks.experiments.shared_profiles import CIFAR_QUICK

EXPERIMENT = Experiment(
    name="cifar10-vgg16-plain",
    title="CIFAR-10, VGG-16 with no BatchNorm",
    claim="Before fine-tuning, OICSR-GL keeps more accuracy at equal MACs than regularisers that look at one layer.",
    model="vgg16-plain",
    dataset="cifar10",
    profiles={
        "quick": replace(CIFAR_QUICK, dense=Phase(epochs=3, learning_rate=0.02, warmup_epochs=1), train_images=320),
        "study": CIFARNET.profile("study"),
    },
    priority=18,
)
