"""CIFAR-10, DenseNet-89: the paper's densely connected network, whose layers are read by all that follow.

Command: `make cifar10-densenet89`. Profile `quick` is a few hundred images: it shows that the pipeline works on the
real data. Growth rate and block type are ours, as the paper's are not known (PAPER.md, models/densenet.py). Profile
`paper` takes the recipe that DenseNets were published with on CIFAR for the dense network (Huang et al. 2017: 300
epochs, batch 64, learning rate 0.1 divided by ten at half and three quarters, weight decay 1e-4), and keeps batch and
weight decay afterwards.
"""

from dataclasses import replace

from benchmarks.config import Experiment, Phase
from benchmarks.experiments.shared_profiles import CIFAR_PAPER, CIFAR_QUICK

EXPERIMENT = Experiment(
    name="cifar10-densenet89",
    title="CIFAR-10, DenseNet-89",
    claim="Before fine-tuning, OICSR-GL keeps more accuracy at equal MACs than regularisers that look at one layer.",
    model="densenet89",
    dataset="cifar10",
    profiles={
        "quick": replace(CIFAR_QUICK, train_images=320),
        "paper": replace(
            CIFAR_PAPER,
            dense=Phase(epochs=300, learning_rate=0.1, schedule="step", weight_decay=1e-4),
            regularized=Phase(epochs=100, learning_rate=0.03, weight_decay=1e-4),
            finetune=Phase(epochs=100, learning_rate=0.01, weight_decay=1e-4),
            batch_size=64,
        ),
    },
    priority=17,
)
