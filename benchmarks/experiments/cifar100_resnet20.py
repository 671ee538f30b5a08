"""CIFAR-100, ResNet-20: the study's network on ten times the classes.

Command: `make cifar100-resnet20`. Profile `quick` is a few hundred images: it shows that the pipeline works on the real
data. Profile `study` is that of `cifar10-resnet20` for the headline's methods and those that need no training, at half
of the MACs, with twice the epochs before the regulariser: after 15 a network had 60.9 % on validation images, eight
points below the published accuracy, and more than five carry no verdict. Its strengths are its own: for each method
three, a factor of two apart, around the one that was chosen on CIFAR-10, and a fourth where the best of them leads.
Profile `paper` takes the field's standard recipe for CIFAR (shared_profiles.py); the network is not in the paper.
"""

from dataclasses import replace

from benchmarks.config import Experiment
from benchmarks.experiments.shared_profiles import CIFAR_PAPER, CIFAR_QUICK, STUDY_SHORT

# what `cifar10-resnet20` chose at half of the MACs is in the middle
GRIDS = {
    "oicsr-gl": (0.002, 0.004, 0.008),
    "depgraph": (0.00025, 0.0005, 0.001),
    "oicsr-gl-norm": (0.001, 0.002, 0.004),
    "gl-out": (0.002, 0.004, 0.008),
    "gl-separate": (0.001, 0.002, 0.004),
}

EXPERIMENT = Experiment(
    name="cifar100-resnet20",
    title="CIFAR-100, ResNet-20",
    claim="Before fine-tuning, OICSR-GL keeps more accuracy at equal MACs than regularisers that look at one layer.",
    model="resnet20",
    dataset="cifar100",
    profiles={
        "quick": replace(CIFAR_QUICK, train_images=320),
        "study": replace(STUDY_SHORT, dense=replace(STUDY_SHORT.dense, epochs=30), tries=4, grids=GRIDS),
        "paper": CIFAR_PAPER,
    },
)
