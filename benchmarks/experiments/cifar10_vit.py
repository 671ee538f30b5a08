"""CIFAR-10, a small vision transformer: channels of attention and of MLPs.

Command: `make cifar10-vit`. Transformers are not in the paper. Profile `quick` is a few hundred images: it shows that
the pipeline works on the real data. Profile `paper` needs a GPU; its recipe is that of the other networks (SGD), with a
lower learning rate and five epochs of warm-up, without which a transformer does not train.
"""

from dataclasses import replace

from benchmarks.config import Experiment
from benchmarks.experiments.shared_profiles import CIFAR_PAPER, CIFAR_QUICK, VIT_METHODS

EXPERIMENT = Experiment(
    name="cifar10-vit",
    title="CIFAR-10, small ViT, channels of attention",
    claim="Before fine-tuning, OICSR-GL keeps more accuracy at equal MACs than regularisers that look at one layer.",
    model="vit",
    dataset="cifar10",
    profiles={
        "quick": replace(CIFAR_QUICK, methods=VIT_METHODS),
        "paper": replace(
            CIFAR_PAPER,
            dense=replace(CIFAR_PAPER.dense, learning_rate=0.05, warmup_epochs=5),
            methods=VIT_METHODS,
        ),
    },
    priority=60,
)
