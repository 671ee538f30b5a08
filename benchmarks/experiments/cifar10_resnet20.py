"""CIFAR-10, ResNet-20: the field's smallest residual network, whose channels are hardest to spare.

Command: `make cifar10-resnet20`. Profile `quick` is a few hundred images: it shows that the pipeline works on the real
data. Profile `study` is all images in 15 + 10 + 5 epochs: a day or two of two CPU cores with bfloat16, less than an
hour of a GPU (an estimate). Profile `paper` takes the field's standard recipe for CIFAR (shared_profiles.py), as the
paper's own is not known (PAPER.md).
"""

from benchmarks.config import Experiment
from benchmarks.experiments.shared_profiles import CIFAR_PAPER, CIFAR_QUICK, CIFAR_STUDY, study_rates

EXPERIMENT = Experiment(
    name="cifar10-resnet20",
    title="CIFAR-10, ResNet-20",
    claim="Before fine-tuning, OICSR-GL keeps more accuracy at equal MACs than regularisers that look at one layer.",
    model="resnet20",
    dataset="cifar10",
    profiles={
        "quick": CIFAR_QUICK,
        "study": CIFAR_STUDY,
        **study_rates(CIFAR_STUDY),
        "paper": CIFAR_PAPER,
    },
)
