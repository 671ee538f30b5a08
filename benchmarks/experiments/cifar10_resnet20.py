"""CIFAR-10, ResNet-20: the field's smallest residual network, whose channels are hardest to spare.

Command: `make cifar10-resnet20`. Profile `quick` is a few hundred images: it shows that the pipeline works on the real
data. Profile `cpu` is a study for two CPU cores (an hour or two in all, minutes per method and seed): 4,000 images and
few epochs. Its accuracies are far below those of full training, but its comparisons are fair. Profile
`study` is all images in 15 + 10 + 5 epochs: a day or two of two CPU cores with bfloat16, less than an hour of a GPU
(an estimate). Profile `paper` takes the field's standard recipe for CIFAR (shared_profiles.py), as the paper's own is
not known (PAPER.md).
"""

from benchmarks.config import Experiment, Phase, Profile
from benchmarks.experiments.shared_profiles import CIFAR_PAPER, CIFAR_QUICK, CIFAR_STUDY, study_rates

CPU = Profile(
    dense=Phase(epochs=10, learning_rate=0.1, warmup_epochs=1),
    regularized=Phase(epochs=5, learning_rate=0.05),
    finetune=Phase(epochs=2, learning_rate=0.01),
    methods=("oicsr-gl", "gl-out", "gl-separate", "slimming", "l1", "none", "random", "depgraph", "oicsr-gl-prox"),
    macs_kept=(0.7, 0.5, 0.3),
    seeds=(0, 1, 2),
    batch_size=64,
    train_images=4_000,
    validation_images=1_000,
    test_images=3_000,
    grid_scale=16.0,
    # the usual grid, scaled, is too weak here: 0.0004 and 0.0008 changed nothing (LOG.md); as wide as the others'
    grids={"slimming": (0.004, 0.008, 0.016, 0.032, 0.064)},
)

EXPERIMENT = Experiment(
    name="cifar10-resnet20",
    title="CIFAR-10, ResNet-20",
    claim="Before fine-tuning, OICSR-GL keeps more accuracy at equal MACs than regularisers that look at one layer.",
    model="resnet20",
    dataset="cifar10",
    profiles={
        "quick": CIFAR_QUICK,
        "cpu": CPU,
        "study": CIFAR_STUDY,
        **study_rates(CIFAR_STUDY),
        "paper": CIFAR_PAPER,
    },
)
