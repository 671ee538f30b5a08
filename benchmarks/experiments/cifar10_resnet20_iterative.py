"""CIFAR-10, ResNet-20, five removals: is it better to remove in steps, with training in between?

Command: `make cifar10-resnet20-iterative`. Profile `study` is that of `cifar10-resnet20` with five removals, each after
two epochs with the regulariser, and the strengths that were chosen for one removal. Its networks with one removal, in
as many epochs, are those of `cifar10-resnet20`, and of `cifar10-resnet20-repeat` on a CPU. The paper prunes in such
steps (its Fig. 2), and does not say how many there are or how long each is trained (PAPER.md, D4).
"""

from dataclasses import replace

from benchmarks.config import Experiment, Profile
from benchmarks.experiments.shared_profiles import CIFAR_STUDY


def removed_in(steps: int) -> Profile:
    """Return the study of one network with so many removals, between which its regularised training is divided.

    Raises:
        ValueError: Its epochs cannot be divided evenly, so that removals would change how long it is trained.
    """
    epochs, left = divmod(CIFAR_STUDY.regularized.epochs, steps)
    if left:
        raise ValueError(f"steps is {steps!r}; it must divide the {CIFAR_STUDY.regularized.epochs} regularised epochs")
    return replace(
        CIFAR_STUDY,
        regularized=replace(CIFAR_STUDY.regularized, epochs=epochs),
        steps=steps,
        methods=("oicsr-gl", "depgraph", "none", "oicsr-gl-norm"),
        macs_kept=(0.3, 0.5),
        seeds=(0,),
    )


EXPERIMENT = Experiment(
    name="cifar10-resnet20-iterative",
    title="CIFAR-10, ResNet-20, five removals",
    claim="Where little stays, several removals leave more accuracy than one.",
    model="resnet20",
    dataset="cifar10",
    profiles={"study": removed_in(5)},
    strengths_of="cifar10-resnet20",
    priority=18,
)
