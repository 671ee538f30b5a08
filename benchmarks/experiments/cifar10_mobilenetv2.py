"""CIFAR-10, MobileNetV2: depthwise convolutions, whose filters belong to the out-in-channels of the expansion.

Command: `make cifar10-mobilenetv2`. Profile `quick` is a few hundred images: it shows that the pipeline works on the
real data. Profile `study` is all images in few epochs, for the headline's methods and those that need no training, at
half of the MACs; its rates, half of ResNet-20's, are not tried yet. Profile `paper` takes the field's standard recipe
for CIFAR (shared_profiles.py), as the paper's own is not known (PAPER.md). The weaker target there is the 1.36 times
fewer MACs of DCP's published comparison.
"""

from dataclasses import replace

from benchmarks.config import Experiment
from benchmarks.experiments.shared_profiles import CIFAR_PAPER, CIFAR_QUICK, STUDY_AT_HALF_RATES

EXPERIMENT = Experiment(
    name="cifar10-mobilenetv2",
    title="CIFAR-10, MobileNetV2",
    claim="Before fine-tuning, OICSR-GL keeps more accuracy at equal MACs than regularisers that look at one layer.",
    model="mobilenetv2",
    dataset="cifar10",
    profiles={
        "quick": replace(CIFAR_QUICK, train_images=320),
        "study": STUDY_AT_HALF_RATES,
        "paper": replace(CIFAR_PAPER, macs_kept=(1 / 1.36, 0.5)),
    },
    priority=12,
)
