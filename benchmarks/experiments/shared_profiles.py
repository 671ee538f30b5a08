"""Profiles that several experiments share. Each experiment's file says what it changes, and why.

The paper's epochs, learning rates, batch size and weight decay are not known for any data set (PAPER.md). Unless stated
otherwise, `paper` profiles use the field's usual recipe: on CIFAR SGD with Nesterov momentum 0.9, batch 128, learning
rate 0.1 on a cosine, weight decay 5e-4, 200 epochs for the dense network, and the 100 + 100 epochs of torch-pruning's
published comparison for the regularised and the fine-tuned one.
"""

import math
from dataclasses import replace

from benchmarks.config import Phase, Profile

METHODS = ("oicsr-gl", "gl-out", "gl-separate", "l1", "slimming", "none", "random")

# every selection of a channel's sides, as one group or one per side, by sub-gradient and by proximal step
ANATOMY = (
    "oicsr-gl",
    "oicsr-gl-norm",
    *(f"gl-{sides}" for sides in ("out", "in", "norm", "out-norm", "in-norm")),
    *(f"gl-separate{sides}" for sides in ("", "-out-norm", "-in-norm", "-out-in-norm")),
)
DIGITS_ANATOMY = Profile(
    dense=Phase(epochs=20, learning_rate=0.1),
    regularized=Phase(epochs=12, learning_rate=0.05),
    finetune=Phase(epochs=3, learning_rate=0.01),
    methods=(
        *ANATOMY,
        *(f"{name}-prox" for name in ANATOMY),
        "depgraph",
        "depgraph-noscale",
        "slimming",
        "none",
        "seen",
        "scale-in",
        "gl-out+seen",
    ),
    macs_kept=(0.5, 0.3),
    seeds=tuple(range(10)),
    batch_size=64,
    grid_scale=20.0,
)

# A ViT has no BatchNorm: its filters are not scale-free, and methods that read a scale do not apply.
VIT_METHODS = (
    "oicsr-gl",
    "gl-out",
    "gl-in",
    "gl-separate",
    "oicsr-gl-prox",
    "gl-out-prox",
    "gl-in-prox",
    "gl-separate-prox",
    "oicsr-growl",
    "growl",
    "none",
    "l1",
    "l2",
    "random",
    "scratch-e",
)
DIGITS_VIT = Profile(
    dense=Phase(epochs=60, learning_rate=0.05, warmup_epochs=4),
    regularized=Phase(epochs=12, learning_rate=0.02),
    finetune=Phase(epochs=4, learning_rate=0.01),
    methods=VIT_METHODS,
    macs_kept=(0.5, 0.3),
    seeds=tuple(range(10)),
    batch_size=64,
    grid_scale=20.0,
)

# a few hundred images and few epochs: shows that the pipeline works, says nothing about the claim
CIFAR_QUICK = Profile(
    dense=Phase(epochs=3, learning_rate=0.05, warmup_epochs=1),
    regularized=Phase(epochs=2, learning_rate=0.02),
    finetune=Phase(epochs=1, learning_rate=0.01),
    methods=METHODS,
    macs_kept=(0.5,),
    seeds=(0,),
    batch_size=64,
    train_images=640,
    validation_images=256,
    test_images=512,
    grid_scale=200.0,
)

# The study: all images of CIFAR in a few epochs, the same on any device: dense accuracy is within a few points of the
# field's, and two CPU cores suffice. The methods are in the order in which the comparison needs them.
STUDY_HEADLINE = ("oicsr-gl", "none", "depgraph", "oicsr-gl-norm", "gl-out", "gl-separate")
NO_TRAINING = ("l1", "random", "seen", "scale-in", "folded")  # other importances of the network without regulariser
STUDY_OTHERS = (
    "gl-in-norm",
    "oicsr-gl-prox",
    "oicsr-gl-norm-prox",
    "depgraph-noscale",
    "slimming",
    "growl",
    "oicsr-growl",
    "dense-long",
    "scratch-e",
)

# Network Slimming's usual grid is for 160 epochs: on CIFAR in 10 it starts to act at ten times its strengths
STUDY_GRIDS = {"slimming": (0.0005, 0.001, 0.002, 0.004, 0.008)}

CIFAR_STUDY = Profile(
    dense=Phase(epochs=15, learning_rate=0.2, warmup_epochs=1),
    regularized=Phase(epochs=10, learning_rate=0.1),
    finetune=Phase(epochs=5, learning_rate=0.05),
    methods=(*STUDY_HEADLINE, *NO_TRAINING, *STUDY_OTHERS),
    macs_kept=(0.5, 0.3, 0.7),
    seeds=(0, 1, 2),
    precision="auto",
    tries=5,
    grids=STUDY_GRIDS,
)

# the headline's methods, and those that need no training of their own, at one target
STUDY_SHORT = replace(CIFAR_STUDY, methods=(*STUDY_HEADLINE, *NO_TRAINING), macs_kept=(0.5,))

# for networks that the study's rates are not tried on: half of those of ResNet-20
STUDY_AT_HALF_RATES = replace(
    STUDY_SHORT,
    dense=replace(CIFAR_STUDY.dense, learning_rate=0.1),
    regularized=replace(CIFAR_STUDY.regularized, learning_rate=0.05),
    finetune=replace(CIFAR_STUDY.finetune, learning_rate=0.025),
)

CIFAR_PAPER = Profile(
    dense=Phase(epochs=200, learning_rate=0.1, warmup_epochs=1),
    regularized=Phase(epochs=100, learning_rate=0.03),
    finetune=Phase(epochs=100, learning_rate=0.01),
    methods=METHODS,
    macs_kept=(0.7, 0.5, 0.3),
    seeds=(0, 1, 2),
    precision="bfloat16",
)

IMAGENET_QUICK = Profile(
    dense=Phase(epochs=1, learning_rate=0.01),
    regularized=Phase(epochs=1, learning_rate=0.01),
    finetune=Phase(epochs=1, learning_rate=0.005),
    methods=METHODS,
    macs_kept=(0.5,),
    seeds=(0,),
    batch_size=16,
    train_images=64,
    validation_images=32,
    test_images=64,
    grid_scale=1000.0,
)

STUDY_RATES = (0.01, 0.02, 0.05)


def study_rates(study: Profile) -> dict[str, Profile]:
    """Return a study with other learning rates of fine-tuning, by name.

    The study takes the one that ends best on validation images, over no regulariser and OICSR-GL alike and both
    targets, on a network that no comparison uses.
    """
    trial = replace(study, methods=("none", "oicsr-gl"), macs_kept=(0.5, 0.3), seeds=(1000,))
    return {
        f"study-rate-{rate:g}": replace(trial, finetune=replace(study.finetune, learning_rate=rate))
        for rate in STUDY_RATES
    }


def times_as_long(study: Profile, factor: float) -> Profile:
    """Return a study of one network with `factor` times the epochs in every phase, rounded up."""

    def stretched(phase: Phase) -> Phase:
        return replace(phase, epochs=math.ceil(phase.epochs * factor))

    return replace(
        study,
        dense=stretched(study.dense),
        regularized=stretched(study.regularized),
        finetune=stretched(study.finetune),
        methods=STUDY_HEADLINE,
        macs_kept=(0.5, 0.3),
        seeds=(0,),
    )
